"""The comparison of ways to pre-train, at tiny size on drawn photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from extractor.backbone import Backbone
from extractor.diffusion import Diffusion
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from recipes.backbones import VARIANTS, app, at_smoke_size, operations
from store import FeatureStore

TFLOP = 5.0


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_same_operations_and_is_read_at_the_same_sizes(name: str) -> None:
    variant = VARIANTS[name]
    settings = variant.settings(TFLOP)
    assert settings.steps * operations(settings) == pytest.approx(TFLOP * 1e12, rel=0.05)
    small = at_smoke_size(variant).settings(0.0)
    backbone = Backbone(build_unet(small.unet), Diffusion(noise_schedule("cosine-1000"), "epsilon"), small.unet)
    blocks = backbone.blocks([int(index) for index in variant.blocks.split(",")], 512)
    assert [block.height for block in blocks] == [64, 128, 256, 512]


def test_twice_the_images_or_a_side_twice_as_long_cost_two_and_four_times_as_much() -> None:
    small = VARIANTS["small"].settings(TFLOP)
    assert operations(small.model_copy(update={"batch": 8})) == pytest.approx(2 * operations(small), rel=1e-3)
    assert operations(small.model_copy(update={"crop": 256})) == pytest.approx(4 * operations(small), rel=1e-3)


@pytest.mark.slow
def test_variants_are_scored_once(tmp_path: Path) -> None:
    def scored(*names: str) -> list[dict[str, object]]:
        words = ["--smoke", "--work", str(tmp_path), "--json", "--only", ",".join(names)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        found: list[dict[str, object]] = json.loads(result.stdout)
        return found

    (plain,) = scored("unequalised")
    weights = tmp_path / "backbones" / "unequalised" / "backbone" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    again, deep = scored("unequalised", "deep")
    assert again == plain
    assert weights.stat().st_mtime_ns == before
    assert deep["steps"] == 1
    assert len(deep["precision"]) == 16  # type: ignore[arg-type]
    assert deep["denoised"] != plain["denoised"]
    features = FeatureStore(tmp_path / "features.zarr")
    assert {spec.preprocessing.clahe is None for spec in features.specs()} == {True, False}  # as each was pre-trained
    assert not [key for spec in features.specs() for key in features.keys(spec)]  # they would fill the disk


def test_unknown_variants_are_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--smoke", "--work", str(tmp_path), "--only", "small,huge"])
    assert result.exit_code == 2
    assert "no variant huge" in " ".join(result.output.split())
