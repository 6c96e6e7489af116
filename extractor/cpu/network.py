"""A U-Net's residual blocks, upsamplers and last convolution in the arithmetic of ``extractor.cpu.convolution``.

n  images     h, w  size of a map     c  channels in     k  channels out

The modules keep their weights, names and hooks; only their ``forward`` is replaced. It first checks whether this
arithmetic supports the map, and runs diffusers' own ``forward`` if not (another device, half precision, odd sizes,
training). Decoder blocks read the decoder's map and the encoder's skip without concatenating them. The moments of a
map, which the next norm needs, are attached to its tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UpBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from extractor.cpu.convolution import NOTHING, Residual, convolve
from extractor.cpu.kernels import Kernel, transform_kernel, transform_projection
from extractor.cpu.moments import Moments, channel_moments
from extractor.cpu.vectors import COLUMNS, NARROW
from extractor.unet import is_plain
from store.kernels import Floats

_Version = tuple[int, int]
LARGEST = 256
"""Most channels of a layer. Wider layers stay with torch: their transformed weights would take much memory and save
little time."""


def use_fast_kernels(unet: UNet2DModel) -> UNet2DModel:
    """Make a network compute faster on CPUs, to within 1e-5 of its largest numbers; returns it.

    If all of its blocks are supported, the result for an image is the same to the bit in every batch.
    """
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D) and _supports_block(module):
            module.forward = _fast_block(module)
        elif isinstance(module, Upsample2D) and _is_nearest_and_convolution(module):
            module.forward = _fast_upsampler(module)
        elif type(module) is UpBlock2D and all(
            _supports_block(b) and b.conv_shortcut is not None for b in module.resnets
        ):
            module.forward = _fast_level(module)
    for module in _whose_bits_depend_on_the_batch(unet):
        module.forward = _one_by_one(module)
    if (
        isinstance(unet.conv_norm_out, nn.GroupNorm)
        and isinstance(unet.conv_act, nn.SiLU)
        and _supports_convolution(unet.conv_out, is_last=True)
    ):
        _use_fast_end(unet)
    return unet


def _supports_block(block: ResnetBlock2D) -> bool:
    return (
        is_plain(block)
        and _supports_convolution(block.conv1)
        and _supports_convolution(block.conv2)
        and (
            block.conv_shortcut is None
            or (block.conv_shortcut.kernel_size == (1, 1) and block.conv_shortcut.bias is not None)
        )
    )


def _is_nearest_and_convolution(upsampler: Upsample2D) -> bool:
    return (
        upsampler.norm is None
        and upsampler.interpolate
        and upsampler.use_conv
        and not upsampler.use_conv_transpose
        and upsampler.name == "conv"
        and _supports_convolution(upsampler.conv)
    )


def _supports_convolution(convolution: nn.Module, *, is_last: bool = False) -> bool:
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.padding == convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.bias is not None
        and max(convolution.in_channels, convolution.out_channels) <= LARGEST
        and convolution.in_channels % NARROW == 0
        and (convolution.out_channels % COLUMNS == 0 or is_last)
    )


def _can_be_done(*maps: torch.Tensor) -> bool:
    return all(
        _is_plainly_computed(x) and x.shape[1] % NARROW == 0 and x.shape[2] % 4 == 0 and x.shape[3] % 4 == 0
        for x in maps
    )


def _is_plainly_computed(x: torch.Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _whose_bits_depend_on_the_batch(unet: UNet2DModel) -> Iterator[nn.Module]:
    """The modules left to torch that may round differently for another batch size: torch changes its order of sums."""
    yield from (unet.conv_in, unet.time_embedding)
    for module in unet.modules():
        if isinstance(module, Downsample2D) and isinstance(module.conv, nn.Conv2d):
            yield module.conv
        elif isinstance(module, ResnetBlock2D) and module.time_emb_proj is not None:
            yield module.time_emb_proj


def _one_by_one(module: nn.Module) -> Callable[..., torch.Tensor]:
    """A ``forward`` that runs each image by itself, so that its result is the same to the bit in every batch."""
    usual = type(module).forward

    def forward(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(x) == 1 or not _is_plainly_computed(x):
            done: torch.Tensor = usual(module, x, *rest)
            return done
        return torch.cat([usual(module, one, *rest) for one in x.split(1)])

    return forward


def _fast_level(level: UpBlock2D) -> Callable[..., torch.Tensor]:
    usual = type(level).forward

    def forward(
        x: torch.Tensor, skips: tuple[torch.Tensor, ...], temb: torch.Tensor, *rest: Any, **more: Any
    ) -> torch.Tensor:
        freeu = all(getattr(level, name, None) for name in ("s1", "s2", "b1", "b2"))
        if rest or any(more.values()) or freeu or not _can_be_done(x, *skips):
            done: torch.Tensor = usual(level, x, skips, temb, *rest, **more)
            return done
        for block, skip in zip(level.resnets, reversed(skips), strict=True):
            x = block((x, skip), temb)
        for upsampler in level.upsamplers or ():
            x = upsampler(x)
        return x

    return forward


def _fast_block(block: ResnetBlock2D) -> Callable[..., torch.Tensor]:
    usual = type(block).forward
    first, second = _Weights(block.conv1), _Weights(block.conv2)
    shortcut = None if block.conv_shortcut is None else _Weights(block.conv_shortcut)

    def forward(
        x: torch.Tensor | tuple[torch.Tensor, torch.Tensor], temb: torch.Tensor, *rest: Any, **more: Any
    ) -> torch.Tensor:
        both = x if isinstance(x, tuple) else (x,)
        if not _can_be_done(*both):
            whole = both[0] if len(both) == 1 else torch.cat(both, dim=1)
            done: torch.Tensor = usual(block, whole, temb, *rest, **more)
            return done
        modulation = block.time_emb_proj(block.nonlinearity(temb))  # (n, k), or (n, 2k) scale and shift
        bias = first.bias(len(temb))
        if block.time_embedding_norm == "default":
            bias, modulation = bias + modulation.numpy(), None
        maps, skip = _channels_last(both[0]), _channels_last(both[1]) if len(both) == 2 else NOTHING
        moments = _moments(both[0])
        for part in both[1:]:
            moments = moments.with_channels(_moments(part))
        between, of_between = convolve(
            maps, first.kernel(), bias, skip=skip, normalising=_normalising(block.norm1, moments)
        )
        bias, residual = second.bias(len(temb)), Residual(maps)
        if shortcut is not None:
            bias, residual = bias + shortcut.bias(len(temb)), Residual(maps, skip, shortcut.projection())
        return _image(
            *convolve(
                between,
                second.kernel(),
                bias,
                normalising=_normalising(block.norm2, of_between, modulation),
                residual=residual,
            )
        )

    return forward


def _fast_upsampler(upsampler: Upsample2D) -> Callable[..., torch.Tensor]:
    usual = type(upsampler).forward
    weights = _Weights(upsampler.conv, doubled=True)

    def forward(x: torch.Tensor, output_size: Any = None, *rest: Any, **more: Any) -> torch.Tensor:
        if output_size is not None or not _can_be_done(x):
            done: torch.Tensor = usual(upsampler, x, output_size, *rest, **more)
            return done
        return _image(*convolve(_channels_last(x), weights.kernel(), weights.bias(len(x))))

    return forward


def _use_fast_end(unet: UNet2DModel) -> None:
    """Fuse the last norm, SiLU and convolution: norm and SiLU pass the map on unchanged."""
    norm, convolution = unet.conv_norm_out, unet.conv_out
    weights = _Weights(convolution)

    def handed_on(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        usual = type(module).forward
        return lambda x: x if _can_be_done(x) else usual(module, x)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not _can_be_done(x):
            done: torch.Tensor = type(convolution).forward(convolution, x)
            return done
        normalising = _normalising(norm, _moments(x))
        maps, _ = convolve(_channels_last(x), weights.kernel(), weights.bias(len(x)), normalising=normalising)
        return torch.from_numpy(maps).permute(0, 3, 1, 2)[:, : convolution.out_channels]

    norm.forward, unet.conv_act.forward = handed_on(norm), handed_on(unet.conv_act)
    convolution.forward = forward


class _Weights:
    """A convolution's weights, transformed when first needed and again after they change."""

    def __init__(self, convolution: nn.Conv2d, *, doubled: bool = False) -> None:
        self._convolution, self._doubled = convolution, doubled
        self._kernel: tuple[_Version, Kernel] | None = None
        self._projection: tuple[_Version, Floats] | None = None

    def kernel(self) -> Kernel:
        """The transformed weights of a 3 x 3 convolution."""
        known, version = self._kernel, self._version()
        if known is None or known[0] != version:  # several threads may do this at once, with equal results
            known = version, transform_kernel(self._convolution.weight.detach().numpy(), doubled=self._doubled)
            self._kernel = known
        return known[1]

    def projection(self) -> Floats:
        """The transformed weights of a 1 x 1 convolution."""
        known, version = self._projection, self._version()
        if known is None or known[0] != version:
            known = version, transform_projection(self._convolution.weight.detach().numpy()[:, :, 0, 0])
            self._projection = known
        return known[1]

    def bias(self, images: int) -> Floats:
        """The bias, repeated for each image: (n, k)."""
        assert self._convolution.bias is not None
        return np.repeat(self._convolution.bias.detach().numpy()[None], images, axis=0)

    def _version(self) -> _Version:
        weight = self._convolution.weight
        return weight.data_ptr(), weight._version


def _normalising(norm: nn.GroupNorm, moments: Moments, modulation: torch.Tensor | None = None) -> tuple[Floats, Floats]:
    """Express the group norm of maps with these moments as a scale and a shift, each float32 (n, c).

    Args:
        modulation: the time embedding's scale and shift, (n, 2c), applied as (1 + scale) norm(x) + shift.
    """
    images = len(moments.mean)
    mean, variance = (of.reshape(images, norm.num_groups, -1) for of in (moments.mean, moments.variance))
    of_group = mean.mean(axis=2, keepdims=True)
    spread = (variance + (mean - of_group) ** 2).mean(axis=2, keepdims=True)
    weight, bias = (p.detach().numpy().reshape(norm.num_groups, -1) for p in (norm.weight, norm.bias))
    scale = weight / np.sqrt(spread + norm.eps)
    shift = (bias - of_group * scale).reshape(images, -1)
    scale = scale.reshape(images, -1)
    if modulation is not None:
        by_time, moved = np.split(modulation.numpy(), 2, axis=1)
        scale, shift = scale * (1 + by_time), shift * (1 + by_time) + moved
    return scale.astype(np.float32), shift.astype(np.float32)


def _channels_last(x: torch.Tensor) -> Floats:
    """(n, c, h, w) -> (n, h, w, c), contiguous; copied only if the memory is not in that order already."""
    maps: Floats = x.permute(0, 2, 3, 1).contiguous().numpy()
    return maps


def _image(maps: Floats, moments: Moments) -> torch.Tensor:
    """(n, h, w, c) -> (n, c, h, w), with its moments attached."""
    image = torch.from_numpy(maps).permute(0, 3, 1, 2)
    image.moments = moments  # type: ignore[attr-defined]
    return image


def _moments(image: torch.Tensor) -> Moments:
    """The moments attached to an image; they are computed and attached if there are none."""
    known: Moments | None = getattr(image, "moments", None)
    if known is None:
        image.moments = known = channel_moments(_channels_last(image))  # type: ignore[attr-defined]
    return known
