"""The adaptive semantic feature interpreter of DiffDGSS: it maps the features of one timestep to class scores.

b  batch    t  timestep    n  classes    R  network's square
level  all blocks of the spec whose maps have the same size; processed from the coarsest to the finest

Each level projects its maps and the output of the coarser level to its own width, adds the two, the
latter upsampled, and refines the sum in a segmentation block: two depthwise-separable convolutions with
timestep-adaptive norms (Eq. 7), then a VSS block.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from interpreter.config import InterpreterConfig
from interpreter.errors import ConfigurationError
from interpreter.heads.head import Head, Maps, coarsest_stride
from interpreter.vss import VssBlock
from store.spec import FeatureSpec


class AdaptiveNorm(nn.Module):
    """SiLU(a) with a = (1 + s(t)) GN(x) + b(t), Eq. 7; x (b, c, h, w), embedding of t (b, e)."""

    def __init__(self, c: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(c, 8), c, affine=False)
        self.scale_shift = nn.Linear(embedding, 2 * c)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale_shift(embedding).chunk(2, dim=1)
        if x.device.type == "cpu" and x.dtype == torch.float32:
            from interpreter.norm_cpu import normed_silu  # compiles on first use

            return normed_silu(x, scale, shift, self.norm.num_groups, self.norm.eps)
        return self.reference(x, scale, shift)

    def reference(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Compute the norm and SiLU with torch operations, on any device; scale and shift (b, c)."""
        return functional.silu(torch.addcmul(shift[:, :, None, None], self.norm(x), 1 + scale[:, :, None, None]))


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution as one matrix product over the channels of all pixels; on CPUs faster than torch's own."""

    def __init__(self, c: int, out: int) -> None:
        super().__init__(c, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


class SeparableConv(nn.Module):
    """A residual depthwise-separable convolution: x + pointwise(SiLU(AdaGN(depthwise(x), t)))."""

    def __init__(self, c: int, embedding: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.norm = AdaptiveNorm(c, embedding)
        self.pointwise = Pointwise(c, c)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        refined: torch.Tensor = self.pointwise(self.norm(self.depthwise(x), embedding))
        return x + refined


class SegmentationBlock(nn.Module):
    """Two separable convolutions, then a VSS block if the level is no larger than ``vss_max_size``."""

    def __init__(self, c: int, size: int, config: InterpreterConfig) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([SeparableConv(c, config.time_width) for _ in range(2)])
        self.vss = VssBlock(c, config.vss, config.drop_path) if size <= config.vss_max_size else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            x = convolution(x, embedding)
        refined: torch.Tensor = self.vss(x)
        return refined


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t, then two linear layers: (b,) -> (b, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
        angles = t.float()[:, None] * frequencies
        embedding: torch.Tensor = self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))
        return embedding


class AdaptiveHead(Head):
    """The paper's interpreter for the features of one FeatureSpec.

    Args:
        spec: the features to read; their maps determine the levels and their widths.
        config: the choices that the spec leaves open.
    """

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig) -> None:
        super().__init__()
        self.resolution = spec.resolution
        self.stride = coarsest_stride(spec)
        self.levels: dict[int, list[str]] = {}
        channels: dict[int, int] = {}
        for block in sorted(spec.blocks, key=lambda block: block.height):
            if block.height != block.width:
                raise ConfigurationError(f"{block.name} is {block.height} x {block.width}; levels must be square")
            self.levels.setdefault(block.height, []).append(block.name)
            channels[block.height] = channels.get(block.height, 0) + block.channels
        wide = {size: min(config.width_multiplier * c, config.max_width) for size, c in channels.items()}
        widths = {size: width // 8 * 8 or 8 for size, width in wide.items()}
        self.embed = TimeEmbedding(config.time_width)
        read = len(spec.timesteps) if self.all_timesteps else 1
        self.entries = nn.ModuleDict({str(s): Pointwise(read * channels[s], widths[s]) for s in self.levels})
        coarser = list(widths.values())
        self.handovers = nn.ModuleDict(
            {str(s): Pointwise(coarser[i], widths[s]) for i, s in enumerate(list(self.levels)[1:])}
        )
        self.blocks = nn.ModuleDict({str(s): SegmentationBlock(widths[s], s, config) for s in self.levels})
        self.head = Pointwise(coarser[-1], config.outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # depthwise convolutions on CPUs are three times faster

    def forward(self, maps: Maps, t: torch.Tensor) -> torch.Tensor:
        """Compute class scores.

        Args:
            maps: {block: float (b, c, h, w)}, one timestep per image.
            t: (b,), the timestep of each image.

        Returns:
            Logits, float32 (b, n, R, R); for windows of the maps, of the windows' size in pixels instead of R.
        """
        embedding = self.embed(t)
        x: torch.Tensor | None = None
        for size, names in self.levels.items():
            stacked = torch.cat([maps[name].float() for name in names], dim=1)
            level = self.entries[str(size)](stacked.contiguous(memory_format=torch.channels_last))
            if x is not None:
                x = self.handovers[str(size)](x)
                level = level + functional.interpolate(x, size=level.shape[2:], mode="bilinear")
            x = self.blocks[str(size)](level, embedding)
        assert x is not None
        logits: torch.Tensor = self.head(x)
        finest = max(self.levels)
        if finest != self.resolution:
            side = logits.shape[-1] * self.resolution // finest
            logits = functional.interpolate(logits, size=(side, side), mode="bilinear")
        return logits
