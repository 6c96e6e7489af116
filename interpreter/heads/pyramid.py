"""The interpreter on the photograph itself: a control that separates the worth of features from that of the network.

It reads the map ``pixels`` (``store.pixels``), RGB in [-1, 1]. Features carry context from around each position
through the backbone; to give the control context too, it gets the photograph at as many sizes as there are levels.
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

LEVELS = 4  # from 64 to 512 pixels, like the features of the presets


class PyramidHead(AdaptiveHead):
    """The adaptive interpreter on an image pyramid of the photograph, with every level ``max_width`` wide."""

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
