"""U-Nets to pre-train, as full configurations of diffusers' ``UNet2DModel``."""

from __future__ import annotations

from typing import Any


def small_unet() -> dict[str, Any]:
    """3.4 M weights, 16 to 128 channels from 512 to 32 pixels, no attention.

    Without attention the network treats a crop and a whole photograph alike, so it can be trained on
    crops; its narrow first level keeps a forward at 512 pixels near one second on two CPU cores.
    """
    return plain_unet((16, 32, 64, 96, 128), norm_groups=8)


def base_unet() -> dict[str, Any]:
    """Twice as wide as ``small_unet``, 13.7 M weights: for training on a GPU."""
    return plain_unet((32, 64, 128, 192, 256), norm_groups=8)


def tiny_unet() -> dict[str, Any]:
    """Two levels of 8 and 16 channels: for tests and for trying things out."""
    return plain_unet((8, 16), norm_groups=4)


def plain_unet(widths: tuple[int, ...], norm_groups: int, blocks_per_level: int = 1) -> dict[str, Any]:
    """A U-Net of convolutions only, with scale-shift norm; ``widths`` from the finest level to the coarsest."""
    return {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": list(widths),
        "layers_per_block": blocks_per_level,
        "down_block_types": ["DownBlock2D"] * len(widths),
        "up_block_types": ["UpBlock2D"] * len(widths),
        "norm_num_groups": norm_groups,
        "attn_norm_num_groups": norm_groups,
        "add_attention": False,
        "resnet_time_scale_shift": "scale_shift",
    }
