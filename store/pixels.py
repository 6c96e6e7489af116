"""Photographs as entries of their own: what networks on pixels, the plain controls, read instead of features.

The map ``pixels`` is the photograph as a backbone is shown it, RGB in [-1, 1]: cropped, equalised and without colour
where its features' photographs are. So networks on pixels are given nothing less, and are trained, stored and scored
by the same code as those on features.
"""

from __future__ import annotations

import hashlib

from store.spec import Block, FeatureSpec, FloatEncoding, Preprocessing

PIXELS = "pixels"
"""The map, and what is said to have made it."""


def spec_of_pixels(resolution: int, preprocessing: Preprocessing) -> FeatureSpec:
    """The spec of photographs that are prepared so; no network made them.

    Its ``backbone`` changes whenever what is stored does: those of the first edition were not equalised.
    """
    return FeatureSpec(
        backbone=hashlib.sha256(b"photographs as prepared").hexdigest(),
        schedule="none-1",
        trajectory="anchored",
        grid=(0,),
        timesteps=(0,),
        blocks=(Block(name=PIXELS, channels=3, height=resolution, width=resolution),),
        resolution=resolution,
        preprocessing=preprocessing,
        encoding=FloatEncoding(kind="float16"),
    )


def holds_pixels(spec: FeatureSpec) -> bool:
    """Whether what is read are photographs."""
    return any(block.name == PIXELS for block in spec.blocks)
