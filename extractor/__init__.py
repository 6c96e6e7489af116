"""Photographs in, cached diffusion features out. Names are loaded when they are first used: torch takes seconds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
