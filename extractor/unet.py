"""diffusers' ``UNet2DModel``, with the two things that guided-diffusion networks need beyond it.

They are keys of the same configuration, in addition to diffusers' own:

    base_width        width of the sinusoidal embedding where it is not the first level's width
                      (ADM-512: channel_mult starts with 0.5)
    attention_heads   number of heads where that is fixed and the width of a head is not
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from extractor.errors import BackboneError

OWN_KEYS = ("base_width", "attention_heads")
SHAPES_OF_A_BLOCK = 8
"""Combinations of batch size, resolution and precision that a block is compiled for; others run uncompiled."""


def build_unet(config: Mapping[str, Any]) -> UNet2DModel:
    """Build a U-Net with random weights from diffusers' configuration and the keys above.

    Raises:
        BackboneError: the configuration is not one of a UNet2DModel.
    """
    diffusers_config = {key: value for key, value in config.items() if key not in OWN_KEYS and key[0] != "_"}
    base_width = config.get("base_width")
    if base_width is not None:
        diffusers_config["time_embedding_dim"] = 4 * base_width
    try:
        unet = UNet2DModel(**diffusers_config)
    except (TypeError, ValueError) as error:
        raise BackboneError(f"not the configuration of a UNet2DModel: {error}") from error
    if base_width is not None:
        unet.time_proj = Timesteps(base_width, unet.config.flip_sin_to_cos, unet.config.freq_shift)
        unet.time_embedding = TimestepEmbedding(base_width, 4 * base_width)
    if (heads := config.get("attention_heads")) is not None:
        for module in unet.modules():
            if isinstance(module, Attention):
                module.heads = heads
    return unet


def unet_config(unet: UNet2DModel, own: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration from which ``build_unet`` makes this network; ``own`` holds the keys above."""
    public = {key: value for key, value in unet.config.items() if key[0] != "_"}
    return public | {key: own[key] for key in OWN_KEYS if own.get(key) is not None}


def stride(config: Mapping[str, Any]) -> int:
    """The number that sides of images must be multiples of: each level but the last halves them.

    Raises:
        BackboneError: the configuration does not say how many levels there are.
    """
    try:
        return int(2 ** (len(config["block_out_channels"]) - 1))
    except KeyError as error:
        raise BackboneError("the configuration of a UNet2DModel has to say its block_out_channels") from error


def is_plain(block: ResnetBlock2D) -> bool:
    """Return whether a residual block is norm, SiLU, convolution, twice, at one size, with the time in between."""
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
    )


def compile_blocks(unet: UNet2DModel) -> None:
    """Have torch compile each block when it is first run; weights keep their names, and hooks are not compiled."""
    blocks = []
    for module in unet.modules():
        vars(module).pop("forward", None)  # set by ``Backbone.use_fast_kernels``
        if isinstance(module, (ResnetBlock2D, Attention, Upsample2D, Downsample2D)):
            blocks.append(module)
    # Blocks of one class share their code, of which torch compiles only eight versions unless it is told otherwise.
    limits = torch._dynamo.config
    limits.recompile_limit += SHAPES_OF_A_BLOCK * len(blocks)
    limits.accumulated_recompile_limit += SHAPES_OF_A_BLOCK * len(blocks)
    for block in blocks:
        block.forward = torch.compile(type(block).forward.__get__(block), dynamic=False)


def decoder_blocks(unet: UNet2DModel) -> dict[str, nn.Module]:
    """{block_k: the module whose output is that of guided-diffusion's ``output_blocks[k]``}.

    A block ends with its attention where it has one; the last block of a level ends with the
    upsampler where the level has one.
    """
    ends: list[nn.Module] = []
    for level in unet.up_blocks:
        attentions = getattr(level, "attentions", ())
        ends += list(attentions) or list(level.resnets)
        if level.upsamplers is not None:
            ends[-1] = level.upsamplers[0]
    return {f"block_{k}": module for k, module in enumerate(ends)}
