"""Which resolution to read a camera at, told without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from extractor.backbone import Backbone
from extractor.backbone_folder import save_backbone
from extractor.datasets import load_dataset
from extractor.extraction import Extractor
from extractor.runs import extract_dataset
from interpreter.adapting import Expected, best_of, expected_at, readable_specs, save_adapted
from interpreter.checkpoint import Card, load_interpreter, save_interpreter
from interpreter.config import InterpreterConfig
from interpreter.data import LabelledImage, all_images
from interpreter.domain import load_domain
from interpreter.domain_cli import fit
from interpreter.errors import ConfigurationError, DataError
from interpreter.expected import expected_of, expected_sums
from interpreter.network import Interpreter
from interpreter.prediction import predict, vote, vote_overlapping
from interpreter.settings import AdaptedTo
from interpreter.task import Task
from service.engine import load_engine
from store import FeatureSpec, FeatureStore
from tests.conftest import Run

TASK = Task(name="vessels", targets=("mask",))


@pytest.fixture
def store(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path) -> FeatureStore:
    """The photographs of ``eyes`` at 32, 48 and 64 pixels, those of 64 with clipped estimates, too."""
    made = FeatureStore(tmp_path / "features.zarr")
    data = load_dataset(f"folder:{dataset_folder}", "eyes")
    for side in (48, 32, 64):
        extract_dataset(data, made, Extractor(backbone, spec.with_resolution(side)))
    extract_dataset(data, made, Extractor(backbone, spec.with_resolution(64).model_copy(update={"clip": True})))
    return made


@pytest.fixture
def model(spec: FeatureSpec, backbone: Backbone, tmp_path: Path) -> Path:
    """An untrained interpreter, and its backbone beside it."""
    torch.manual_seed(0)
    network = Interpreter(spec, InterpreterConfig(vss_max_size=16))
    torch.nn.init.normal_(network.head.head.weight, std=1.0)
    save_backbone(backbone, tmp_path / "backbone", half=False)
    card = Card(spec=spec, backbone=str(tmp_path / "backbone"), task=TASK, config=network.config, temperature=0.7)
    save_interpreter(tmp_path / "model", network, card)
    return tmp_path / "model"


def test_what_is_expected_follows_from_probabilities_alone() -> None:
    of_class = np.array([[0.9, 0.8], [0.2, 0.6]], np.float32)
    inside = np.array([[True, True], [True, False]])
    hit, probable, found = expected_sums(vote(np.stack([1 - of_class, of_class])[None]), inside)
    np.testing.assert_allclose([hit, probable, found], [[1.7], [1.9], [2]], rtol=1e-6)
    both = np.stack([of_class, 1 - of_class])[None]  # each pixel belongs to either
    hit, probable, found = expected_sums(vote_overlapping(both), inside)
    np.testing.assert_allclose([hit, probable, found], [[1.7, 0.8], [1.9, 1.1], [2, 1]], rtol=1e-6)
    assert expected_of(vote_overlapping(both), inside) == pytest.approx((3.4 / 3.9, 1.6 / 2.1))
    nothing = vote(np.stack([np.full((2, 2), 0.9), np.full((2, 2), 0.1)]).astype(np.float32)[None])
    assert expected_of(nothing, inside) == pytest.approx((np.nan,), nan_ok=True)


def test_expectations_of_photographs_are_added_up(store: FeatureStore, model: Path, spec: FeatureSpec) -> None:
    network, _ = load_interpreter(model)
    images = all_images(store, "eyes")
    larger = spec.with_resolution(64)
    of_each = []
    for image in images:
        features = store.entry(larger, image.key).features()
        of_each.append(expected_sums(predict(network, features.maps, features.fov), features.fov))
    hit, probable, found = np.sum(of_each, axis=0)
    expected = expected_at(network, store, larger, images)
    assert expected.by_class == pytest.approx(2 * hit / (probable + found))
    assert 0 < expected.dice < 1
    assert expected.dice != expected_at(network, store, spec, images).dice


def of(spec: FeatureSpec, side: int, *by_class: float, images: int = 6, spread: float = 0.0) -> Expected:
    """An expectation of so much of each class, in photographs that differ by a spread."""
    away = spread * np.linspace(-1, 1, images)
    sums = np.array([[[d + one for d in by_class], np.ones(len(by_class)), np.ones(len(by_class))] for one in away])
    return Expected(spec.with_resolution(side), sums)


def test_the_best_is_the_highest_and_of_equals_the_coarsest(spec: FeatureSpec) -> None:
    assert best_of([of(spec, 64, 0.7), of(spec, 32, 0.7), of(spec, 48, 0.6)], 80).spec.resolution == 32
    assert best_of([of(spec, 32, 0.9, 0.1), of(spec, 48, 0.6, 0.6)], 80).spec.resolution == 48  # the mean counts
    absent = Expected(spec, np.array([[[0, 0.4], [0, 1], [0, 1]]]))  # a class that nobody has
    assert absent.by_class == pytest.approx((np.nan, 0.4), nan_ok=True)
    assert absent.dice == 0.4
    with pytest.raises(DataError, match="finds none of its classes"):
        best_of([Expected(spec, np.zeros((2, 3, 1)))], 32)


def test_what_was_learnt_gives_way_to_what_is_beyond_doubt(spec: FeatureSpec) -> None:
    learnt, better = of(spec, 32, 0.70), of(spec, 64, 0.72, spread=0.01)
    gain, error = better.gain(learnt)
    assert (gain, error) == pytest.approx((0.02, 0.01 * np.std(np.linspace(-1, 1, 6), ddof=1) / np.sqrt(6)))
    assert best_of([learnt, better], 32) is better
    doubtful = of(spec, 48, 0.73, spread=0.05)  # higher, and not in every photograph
    assert best_of([learnt, doubtful], 32) is learnt
    assert best_of([learnt, better, doubtful], 32) is better
    assert best_of([learnt, doubtful], 64) is doubtful  # neither was learnt at
    few = [of(spec, 32, 0.5, images=4), of(spec, 64, 0.9, images=4)]
    assert best_of(few, 32) is few[0]  # decide nothing


def test_only_whole_sets_of_the_same_features_are_read(store: FeatureStore, model: Path, spec: FeatureSpec) -> None:
    _, card = load_interpreter(model)
    images = all_images(store, "eyes")
    assert [one.resolution for one in readable_specs(store, card, images)] == [32, 48, 64]
    store.delete(spec.with_resolution(48), images[3].key)
    assert readable_specs(store, card, images) == [spec, spec.with_resolution(64)]
    for one in (spec, spec.with_resolution(64)):
        store.delete(one, images[0].key)
    told = r"\(found: 5 at 32, 5 at 48, 5 at 64\); run `extractor run --backbone .* --resolution 32"
    with pytest.raises(DataError, match=told):
        readable_specs(store, card, images)


def adapted(store: FeatureStore, model: Path, images: list[LabelledImage], out: Path, best: int) -> Card:
    network, card = load_interpreter(model)
    expected = [of(card.spec, side, 0.5 + 0.1 * (side == best), images=len(images)) for side in (32, 64)]
    return save_adapted(out, network, card, store, images, expected, load_domain(model, card.spec))


def test_a_copy_reads_the_best_resolution_as_the_original_would(
    store: FeatureStore, model: Path, spec: FeatureSpec, tmp_path: Path
) -> None:
    images, larger = all_images(store, "eyes"), spec.with_resolution(64)
    card = adapted(store, model, images, tmp_path / "here", best=64)
    network, read = load_interpreter(tmp_path / "here")
    assert (read, read.spec, read.learnt_at) == (card, larger, 32)
    assert read.training.adapted_to == AdaptedTo(photographs=6, expected_dice={"32": 0.5, "64": 0.6})
    features = store.entry(larger, images[0].key).features()
    mine = predict(network, features.maps, features.fov).probabilities
    theirs = predict(load_interpreter(model)[0], features.maps, features.fov).probabilities
    np.testing.assert_array_equal(mine, theirs)
    domain = load_domain(tmp_path / "here", larger)
    assert domain is not None
    assert not domain.score(features, store.codec(larger)).abstain
    assert adapted(store, tmp_path / "here", images, tmp_path / "back", best=32).learnt_at is None
    with pytest.raises(ConfigurationError, match="was adapted to a camera, whose photographs are its domain"):
        fit(str(tmp_path / "here"), str(store.location))
    (tmp_path / "here" / "manifest.json").write_text("{}")
    few = adapted(store, model, images[:4], tmp_path / "here", best=32)  # over it: nothing of the former one stays
    assert load_domain(tmp_path / "here", few.spec) is None
    assert load_domain(tmp_path / "back", spec) is not None
    adapted(store, tmp_path / "back", images[:4], tmp_path / "few", best=32)
    assert load_domain(tmp_path / "few", spec) is not None  # it is read as before
    network, card = load_interpreter(tmp_path / "back")
    alone, known = [of(spec, 64, 0.6, images=4)], load_domain(tmp_path / "back", spec)
    read = save_adapted(tmp_path / "few", network, card, store, images[:4], alone, known)
    assert (read.spec, load_domain(tmp_path / "few", larger)) == (larger, None)
    assert load_interpreter(tmp_path / "here")[1] == few
    again = adapted(store, tmp_path / "here", images, tmp_path / "again", best=64)
    assert (again.spec, again.learnt_at) == (larger, 32)


def test_the_service_reads_so(store: FeatureStore, model: Path, dataset_folder: Path, tmp_path: Path) -> None:
    images = all_images(store, "eyes")
    adapted(store, model, images, tmp_path / "here", best=64)
    engine = load_engine(str(tmp_path / "here"), str(store.location))
    try:
        answer = engine.segment((dataset_folder / "images" / "eye0.png").read_bytes())
    finally:
        engine.close()
    assert answer.cached  # the features that the expectation was of
    assert answer.prediction.labels.shape == (64, 64)
    assert answer.domain is not None


def test_the_command(run: Run, store: FeatureStore, model: Path, tmp_path: Path) -> None:
    call = ["adapt", "--store", str(store.location), "--dataset", "eyes", "--model", model]
    told = run("interpreter", *call, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert [one["resolution"] for one in found["read"]] == [32, 48, 64]
    beyond_doubt = [one for one in found["read"][1:] if one["gain"] > 0 and one["gain"] >= 3 * one["gain_error"]]
    best = max([found["read"][0], *beyond_doubt], key=lambda one: one["expected_dice"])
    assert (found["best"], found["learnt_at"]) == (best["resolution"], 32)
    assert [one["gain"] is None for one in found["read"]] == [True, False, False]
    assert all(one["by_class"] == {"mask": one["expected_dice"]} for one in found["read"])
    written = run("interpreter", *call, "--resolution", "48", "--resolution", "64", "--out", tmp_path / "here")
    assert written.returncode == 0, written.stderr
    assert "best at" in written.stdout
    assert "32, the resolution of the training, is not among them" in " ".join(written.stderr.split())
    side = load_interpreter(tmp_path / "here")[1].spec.resolution
    assert f"reads {side} pixels, learnt at 32" in " ".join(
        run("interpreter", "models", tmp_path / "here").stdout.split()
    )
    refused = run("interpreter", *call, "--out", tmp_path / "here")
    assert (refused.returncode, "holds files already" in refused.stderr) == (2, True)
    assert run("interpreter", *call, "--out", tmp_path / "here", "--overwrite").returncode == 0
    scored = json.loads(run("interpreter", "evaluate", *call[1:-1], tmp_path / "here", "--size", "32", "--json").stdout)
    assert scored["resolution"] == load_interpreter(tmp_path / "here")[1].spec.resolution
    assert "only one resolution to choose from" in run("interpreter", *call, "--resolution", "32").stderr
    refused = run("interpreter", *call, "--resolution", "96")
    assert (refused.returncode, "--resolution 96" in refused.stderr) == (1, True)
    features = FeatureStore(store.location)
    features.delete(load_interpreter(model)[1].spec.with_resolution(48), all_images(features, "eyes")[0].key)
    assert "48 is left out: 5 of 6" in " ".join(run("interpreter", *call).stderr.split())
    same = run("interpreter", *call, "--out", model)
    assert (same.returncode, "another folder in --out" in same.stderr) == (2, True)
