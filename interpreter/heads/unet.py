"""The plain control: MONAI's U-Net on the photograph itself, with flips and photometric augmentation.

It reads the map ``pixels`` (``interpreter.pixels``), RGB in [-1, 1], through the same training, vote and
metrics as the interpreters, so that nothing but the input and the network differs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from interpreter.config import InterpreterConfig
from interpreter.errors import ConfigurationError
from interpreter.heads.head import Head, Maps
from store.spec import FeatureSpec

PIXELS = "pixels"
CHANNELS = (16, 32, 64, 128)  # 0.5 M weights with one residual unit, the size of an interpreter with its VSS blocks


class PixelUNet(Head):
    """A residual U-Net of four levels."""

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig) -> None:
        super().__init__()
        from monai.networks.nets import UNet  # imported late: takes seconds

        if [block.name for block in spec.blocks] != [PIXELS]:
            raise ConfigurationError(
                f"the head 'unet' reads photographs, these are features of {', '.join(b.name for b in spec.blocks)}; "
                "`interpreter evaluate --protocol` makes its input"
            )
        self.step = 2 ** (len(CHANNELS) - 1)
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

    def augment(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {PIXELS: photometric_change(maps[PIXELS])}


def photometric_change(x: torch.Tensor) -> torch.Tensor:
    """What another camera would have made of it: gamma, gain of each colour, contrast, now and then blur.

    The spread of each change is that of the photometric views. Drawn from torch's generator.

    Args:
        x: (b, 3, h, w) in [-1, 1]; black stays black.
    """
    b = len(x)

    def drawn(spread: float, channels: int = 1) -> torch.Tensor:
        return torch.exp(spread * torch.randn(b, channels, 1, 1, device=x.device))

    pixels = (x.float() + 1) / 2
    lit = (pixels.amax(dim=1, keepdim=True) > 4 / 255).float()
    changed = pixels.clamp(min=1e-6) ** drawn(0.25) * drawn(0.12) * drawn(0.12, 3)
    mean = (changed * lit).sum((2, 3), keepdim=True) / lit.sum((2, 3), keepdim=True).clamp(min=1)
    changed = (changed - mean) * drawn(0.15) + mean
    blurred = functional.avg_pool2d(changed, 3, 1, 1, count_include_pad=False)
    changed = torch.where(torch.rand(b, 1, 1, 1, device=x.device) < 0.25, blurred, changed)
    return (changed.clamp(0, 1) * lit) * 2 - 1
