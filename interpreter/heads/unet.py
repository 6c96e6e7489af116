"""The plain control: MONAI's U-Net on the photograph itself, with flips and photometric augmentation.

It reads the map ``pixels`` (``store.pixels``), RGB in [-1, 1]. Training, voting and metrics are those of
the interpreters, so that only the input and the network differ.
"""

from __future__ import annotations

import torch
from torch import nn

from interpreter.config import InterpreterConfig
from interpreter.heads.head import Head, Maps
from interpreter.heads.photometric import require_photographs
from store.pixels import PIXELS
from store.spec import FeatureSpec

CHANNELS = (16, 32, 64, 128)  # 0.2 M weights with one residual unit, about as many as an interpreter


class PixelUNet(Head):
    """A residual U-Net of four levels."""

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig) -> None:
        super().__init__()
        from monai.networks.nets import UNet  # imported late, since the import takes seconds

        require_photographs(spec, "unet")
        self.stride = 2 ** (len(CHANNELS) - 1)
        self.network: nn.Module = UNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=config.outputs,
            channels=CHANNELS,
            strides=(2,) * (len(CHANNELS) - 1),
            num_res_units=1,
            norm=("instance", {"affine": True}),
        )

    def forward(self, maps: Maps, _t: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(maps[PIXELS].float())
        return logits
