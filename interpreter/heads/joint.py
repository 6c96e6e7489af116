"""The adaptive interpreter reading all timesteps at once, with a single vote: an ablation of voting.

b  images    t  timesteps
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from interpreter.heads.adaptive import AdaptiveHead
from interpreter.heads.head import Loss, Maps, stack_timesteps


class JointHead(AdaptiveHead):
    """A single voter that reads the maps of all timesteps, (b, t, c, h, w), concatenated along channels.

    Its levels are as wide as the adaptive interpreter's; only their input projections are larger. Since it reads no
    particular timestep, its norms always get the embedding of t = 0.
    """

    all_timesteps = True

    def voters(self, _timesteps: Sequence[int]) -> tuple[str, ...]:
        return ("joint",)

    def loss(
        self, maps: Maps, _t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        return measure(self._logits(maps).float(), truth, inside)

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        yield self._logits(stack_timesteps(read, timesteps))

    def _logits(self, maps: Maps) -> torch.Tensor:
        first = next(iter(maps.values()))
        no_timestep = torch.zeros(len(first), device=first.device)
        logits: torch.Tensor = self({name: m.flatten(1, 2) for name, m in maps.items()}, no_timestep)
        return logits
