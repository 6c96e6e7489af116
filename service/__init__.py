"""Segmentation of photographs, over HTTP or from Python. Names are imported lazily, on first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
