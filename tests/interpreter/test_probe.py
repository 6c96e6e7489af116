"""Linear probes: interpolation and fit against other libraries, scores that mean what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from interpreter.data import LabelledImage, labelled_images
from interpreter.errors import ConfigurationError, DataError
from interpreter.heat_map import CELL, HEAD, MARGIN, Panel, draw_heat_map
from interpreter.probe import ProbeResult, ProbeSettings, fit_logistic, probe
from interpreter.probe_cli import codecs_named, panels_of
from interpreter.splits import split_off
from interpreter.task import Task
from store import FeatureSpec, FeatureStore
from store.codecs import FloatCodec
from store.encoded import Encoded
from store.spec import AffineEncoding, FloatEncoding
from tests.conftest import Run

TASK = Task(name="mask", targets=("mask",))
SETTINGS = ProbeSettings(pixels=200, scored_pixels=400)


class Forgetful(FloatCodec):
    """An encoding that keeps nothing."""

    def encode(self, block: str, maps: torch.Tensor, *rest: object) -> Encoded:
        return Encoded(np.zeros(tuple(maps.shape), np.float32))


def probed(store: FeatureStore, spec: FeatureSpec, settings: ProbeSettings = SETTINGS) -> list[ProbeResult]:
    codecs = codecs_named("float16,int8", spec) | {"nothing": Forgetful(FloatEncoding(kind="float32"))}
    return probe(store, spec, ["mask"], labelled_images(store, "eyes", None, TASK), codecs, settings)


def test_the_fit_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(6, generator=generator, dtype=torch.float64) + torch.randn(400, generator=generator) > 0.3
    w, b = fit_logistic(x, y, penalty=0.01)
    theirs = LogisticRegression(C=1 / (400 * 0.01), tol=1e-10, max_iter=1000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(w.numpy(), theirs.coef_[0], atol=1e-4)
    assert float(b) == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_every_encoding_timestep_and_block_has_a_score(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    scores = probed(filled_store, spec)
    places = [(one.encoding, one.timestep, one.block) for one in scores]
    assert len(set(places)) == len(places) == 3 * len(spec.timesteps) * len(spec.blocks)
    by_encoding = {
        encoding: np.array([one.average_precision for one in scores if one.encoding == encoding])
        for encoding in ("float16", "int8", "nothing")
    }
    (prevalence,) = {one.prevalence for one in scores}
    assert 0 < prevalence < 0.5
    assert by_encoding["float16"].max() > 3 * prevalence  # dark vessels are easily told
    np.testing.assert_allclose(by_encoding["int8"], by_encoding["float16"], atol=0.05)
    np.testing.assert_allclose(by_encoding["nothing"], prevalence)  # without features only a guess is left
    assert probed(filled_store, spec) == scores
    assert probed(filled_store, spec, SETTINGS.model_copy(update={"seed": 1})) != scores


def test_probes_fitted_to_some_images_are_scored_on_others(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)

    def scores(fitted: list[LabelledImage], scored: list[LabelledImage]) -> list[float]:
        found = probe(filled_store, spec, ["mask"], fitted, {"float16": None}, SETTINGS, scored)
        return [one.average_precision for one in found]

    one, other = scores(images[:2], images[2:]), scores(images[2:], images[:2])
    assert one != other
    train, held_out = split_off(images, SETTINGS.held_out, SETTINGS.seed)
    assert scores(train, held_out) == scores(images, [])  # what a split would do by itself
    with pytest.raises(DataError, match=r"eyes/\S+ is both fitted to and scored on"):
        scores(images, images[:1])


def test_what_cannot_be_probed_is_told(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    with pytest.raises(DataError, match="too few for a probe"):
        probe(filled_store, spec, ["mask"], images[:1], {"float16": None})
    with pytest.raises(DataError, match="no pixel of disc in the training images"):
        probe(filled_store, spec, ["disc"], images, {"float16": None})
    with pytest.raises(ConfigurationError, match="compact needs --codebook"):
        codecs_named("compact", spec)
    with pytest.raises(ConfigurationError, match="no encoding 'int4'"):
        codecs_named("float16,int4", spec)


def test_an_image_without_a_target_has_none_of_it_unless_its_data_set_has_none(
    filled_store: FeatureStore, spec: FeatureSpec
) -> None:
    """Two of six images have exudates: the four others are scored as well, and those of another data set are not."""
    eyes = filled_store.collections.read("eyes")
    named = [
        sample.model_copy(
            update={"masks": {"MA": sample.masks["mask"]} | ({"EX": sample.masks["mask"]} if i < 2 else {})}
        )
        for i, sample in enumerate(eyes.samples)
    ]
    filled_store.collections.write(eyes.model_copy(update={"name": "lesions", "samples": tuple(named[:4])}))
    only_ma = tuple(sample.model_copy(update={"masks": {"MA": sample.masks["MA"]}}) for sample in named[4:])
    filled_store.collections.write(eyes.model_copy(update={"name": "others", "samples": only_ma}))
    task = Task(name="probed", targets=("MA", "EX"), overlapping=True)
    lesions, others = (labelled_images(filled_store, name, None, task) for name in ("lesions", "others"))

    def prevalence(scored: list[LabelledImage]) -> dict[str, float]:
        fitted = [lesions[0]]
        found = probe(filled_store, spec, task.targets, fitted, {"float16": None}, SETTINGS, scored)
        return {one.target: one.prevalence for one in found}

    alone, all_of_them = prevalence(lesions[1:2]), prevalence(lesions[1:])
    assert alone["MA"] == alone["EX"] > 0
    assert all_of_them["EX"] == pytest.approx(alone["EX"] / 3)  # two images have none
    assert prevalence([*lesions[1:], *others])["EX"] == all_of_them["EX"]
    with pytest.raises(DataError, match="no pixel of EX in the held-out images"):
        prevalence(others)


def test_the_largest_value_is_the_lightest_cell() -> None:
    values = {("t = 1", "a"): 0.2, ("t = 1", "b"): 0.9, ("t = 10", "a"): 0.5, ("t = 10", "b"): 0.4}
    picture = draw_heat_map([Panel("vessel", ["t = 1", "t = 10"], ["a", "b"], values)])

    def lightness(i: int, j: int) -> float:
        y, x = MARGIN + (2 + i) * CELL[1] + 3, MARGIN + HEAD + j * CELL[0] + 3
        return float(picture[y, x].sum())

    cells = {place: lightness(i, j) for place, (i, j) in zip(values, np.ndindex(2, 2), strict=True)}
    assert sorted(values, key=values.__getitem__) == sorted(values, key=cells.__getitem__)


def test_what_was_rounded_is_not_made_finer(spec: FeatureSpec) -> None:
    with pytest.raises(ConfigurationError, match="extract with --encoding float16"):
        codecs_named("float16,int8", spec.with_encoding(AffineEncoding()))


def test_panels_are_targets_by_encodings() -> None:
    scores = [
        ProbeResult("EX", e, t, b, 0.5, 0.1) for e in ("float16", "int8") for t in (1, 10) for b in ("x", "y", "z")
    ]
    panels = panels_of(scores)
    assert [panel.title for panel in panels] == ["EX, float16", "EX, int8"]
    assert (panels[0].rows, panels[0].columns) == (["t = 1", "t = 10"], ["x", "y", "z"])


def test_the_command_prints_a_table_and_writes_a_picture(run: Run, filled_store: FeatureStore, tmp_path: Path) -> None:
    call = ["probe", "--store", filled_store.location, "--dataset", "eyes", "--images", "4", "--pixels", "100"]
    printed = run("interpreter", *call, "--out", tmp_path / "probe.png")
    assert printed.returncode == 0, printed.stderr
    assert "best: t = " in printed.stdout
    with Image.open(tmp_path / "probe.png") as picture:
        assert picture.width > CELL[0] * 2
    rows = json.loads(run("interpreter", *call, "--json").stdout)
    assert {(row["timestep"], row["block"]) for row in rows} == {
        (t, b) for t in (1, 10, 100) for b in ("block_0", "block_2")
    }
    assert run("interpreter", *call[:-4], "--target", "disc").returncode == 1
    on_itself = run("interpreter", *call, "--score-on", "eyes")
    assert on_itself.returncode == 1
    assert "is both fitted to and scored on" in on_itself.stderr
