"""Storage of deterministic diffusion features: specs, geometry, Zarr layout, and batches read through Dask.

Names are imported when first used: loading Zarr, Dask and OpenCV takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
