"""The base class of all heads: it computes the loss of a batch, and predicts by the votes of its voters.

b  images    t  timesteps    n  scores for each pixel    R  network's square
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import nn

from interpreter.heads.photometric import photometric_change
from store.pixels import PIXELS
from store.spec import FeatureSpec

Maps = Mapping[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A loss of logits (b, n, ...), ground truth uint8 (b, ...) and a mask bool (b, ...) of the pixels that count."""


def coarsest_stride(spec: FeatureSpec) -> int:
    """Side, in pixels of the network's square, of the area that one value of the coarsest map covers."""
    return spec.resolution // min(min(block.height, block.width) for block in spec.blocks)


def stack_timesteps(read: Callable[[int], Maps], timesteps: Sequence[int]) -> dict[str, torch.Tensor]:
    """Stack the maps of all timesteps: {block: (1, t, c, h, w)}, as ``all_timesteps`` heads get them in training."""
    steps = [read(i) for i in range(len(timesteps))]
    return {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}


class Head(nn.Module):
    """A network that reads feature maps; each of its ``voters`` casts one vote for the prediction.

    By default it reads one timestep at a time (``forward``), and every timestep is a voter.

    Attributes:
        stride: smallest unit, in pixels of the network's square, in which maps can be cropped; the side and the
            position of training windows are multiples of it.
    """

    stride: int

    all_timesteps = False
    """Whether the head always reads all timesteps of an image together, in training and in prediction."""

    def voters(self, timesteps: Sequence[int]) -> tuple[str, ...]:
        """Names of the voters, in the order of ``votes``."""
        return tuple(str(t) for t in timesteps)

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield the logits (1, n, R, R) of each voter for one image.

        Args:
            read: returns the maps {block: (1, c, h, w)} of the i-th timestep.
        """
        for i, t in enumerate(timesteps):
            maps = read(i)
            device = next(iter(maps.values())).device
            yield self(maps, torch.tensor([t], device=device))

    def loss(
        self, maps: Maps, t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            maps: {block: (b, c, h, w)}, or (b, t, c, h, w) if ``all_timesteps``.
            t: timesteps, (b,), or (b, t) if ``all_timesteps``.
            truth: ground truth, uint8 (b, R, R), see ``Task.labels``; smaller if the batch holds windows of the square.
            inside: the pixels that count, bool, of the shape of ``truth``.
            measure: the loss function.
        """
        return measure(self(maps, t).float(), truth, inside)

    def augment(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Apply random photometric changes to training photographs; return cached features unchanged."""
        return {PIXELS: photometric_change(maps[PIXELS])} if PIXELS in maps else maps
