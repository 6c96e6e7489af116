"""The adaptive interpreter with all timesteps before it at once and one vote: what voting costs, or is worth.

b  images    t  timesteps
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from interpreter.heads.adaptive import AdaptiveHead
from interpreter.heads.head import Loss, Maps, side_by_side


class JointHead(AdaptiveHead):
    """One voter, which reads the maps of all timesteps side by side; (b, t, c, h, w) maps in.

    Levels are as wide as the adaptive interpreter's, only what enters them is more. Its norms are told no timestep.
    """

    all_timesteps = True

    def voters(self, _timesteps: Sequence[int]) -> tuple[str, ...]:
        return ("joint",)

    def loss(
        self, maps: Maps, _t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        return measure(self._logits(maps).float(), truth, inside)

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        yield self._logits(side_by_side(read, timesteps))

    def _logits(self, maps: Maps) -> torch.Tensor:
        first = next(iter(maps.values()))
        no_timestep = torch.zeros(len(first), device=first.device)
        logits: torch.Tensor = self({name: m.flatten(1, 2) for name, m in maps.items()}, no_timestep)
        return logits
