"""Channels brought to mean 0 and variance 1, photograph by photograph (instance normalisation, Ulyanov et al. 2016).

b  images    c  channels    h, w  size of a map    g, g  places of it that are looked at    R  network's square
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from store.codecs import Codec
from store.encoded import Encoded

GRID = 128
"""Places along a side, at most."""
SMALLEST_DEVIATION = 10**-2.5
"""A channel that varies less says nothing, and is not blown up."""


class Moments(NamedTuple):
    """Of each channel, both (b, ..., c, 1, 1)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def standardised(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (b, ..., c, h, w), or windows of them."""
        return (features - self.mean).div_(self.deviation)


def moments_of(
    block: str, stored: Encoded, codec: Codec, fov: NDArray[np.bool_], device: torch.device | str = "cpu"
) -> Moments:
    """Moments of whole maps inside the field of view: how much black surrounds it depends on the camera.

    Args:
        stored: of a block, values (b, ..., k, h, w).
        fov: bool (b, R, R); where none of the places that are looked at is in it, all of them count.
    """
    side = stored.values.shape[-1]
    step, pixels = -(-side // GRID), fov.shape[-1] // side
    sparse = Encoded(stored.values[..., ::step, ::step], stored.scale, stored.offset)
    values = codec.decode(block, sparse, device)  # (b, ..., c, g, g)
    inside = fov[:, pixels // 2 :: pixels, pixels // 2 :: pixels][:, ::step, ::step]  # (b, g, g), middles of the places
    inside = np.where(inside.any(axis=(1, 2), keepdims=True), inside, True)
    counts = torch.from_numpy(inside.astype(np.float32)).to(device)
    weights = counts / counts.sum(dim=(1, 2), keepdim=True)
    weights = weights.view(len(fov), *[1] * (values.ndim - 3), *weights.shape[1:])  # (b, ..., 1, g, g)
    mean = (values * weights).sum(dim=(-2, -1), keepdim=True)
    variance = ((values - mean).square_() * weights).sum(dim=(-2, -1), keepdim=True)
    return Moments(mean, variance.sqrt().clamp(min=SMALLEST_DEVIATION))
