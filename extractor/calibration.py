"""Fitting the codebook of the compact encoding to photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from extractor.backbone import Backbone
from extractor.datasets import Photograph
from extractor.errors import naming
from extractor.extraction import Extractor
from extractor.images import read_bytes
from extractor.presets import Preset
from store.codebook import DISTORTION, FINEST_DISTORTION, Codebook, Moments
from store.spec import FloatEncoding


def fit_codebook(
    backbone: Backbone,
    recipe: Preset,
    photographs: Sequence[Photograph],
    distortion: float = DISTORTION,
    finest_distortion: float = FINEST_DISTORTION,
    advance: Callable[[str], None] | None = None,
) -> Codebook:
    """Fit a codebook to mean and covariance of every block's channels, over some photographs and all timesteps.

    Args:
        backbone: the backbone whose maps are encoded.
        recipe: selects the timesteps and blocks.
        photographs: photographs to fit to; their labels are not used.
        distortion: share of each block's variance that may be lost.
        finest_distortion: the same for blocks whose maps have full resolution.
        advance: called with the name of each photograph that is done.

    Raises:
        ImageError: a photograph cannot be used.
    """
    spec = replace(recipe, encoding=FloatEncoding(kind="float32")).spec(backbone)
    extractor = Extractor(backbone, spec)
    moments = {block.name: Moments(block.channels) for block in spec.blocks}
    for chosen in photographs:
        data = read_bytes(chosen.image)
        with naming(chosen.image):
            prepared = extractor.prepare(data)
        with torch.inference_mode():
            for step in extractor.walk(prepared.input.x0.to(backbone.device), [prepared]):
                for name, maps in step.features.items():
                    moments[name].add(maps.float().cpu().numpy())
        if advance is not None:
            advance(chosen.name)
    finest = {block.name for block in spec.blocks if block.height == spec.resolution}
    lost = {name: finest_distortion if name in finest else distortion for name in moments}
    return Codebook({name: one.fit(lost[name]) for name, one in moments.items()})
