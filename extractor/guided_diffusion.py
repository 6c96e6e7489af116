"""Import of OpenAI's guided-diffusion checkpoints into diffusers' U-Net.

guided-diffusion saves weights without the arguments that built the network. Widths, residual
blocks, attention, up- and downsampling, norms, classes and learned variance are derived from the
weights; what leaves no trace in them has to be given as ``UnrecordedOptions``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import nn

from extractor.backbone import Backbone
from extractor.diffusion import Diffusion
from extractor.errors import CheckpointError
from extractor.unet import build_unet

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class UnrecordedOptions:
    """Options of the original network that cannot be derived from its weights.

    Attributes:
        head_channels: width of an attention head (ADM: 64); unused if ``heads`` is given.
        heads: number of heads of every attention layer, where that is fixed instead of the width.
        new_attention_order: guided-diffusion's ``use_new_attention_order``.
    """

    head_channels: int | None = 64
    heads: int | None = None
    new_attention_order: bool = False


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a ``.pt`` (weights only, so no code is run) or ``.safetensors`` file."""
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # unpickling raises many types, and torch's message advises to load it unsafely
        raise CheckpointError(
            f"{path}: not a file of weights alone, as guided-diffusion's model_*.pt and ema_*.pt or .safetensors are; "
            "other pickles could run code and are not loaded"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: expected a dictionary of tensors; give the model_*.pt or ema_*.pt file")
    return loaded


def import_checkpoint(weights: Weights, unrecorded: UnrecordedOptions, diffusion: Diffusion) -> Backbone:
    """Build the U-Net that the weights belong to, and fill it with them.

    Raises:
        CheckpointError: lists every tensor that is missing, left over or of another shape.
    """
    if "input_blocks.0.0.weight" not in weights or "time_embed.0.weight" not in weights:
        raise CheckpointError(
            "no input_blocks.0.0.weight or time_embed.0.weight: not a guided-diffusion U-Net "
            "(a classifier or another project's checkpoint?)"
        )
    try:
        config = derive_config(weights, unrecorded)
    except KeyError as error:
        raise CheckpointError(f"{error.args[0]} is missing; is it a complete U-Net with learned resampling?") from error
    unet = build_unet(config)
    _fill(unet, weights, unrecorded)
    return Backbone(unet, diffusion, config)


def derive_config(weights: Weights, unrecorded: UnrecordedOptions) -> dict[str, Any]:
    """Derive diffusers' configuration from the names and shapes of the weights."""
    levels = list(_encoder_levels(weights))
    base_width = weights["time_embed.0.weight"].shape[1]
    resnets = {len(level.widths) for level in levels}
    if len(resnets) != 1:
        raise CheckpointError(f"expected the same number of residual blocks at every level, found {sorted(resnets)}")
    conv_resample = any(level.downsampler == "conv" for level in levels)
    plain_down = "DownBlock2D" if conv_resample else "ResnetDownsampleBlock2D"
    plain_up = "UpBlock2D" if conv_resample else "ResnetUpsampleBlock2D"
    embedding, width = weights["input_blocks.1.0.emb_layers.1.weight"].shape[0], levels[0].widths[0]
    attentive = [level.attention for level in levels]
    widths = [level.widths[-1] for level in levels]
    head = _head_width(widths, attentive, unrecorded)
    classes = weights["label_emb.weight"].shape[0] if "label_emb.weight" in weights else None
    return {
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "layers_per_block": resnets.pop(),
        "down_block_types": ["AttnDownBlock2D" if a else plain_down for a in attentive],
        "up_block_types": ["AttnUpBlock2D" if a else plain_up for a in reversed(attentive)],
        "downsample_type": "conv" if conv_resample else "resnet",
        "upsample_type": "conv" if conv_resample else "resnet",
        "attention_head_dim": head,
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if embedding == 2 * width else "default",
        "num_class_embeds": classes,
        "base_width": base_width,
        "attention_heads": unrecorded.heads,
    }


@dataclass(frozen=True)
class _Level:
    widths: tuple[int, ...]
    attention: bool
    downsampler: str | None


def _encoder_levels(weights: Weights) -> Iterator[_Level]:
    """Walk through input_blocks; a level is a run of residual blocks that ends with a downsampler."""
    count = 1 + max(int(m[1]) for name in weights if (m := re.match(r"input_blocks\.(\d+)\.", name)))
    widths: list[int] = []
    attention = False
    for i in range(1, count):
        if f"input_blocks.{i}.0.op.weight" in weights:
            yield _Level(tuple(widths), attention, "conv")
            widths, attention = [], False
        elif _is_downsampling_resnet(weights, i, count):
            yield _Level(tuple(widths), attention, "resnet")
            widths, attention = [], False
        else:
            widths.append(weights[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0])
            attention |= f"input_blocks.{i}.1.qkv.weight" in weights
    yield _Level(tuple(widths), attention, None)


def _is_downsampling_resnet(weights: Weights, i: int, count: int) -> bool:
    """Return whether input block i is a ResBlock(down=True).

    It has the same tensors as any other ResBlock. But the decoder upsamples where the encoder downsamples, and its
    upsampler is a further ResBlock after the block's own and its attention.
    """
    mirrored = count - 1 - i  # output_blocks[mirrored] takes the skip of input_blocks[i]
    closing = [mirrored, "1.in_layers.2.weight"], [mirrored, "2.in_layers.2.weight"]
    return any(f"output_blocks.{k}.{rest}" in weights for k, rest in closing)


def _head_width(widths: list[int], attentive: list[bool], unrecorded: UnrecordedOptions) -> int:
    if unrecorded.heads is None:
        if unrecorded.head_channels is None:
            raise CheckpointError("give the width of an attention head (head_channels) or the number of heads (heads)")
        head = unrecorded.head_channels
    else:
        head = widths[-1] // unrecorded.heads
    for width in {w for w, a in zip(widths, attentive, strict=True) if a} | {widths[-1]}:
        divisor = unrecorded.heads or head
        if width % divisor:
            raise CheckpointError(f"attention of width {width} cannot be divided by {divisor}; check the head options")
    return head


def _fill(unet: UNet2DModel, weights: Weights, unrecorded: UnrecordedOptions) -> None:
    """Copy every tensor to its place; raise CheckpointError if any is missing or left over."""
    theirs = dict(weights)
    ours = unet.state_dict()
    filled: dict[str, torch.Tensor] = {}
    problems: list[str] = []
    for target, source in _tensor_names(unet):
        if source not in theirs:
            problems.append(f"missing      {source}")
            continue
        for name, tensor in _converted(target, theirs.pop(source), ours, unrecorded):
            if tensor.shape != ours[name].shape:
                problems.append(f"other shape  {source}: {tuple(tensor.shape)}, expected {tuple(ours[name].shape)}")
            filled[name] = tensor
    problems += [f"left over    {name}" for name in theirs]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise CheckpointError(f"{len(problems)} tensors do not fit the architecture that was derived:\n  {shown}")
    unet.load_state_dict({name: tensor.float() for name, tensor in filled.items()})


def _converted(
    target: str, tensor: torch.Tensor, ours: Weights, unrecorded: UnrecordedOptions
) -> Iterator[tuple[str, torch.Tensor]]:
    """Convert one of guided-diffusion's tensors to ours, as (our name, tensor); qkv gives three."""
    if ".qkv." not in target:
        yield target, tensor[..., 0] if tensor.ndim == 3 else tensor
        return
    stem, kind = target.split(".qkv.")
    width = tensor.shape[0] // 3
    heads = unrecorded.heads or width // (unrecorded.head_channels or width)
    flat = tensor.reshape(3 * width, -1)
    # Old order: (head, q k v, channel). New order: (q k v, head, channel).
    parts = (
        flat.reshape(3, width, -1)
        if unrecorded.new_attention_order
        else flat.reshape(heads, 3, width // heads, -1).transpose(0, 1).reshape(3, width, -1)
    )
    for letter, part in zip("qkv", parts, strict=True):
        name = f"{stem}.to_{letter}.{kind}"
        yield name, part.reshape(ours[name].shape)


def _tensor_names(unet: UNet2DModel) -> Iterator[tuple[str, str]]:
    """(our name, guided-diffusion's name) for every tensor; qkv stands for three of ours."""
    yield from _pair("conv_in", "input_blocks.0.0")
    yield from _pair("time_embedding.linear_1", "time_embed.0")
    yield from _pair("time_embedding.linear_2", "time_embed.2")
    if unet.class_embedding is not None:
        yield "class_embedding.weight", "label_emb.weight"
    index = 1
    for i, level in enumerate(unet.down_blocks):
        for j, resnet in enumerate(level.resnets):
            yield from _layer(level, f"down_blocks.{i}", j, resnet, f"input_blocks.{index}")
            index += 1
        if level.downsamplers is not None:
            yield from _resampler(level.downsamplers[0], f"down_blocks.{i}.downsamplers.0", f"input_blocks.{index}.0")
            index += 1
    yield from _resnet(unet.mid_block.resnets[0], "mid_block.resnets.0", "middle_block.0")
    yield from _attention("mid_block.attentions.0", "middle_block.1")
    yield from _resnet(unet.mid_block.resnets[1], "mid_block.resnets.1", "middle_block.2")
    index = 0
    for i, level in enumerate(unet.up_blocks):
        for j, resnet in enumerate(level.resnets):
            yield from _layer(level, f"up_blocks.{i}", j, resnet, f"output_blocks.{index}")
            if j == len(level.resnets) - 1 and level.upsamplers is not None:
                place = 2 if hasattr(level, "attentions") else 1
                theirs = f"output_blocks.{index}.{place}"
                yield from _resampler(level.upsamplers[0], f"up_blocks.{i}.upsamplers.0", theirs)
            index += 1
    yield from _pair("conv_norm_out", "out.0")
    yield from _pair("conv_out", "out.2")


def _pair(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.weight", f"{theirs}.weight"
    yield f"{ours}.bias", f"{theirs}.bias"


def _layer(level: nn.Module, ours: str, j: int, resnet: nn.Module, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _resnet(resnet, f"{ours}.resnets.{j}", f"{theirs}.0")
    if hasattr(level, "attentions"):
        yield from _attention(f"{ours}.attentions.{j}", f"{theirs}.1")


def _resnet(resnet: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    names = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
    }
    if getattr(resnet, "conv_shortcut", None) is not None:
        names["conv_shortcut"] = "skip_connection"
    for mine, original in names.items():
        yield from _pair(f"{ours}.{mine}", f"{theirs}.{original}")


def _resampler(module: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    if hasattr(module, "conv1"):
        yield from _resnet(module, ours, theirs)
    else:
        conv = "op" if "down_blocks" in ours else "conv"
        yield from _pair(f"{ours}.conv", f"{theirs}.{conv}")


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _pair(f"{ours}.group_norm", f"{theirs}.norm")
    yield from _pair(f"{ours}.qkv", f"{theirs}.qkv")
    yield from _pair(f"{ours}.to_out.0", f"{theirs}.proj_out")
