"""What every head can do: learn from a batch, and cast one vote after another.

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
"""Of logits (b, n, ...), truth uint8 (b, ...) and what counts, bool (b, ...)."""


def coarsest_step(spec: FeatureSpec) -> int:
    """Pixels of the network's square for each value of the coarsest map."""
    return spec.resolution // min(min(block.height, block.width) for block in spec.blocks)


def side_by_side(read: Callable[[int], Maps], timesteps: Sequence[int]) -> dict[str, torch.Tensor]:
    """The maps of all timesteps {block: (1, t, c, h, w)}, as heads that read all of them see them in training."""
    steps = [read(i) for i in range(len(timesteps))]
    return {name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]}


class Head(nn.Module):
    """Reads feature maps; each of its ``voters`` has a say in the prediction.

    This one reads one timestep at a time (``forward``), and every timestep votes.

    Attributes:
        step: pixels of the network's square that it cannot read apart; windows to train on are multiples.
    """

    step: int

    all_timesteps = False
    """Whether it reads all timesteps of an image together, in training and in prediction, and never some of them."""

    def voters(self, timesteps: Sequence[int]) -> tuple[str, ...]:
        """Names of the voters, in the order of ``votes``."""
        return tuple(str(t) for t in timesteps)

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        """Logits (1, n, R, R) of each voter for one image.

        Args:
            read: the maps {block: (1, c, h, w)} of the i-th timestep.
        """
        for i, t in enumerate(timesteps):
            maps = read(i)
            device = next(iter(maps.values())).device
            yield self(maps, torch.tensor([t], device=device))

    def loss(
        self, maps: Maps, t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        """Loss of a batch.

        Args:
            maps: {block: (b, c, h, w)}; (b, t, c, h, w) where ``all_timesteps``.
            t: (b,); (b, t) where ``all_timesteps``.
            truth: uint8 (b, R, R), see ``Task.labels``; smaller where a window of the square is shown.
            inside: bool (b, R, R), what counts.
            measure: the loss of logits.
        """
        return measure(self(maps, t).float(), truth, inside)

    def augment(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Change photographs of training images at random; cached features are left as they are."""
        return {PIXELS: photometric_change(maps[PIXELS])} if PIXELS in maps else maps
