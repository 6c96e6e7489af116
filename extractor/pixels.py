"""Photographs stored as a backbone would be given them, by the pipeline that stores features; no network is run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from extractor.extraction import Prepared, UnstackedFeatures, ViewMaker
from extractor.stages import Stages
from store.codecs import codec_for
from store.pixels import PIXELS
from store.spec import FeatureSpec


class PixelExtractor(ViewMaker):
    """Makes entries that hold the photographs themselves, in any view, with the interface of ``Extractor``.

    Args:
        spec: as ``store.pixels.spec_of_pixels`` makes it.

    Attributes:
        forwards: network forwards, always 0.
        stages: time spent in each stage.
    """

    codebook = None
    forwards = 0
    device = torch.device("cpu")

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__(spec)
        self.stages, self._codec = Stages(), codec_for(spec)

    def extract_unstacked(self, prepared: Sequence[Prepared]) -> list[UnstackedFeatures]:
        """The photographs, one by one, encoded as they are stored."""
        maps = self._codec.encode(PIXELS, torch.cat([one.input.x0 for one in prepared]))
        return [UnstackedFeatures({PIXELS: [maps[i]]}, one.input, {}) for i, one in enumerate(prepared)]

    def take_fallbacks(self) -> list[str]:
        """Return no views: without a network, none falls back to float32."""
        return []
