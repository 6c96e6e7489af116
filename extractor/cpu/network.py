"""A U-Net's residual blocks and upsamplers in the arithmetic of ``extractor.cpu.convolution``.

n  images     h, w  size of a map     c  channels in     k  channels out

The modules keep their weights, names and hooks; only what they compute with is another: their
``forward`` asks first whether a map is one that can be done here, and is diffusers' own for every
other (another device, half precision, odd sizes, training).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from numpy.typing import NDArray
from torch import nn

from extractor.cpu.convolution import channel_moments, convolve, fits, transform_weights

Floats = NDArray[np.float32]
LARGEST = 256
"""Channels; wider layers stay with torch: their transformed weights would take more memory than they save time."""


def quicken(unet: UNet2DModel) -> UNet2DModel:
    """Let a network compute faster on CPUs, to 1e-4 of its largest numbers; returns it."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D) and _is_plain(module):
            module.forward = _quick_block(module)
        elif isinstance(module, Upsample2D) and _is_nearest_and_convolution(module):
            module.forward = _quick_upsampler(module)
    return unet


def _is_plain(block: ResnetBlock2D) -> bool:
    """Norm, SiLU, convolution, twice, at one size."""
    return (
        isinstance(block.norm1, nn.GroupNorm)
        and isinstance(block.norm2, nn.GroupNorm)
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm in ("default", "scale_shift")
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.output_scale_factor == 1
        and _is_quick(block.conv1)
        and _is_quick(block.conv2)
    )


def _is_nearest_and_convolution(upsampler: Upsample2D) -> bool:
    return (
        upsampler.norm is None
        and upsampler.interpolate
        and upsampler.use_conv
        and not upsampler.use_conv_transpose
        and upsampler.name == "conv"
        and _is_quick(upsampler.conv)
    )


def _is_quick(convolution: nn.Module) -> bool:
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.padding == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is not None
        and max(convolution.in_channels, convolution.out_channels) <= LARGEST
        and fits(convolution.in_channels, convolution.out_channels, 4, 4)
    )


def _can_be_done(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.shape[2] % 4 == 0
        and x.shape[3] % 4 == 0
    )


def _quick_block(block: ResnetBlock2D) -> Callable[..., torch.Tensor]:
    usual = type(block).forward
    first, second = _Weights(block.conv1), _Weights(block.conv2)

    def forward(x: torch.Tensor, temb: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if not _can_be_done(x):
            done: torch.Tensor = usual(block, x, temb, *rest, **more)
            return done
        told = block.time_emb_proj(block.nonlinearity(temb))  # (n, k), or (n, 2k) scale and shift
        bias = first.bias(len(x))
        if block.time_embedding_norm == "default":
            bias, told = bias + told.numpy(), None
        maps = _channels_last(x)
        between = convolve(maps, first.transformed(), bias, normalising=_normalising(block.norm1, maps))
        passed = maps if block.conv_shortcut is None else _channels_last(block.conv_shortcut(x))
        normalising = _normalising(block.norm2, between, told)
        return _image(
            convolve(between, second.transformed(), second.bias(len(x)), normalising=normalising, added=passed)
        )

    return forward


def _quick_upsampler(upsampler: Upsample2D) -> Callable[..., torch.Tensor]:
    usual = type(upsampler).forward
    weights = _Weights(upsampler.conv)

    def forward(x: torch.Tensor, output_size: Any = None, *rest: Any, **more: Any) -> torch.Tensor:
        if output_size is not None or not _can_be_done(x):
            done: torch.Tensor = usual(upsampler, x, output_size, *rest, **more)
            return done
        return _image(convolve(_channels_last(x), weights.transformed(), weights.bias(len(x))))

    return forward


class _Weights:
    """A convolution's weights, transformed once for as long as they stay what they are."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self._convolution = convolution
        self._version: tuple[int, int] | None = None
        self._transformed: Floats

    def transformed(self) -> Floats:
        weight = self._convolution.weight
        version = weight.data_ptr(), weight._version
        if version != self._version:
            self._transformed = transform_weights(weight.detach().contiguous().numpy())
            self._version = version
        return self._transformed

    def bias(self, images: int) -> Floats:
        """(n, k)."""
        assert self._convolution.bias is not None
        return np.repeat(self._convolution.bias.detach().numpy()[None], images, axis=0)


def _normalising(norm: nn.GroupNorm, x: Floats, told: torch.Tensor | None = None) -> tuple[Floats, Floats]:
    """Group norm of maps (n, h, w, c) as scale and shift (n, c).

    Args:
        told: scale and shift by time, (n, 2c): (1 + scale) norm(x) + shift.
    """
    mean, variance = (moment.reshape(len(x), norm.num_groups, -1) for moment in channel_moments(x))
    of_group = mean.mean(axis=2, keepdims=True)
    spread = (variance + (mean - of_group) ** 2).mean(axis=2, keepdims=True)
    weight, bias = (p.detach().numpy().reshape(norm.num_groups, -1) for p in (norm.weight, norm.bias))
    scale = weight / np.sqrt(spread + norm.eps)
    shift = (bias - of_group * scale).reshape(len(x), -1)
    scale = scale.reshape(len(x), -1)
    if told is not None:
        by_time, moved = np.split(told.numpy(), 2, axis=1)
        scale, shift = scale * (1 + by_time), shift * (1 + by_time) + moved
    return scale.astype(np.float32), shift.astype(np.float32)


def _channels_last(x: torch.Tensor) -> Floats:
    """(n, c, h, w) -> (n, h, w, c), contiguous; copied only where it was not so already."""
    maps: Floats = x.permute(0, 2, 3, 1).contiguous().numpy()
    return maps


def _image(maps: Floats) -> torch.Tensor:
    return torch.from_numpy(maps).permute(0, 3, 1, 2)
