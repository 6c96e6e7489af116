"""The interpreter on the photograph itself: what features are worth beyond the network that reads them.

It reads the map ``pixels`` (``store.pixels``), RGB in [-1, 1]. A level of features knows its surroundings by what
the backbone made of them; so that the control is not blind to them, it is shown the photograph at as many sizes.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from interpreter.config import InterpreterConfig
from interpreter.heads.adaptive import AdaptiveHead
from interpreter.heads.head import Maps
from interpreter.heads.photometric import require_photographs
from store.pixels import PIXELS
from store.spec import Block, FeatureSpec

LEVELS = 4  # 64 to 512 pixels, as of the presets' features


class PyramidHead(AdaptiveHead):
    """The adaptive interpreter's levels, each as wide as any may be (``max_width``), on a pyramid of the photograph."""

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig) -> None:
        require_photographs(spec, "pyramid")
        sides = [spec.resolution >> level for level in range(LEVELS)]
        shown = tuple(Block(name=_name(side), channels=3, height=side, width=side) for side in sides)
        wide = config.model_copy(update={"width_multiplier": config.max_width})
        super().__init__(spec.model_copy(update={"blocks": shown}), wide)

    def forward(self, maps: Maps, t: torch.Tensor) -> torch.Tensor:
        photograph = maps[PIXELS].float()
        pyramid = {_name(side): functional.avg_pool2d(photograph, self.resolution // side) for side in self.levels}
        return super().forward(pyramid, t)


def _name(side: int) -> str:
    return f"{PIXELS}_{side}"
