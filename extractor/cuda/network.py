"""A U-Net's residual blocks with fewer passes over their maps.

n  images     c  channels     g  groups of them     h, w  size of a map

torch's group norm computes the moments of a group in one block of threads, so that a single photograph leaves most of
a device idle. Half of its passes, and of those of diffusers' blocks (the time embedding's scale and shift, SiLU, sum,
division by one), can be saved. Convolutions stay cuDNN's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

from extractor.unet import is_plain

ROWS = 1024
"""Rows that a device reduces to moments at once; groups are cut into rows to make about so many."""
SHORTEST = 4096
"""Least numbers in a row: shorter groups are not cut further."""


def use_fast_kernels(unet: UNet2DModel) -> UNet2DModel:
    """Make a network compute faster on CUDA devices, to within 1e-5 of its largest numbers; returns it."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D) and is_plain(module):
            module.forward = _fast_block(module)
    return unet


def _fast_block(block: ResnetBlock2D) -> Callable[..., torch.Tensor]:
    usual = type(block).forward

    def forward(x: torch.Tensor, temb: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            done: torch.Tensor = usual(block, x, temb, *rest, **more)
            return done
        maps: torch.Tensor = block.conv1(functional.silu(group_norm(x, block.norm1), inplace=True))
        modulation = block.time_emb_proj(functional.silu(temb))
        if block.time_embedding_norm == "default":
            maps, modulation = maps.add_(modulation[..., None, None]), None
        maps = block.conv2(functional.silu(group_norm(maps, block.norm2, modulation), inplace=True))
        residual: torch.Tensor = x if block.conv_shortcut is None else block.conv_shortcut(x)
        return maps.add_(residual)

    return forward


def group_norm(x: torch.Tensor, norm: nn.GroupNorm, modulation: torch.Tensor | None = None) -> torch.Tensor:
    """Group norm, then the time embedding's scale and shift: one pass finds the moments, a second one applies all.

    Args:
        x: (n, c, h, w).
        norm: the group norm of c channels.
        modulation: (n, 2c), scale minus one and shift; None for no modulation.

    Returns:
        float32 (n, c, h, w).
    """
    x = x.float()
    n, c = x.shape[:2]
    variance, mean = _moments(x.reshape(n, norm.num_groups, -1))
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.view(norm.num_groups, -1)
    shift = torch.addcmul(norm.bias.view(norm.num_groups, -1), mean, scale, value=-1)
    if modulation is not None:
        by, beside = modulation.float().view(n, 2, norm.num_groups, -1).unbind(1)
        scale, shift = scale * (1 + by), torch.addcmul(beside, shift, 1 + by)
    return torch.addcmul(shift.reshape(n, c, 1, 1), x, scale.reshape(n, c, 1, 1))


def _moments(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean of (n, g, numbers), each (n, g, 1), combined from those of rows reduced in parallel."""
    n, g, numbers = groups.shape
    rows = min(max(1, ROWS // (n * g)), max(1, numbers // SHORTEST))
    rows = math.gcd(1 << (rows.bit_length() - 1), numbers)
    variances, means = torch.var_mean(groups.view(n, g, rows, -1), dim=-1, correction=0)
    if rows == 1:
        return variances, means
    between, mean = torch.var_mean(means, dim=-1, correction=0, keepdim=True)
    return variances.mean(dim=-1, keepdim=True).add_(between), mean
