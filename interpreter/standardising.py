"""Bringing channels to mean 0 and variance 1 in each photograph (instance normalisation, Ulyanov et al. 2016).

b  images    c  channels    h, w  size of a map    g, g  places of it that are sampled    R  network's square
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from store.batches import Batch
from store.codecs import Codec
from store.encoded import Encoded
from store.features import Key

GRID = 128
"""Largest number of places that are sampled along each side of a map."""
SMALLEST_DEVIATION = 10**-2.5
"""Smallest standard deviation to divide by: a channel that varies less says nothing and is not amplified."""


class Moments(NamedTuple):
    """Mean and standard deviation of each channel, both (b, ..., c, 1, 1)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def standardised(self, features: torch.Tensor) -> torch.Tensor:
        """Standardise maps (b, ..., c, h, w), or windows of them."""
        return (features - self.mean.to(features.device)).div_(self.deviation.to(features.device))


def moments_of(
    block: str, stored: Encoded, codec: Codec, fov: NDArray[np.bool_], device: torch.device | str = "cpu"
) -> Moments:
    """Moments of whole maps, inside the field of view only: how much black surrounds it depends on the camera.

    Args:
        stored: whole maps of a block, values (b, ..., k, h, w).
        fov: bool (b, R, R); if it contains none of an image's sampled places, all of them count.
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


class MomentsCache:
    """Moments of training images, computed once for each view and timestep and cached: they take a fifth of a step.

    Args:
        find: computes the moments of a batch's maps inside their fields of view, such as ``Interpreter.moments``.
        fov_of: returns the field of view of an entry, bool (R, R).
    """

    def __init__(
        self,
        find: Callable[[Mapping[str, Encoded], NDArray[np.bool_]], dict[str, Moments] | None],
        fov_of: Callable[[Key], NDArray[np.bool_]],
    ) -> None:
        self._find, self._fov_of = find, fov_of
        self._known: dict[tuple[Key, tuple[int, ...]], dict[str, Moments]] = {}  # in CPU memory

    def of(self, batch: Batch) -> dict[str, Moments]:
        """The moments of a batch of whole maps {block: Encoded (b, ..., k, h, w)}, in CPU memory."""
        of_each = [self._of_one(batch, row) for row in range(len(batch.keys))]
        return {
            name: Moments(*(torch.cat(parts) for parts in zip(*(one[name] for one in of_each), strict=True)))
            for name in batch.maps
        }

    def _of_one(self, batch: Batch, row: int) -> dict[str, Moments]:
        place = batch.keys[row], tuple(batch.timesteps[row].tolist())
        if place not in self._known:
            maps = {name: stored[row : row + 1] for name, stored in batch.maps.items()}
            found = self._find(maps, self._fov_of(batch.keys[row])[None]) or {}
            self._known[place] = {name: Moments(m.mean.cpu(), m.deviation.cpu()) for name, m in found.items()}
        return self._known[place]
