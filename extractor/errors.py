"""Everything that can go wrong between a file and its features.

ExtractorError
├── ImageError             bytes that are no photograph, or one that cannot be used
│   ├── ImageTooLarge      more pixels than the limit
│   └── NoFieldOfView      nothing that looks like a retina
├── DatasetError           a folder that does not hold the data set that was named
├── ScheduleError          an invalid noise schedule or grid
├── BackboneError          a backbone that cannot be loaded or used
│   └── CheckpointError    a checkpoint that does not fit
├── ClusterError           a Dask cluster that cannot do the work
├── DeviceFull             a device without room for a single photograph
├── NonFiniteActivation    NaN or infinity inside the network; names block and timestep
└── PretrainingError       pre-training that cannot start or go on
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ExtractorError(Exception):
    """Base of all errors of the extractor; the message says what to do."""


class ImageError(ExtractorError, ValueError):
    """The bytes are not an image that can be used. What decodes them does not know a name; ``naming`` adds it."""


@contextmanager
def naming(image: object) -> Iterator[None]:
    """In this context, the message of an ImageError begins with the image's name or path."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{image}: {error}") from error


class ImageTooLarge(ImageError):
    """The image has more pixels than the limit allows."""


class NoFieldOfView(ImageError):
    """No lit region was found in the image."""


class DatasetError(ExtractorError, ValueError):
    """The folder does not hold the data set that was named."""


class ScheduleError(ExtractorError, ValueError):
    """The noise schedule or the grid of timesteps is invalid."""


class BackboneError(ExtractorError, ValueError):
    """The backbone cannot be loaded or cannot do what was asked."""


class CheckpointError(BackboneError):
    """The checkpoint does not fit the architecture; the message lists what does not."""


class ClusterError(ExtractorError, RuntimeError):
    """The Dask cluster cannot be reached, or its workers cannot do the work."""


class DeviceFull(ExtractorError, MemoryError):
    """The device has no room for a single photograph."""


class NonFiniteActivation(ExtractorError, ArithmeticError):
    """The network produced NaN or infinity; the message names block and timestep."""


class PretrainingError(ExtractorError, ValueError):
    """Pre-training cannot start or go on."""
