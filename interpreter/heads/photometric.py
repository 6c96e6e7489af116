"""Photometric augmentation of photographs, for every network that reads them instead of features."""

from __future__ import annotations

import torch
from torch.nn import functional

from interpreter.config import HeadName
from interpreter.errors import ConfigurationError
from store.pixels import PIXELS
from store.spec import FeatureSpec
from store.views import PHOTOMETRIC

ROUNDED = 3 / 127.5
"""Largest difference between the channels of a grey photograph, in the range [-1, 1]; three 8-bit levels.

Equalising in CIELAB rounds the channels of a grey photograph one level apart.
"""


def require_photographs(spec: FeatureSpec, head: HeadName) -> None:
    """Raise ConfigurationError unless the spec is one of photographs."""
    if [block.name for block in spec.blocks] != [PIXELS]:
        raise ConfigurationError(
            f"the head {head!r} reads photographs, but found features of {', '.join(b.name for b in spec.blocks)}; "
            "make its input with `extractor run --photographs`"
        )


def photometric_change(x: torch.Tensor) -> torch.Tensor:
    """Change photographs as another camera might have: gamma, gain overall and per colour, contrast, sometimes blur.

    Changes are drawn from torch's global generator, as widely spread as those of the photometric views.

    Args:
        x: (b, 3, h, w) in [-1, 1]; black stays black, and grey photographs stay grey.
    """
    b = len(x)

    def drawn(spread: float, channels: int = 1) -> torch.Tensor:
        return torch.exp(spread * torch.randn(b, channels, 1, 1, device=x.device))

    pixels = (x.float() + 1) / 2
    lit = (pixels.amax(dim=1, keepdim=True) > 4 / 255).float()
    apart = x.amax(dim=1) - x.amin(dim=1)  # brightest minus darkest channel
    coloured = apart.flatten(1).amax(dim=1).view(b, 1, 1, 1) > ROUNDED
    spread = PHOTOMETRIC
    gains = torch.where(coloured, drawn(spread.colour, 3), 1)
    changed = pixels.clamp(min=1e-6) ** drawn(spread.gamma) * drawn(spread.gain) * gains
    mean = (changed * lit).sum((2, 3), keepdim=True) / lit.sum((2, 3), keepdim=True).clamp(min=1)
    changed = (changed - mean) * drawn(spread.contrast) + mean
    blurred = functional.avg_pool2d(changed, 3, 1, 1, count_include_pad=False)
    changed = torch.where(torch.rand(b, 1, 1, 1, device=x.device) < spread.blurred, blurred, changed)
    return (changed.clamp(0, 1) * lit) * 2 - 1
