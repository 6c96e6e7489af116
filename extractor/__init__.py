"""Photographs in, cached diffusion features out. Names are imported when first used: importing torch takes seconds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
