"""Feature maps in memory, in their stored form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Encoded:
    """Stored numbers of one block, on the host. A ``Codec`` decodes them to feature maps.

    k  stored planes: channels, or components of the compact encoding      h, w  size of the block's map

    Attributes:
        values: (..., k, h, w) float32, float16, int8 or uint8; "..." are images and timesteps.
        scale: float32 (..., k), for int8 only.
        offset: float32 (..., k), for int8 only.
    """

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    offset: NDArray[np.float32] | None = None

    def __getitem__(self, index: Any) -> Encoded:
        """Index the leading axes of all arrays alike."""
        return Encoded(
            self.values[index],
            None if self.scale is None else self.scale[index],
            None if self.offset is None else self.offset[index],
        )

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.values, self.scale, self.offset) if a is not None)


def stacked(parts: Sequence[Encoded]) -> Encoded:
    """Parts of equal shape, stacked along a new leading axis; C-contiguous, whatever the layout of the parts."""
    scales = [part.scale for part in parts if part.scale is not None]
    offsets = [part.offset for part in parts if part.offset is not None]
    return Encoded(
        _stacked([part.values for part in parts]),
        _stacked(scales) if scales else None,
        _stacked(offsets) if offsets else None,
    )


def _stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(arrays, out=np.empty((len(arrays), *arrays[0].shape), arrays[0].dtype))
