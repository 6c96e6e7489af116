"""Photographs as entries of their own, which networks on pixels, the plain controls, read instead of features.

The map ``pixels`` is the photograph as a backbone sees it, RGB in [-1, 1]: cropped, equalised or without colour if the
photographs of the features are. Networks on pixels thus get the same input, and are trained, stored and scored by the
same code as networks on features.
"""

from __future__ import annotations

import hashlib

from store.spec import Block, FeatureSpec, FloatEncoding, Preprocessing

PIXELS = "pixels"
"""Name of the map, and of the backbone with which such specs are registered."""


def spec_of_pixels(resolution: int, preprocessing: Preprocessing) -> FeatureSpec:
    """The spec of photographs with this preprocessing, which no network made.

    The text that is hashed to ``backbone`` must change whenever the stored values do: those of the first version were
    not equalised.
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
    """Return whether the entries of a spec hold photographs instead of features."""
    return any(block.name == PIXELS for block in spec.blocks)
