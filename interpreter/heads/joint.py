"""The adaptive interpreter shown all timesteps at once: what voting costs, and what a second opinion is worth.

b  images    t  timesteps
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from interpreter.heads.adaptive import AdaptiveHead
from interpreter.heads.head import Loss, Maps


class JointHead(AdaptiveHead):
    """One voter, which reads the maps of all timesteps side by side; (b, t, c, h, w) maps in.

    Its norms are told no timestep, and are scaled and shifted alike for every photograph.
    """

    all_timesteps = True

    def voters(self, _timesteps: Sequence[int]) -> tuple[str, ...]:
        return ("joint",)

    def loss(
        self, maps: Maps, _t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        return measure(self._read(maps).float(), truth, inside)

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        steps = [read(i) for i in range(len(timesteps))]
        yield self._read({name: torch.stack([step[name] for step in steps], dim=1) for name in steps[0]})

    def _read(self, maps: Maps) -> torch.Tensor:
        some = next(iter(maps.values()))
        none = torch.zeros(len(some), device=some.device)
        logits: torch.Tensor = self({name: m.flatten(1, 2) for name, m in maps.items()}, none)
        return logits
