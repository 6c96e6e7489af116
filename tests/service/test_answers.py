"""Answers of classes that may overlap: whole masks, their own thresholds, agreement of each class."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from interpreter.prediction import Segmentation, labels_from_masks, vote, vote_overlapping
from service.answers import Answer, at_threshold, restricted_to
from service.engine import Engine
from service.options import Options
from service.outputs import OUTPUTS, SourcePhotograph
from service.responses import to_response
from store.geometry import Geometry
from tests.service.conftest import png

SIDE = 32
SOURCE = SourcePhotograph(None, 10**6)


def disc_and_cup(steps: int = 2) -> Answer:
    """A disc of 16 x 16 pixels with a cup of 8 x 8 inside; all timesteps agree."""
    probabilities = np.full((steps, 2, SIDE, SIDE), 0.1, np.float32)
    probabilities[:, 0, 8:24, 8:24] = 0.9
    probabilities[:, 1, 12:20, 12:20] = 0.8
    prediction = vote_overlapping(probabilities)
    fov, geometry = (
        np.ones((SIDE, SIDE), np.bool_),
        Geometry.whole(SIDE, SIDE, SIDE),
    )
    layers = Segmentation(prediction, fov, geometry).masks
    return Answer(
        image_id="0" * 64, model="disc_cup", version="1", spec="2" * 64, classes=("background", "OD", "cup"),
        colours=("#1fe0ff", "#ff9d1f"), timesteps=(100, 500), voters=("100", "500"), labels=labels_from_masks(layers),
        prediction=prediction, fov=fov, geometry=geometry, cached=False, forwards=0, bytes_stored=0, seconds={},
        layers=layers,
    )  # fmt: skip


def of_png(data: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_disc_holds_its_cup() -> None:
    answer = disc_and_cup()
    told = to_response(answer, Options())
    background, disc, cup = told.classes
    assert (background.pixels, disc.pixels, cup.pixels) == (SIDE**2 - 256, 256, 64)
    assert disc.share == pytest.approx(256 / SIDE**2)
    assert (background.agreement, disc.agreement, cup.agreement, told.mean_agreement) == (1, 1, 1, 1)
    assert told.mean_uncertainty == 0
    assert told.masks_png is not None
    assert {name: int(of_png(one).sum()) for name, one in told.masks_png.items()} == {"OD": 256, "cup": 64}
    lengths = to_response(answer, Options(mask="rle")).masks_rle
    assert lengths is not None
    assert sum(n for value, n in zip(lengths["OD"].values, lengths["OD"].lengths, strict=True) if value) == 256
    arrays = np.load(io.BytesIO(OUTPUTS["npz"].render(answer, Options(), SOURCE)))
    np.testing.assert_array_equal(arrays["masks"], answer.layers)


def test_a_class_alone_is_whole() -> None:
    only_disc = restricted_to(disc_and_cup(), ["OD"])
    assert np.count_nonzero(only_disc.labels == 1) == 256
    assert not only_disc.mask(2).any()
    told = to_response(only_disc, Options())
    assert told.classes[2].share == 0
    assert (told.mean_agreement, told.classes[0].agreement) == (1, 1)  # what is shown is no matter of votes


def test_a_threshold_is_each_classes_own() -> None:
    assert [one.pixels for one in to_response(at_threshold(disc_and_cup(), 0.5), Options()).classes[1:]] == [256, 64]
    assert [one.pixels for one in to_response(at_threshold(disc_and_cup(), 0.85), Options()).classes[1:]] == [256, 0]


def test_half_of_the_votes_is_all_the_uncertainty_there_is() -> None:
    probabilities = np.full((4, 2, SIDE, SIDE), 0.1, np.float32)
    probabilities[:2, 0] = 0.9
    answer = dataclasses.replace(disc_and_cup(), prediction=vote_overlapping(probabilities))
    np.testing.assert_allclose(answer.uncertainty, 1, rtol=1e-6)
    np.testing.assert_allclose(answer.agreement, 0.5)


def test_agreement_is_that_of_the_class_that_was_chosen() -> None:
    """Below the vote's own threshold a class is chosen that no timestep voted for."""
    probabilities = np.stack([np.full((SIDE, SIDE), 0.8), np.full((SIDE, SIDE), 0.2)]).astype(np.float32)
    plain = dataclasses.replace(
        disc_and_cup(),
        prediction=vote(np.stack([probabilities, probabilities])),
        classes=("background", "vessel"),
        labels=np.zeros((SIDE, SIDE), np.uint8),
        layers=None,
    )
    assert (plain.agreement == 1).all()
    low = at_threshold(plain, 0.1)
    assert (low.labels == 1).all()
    assert plain.expected_dice == {"vessel": None}
    expected = [one.expected_dice for one in to_response(low, Options()).classes]
    assert expected == [None, pytest.approx(2 * 0.2 / (0.2 + 1))]
    assert (low.agreement == 0).all()
    assert to_response(low, Options()).classes[1].agreement == 0


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_class_that_is_left_out_is_left_out_of_everything(overlapping: bool) -> None:
    random = np.random.default_rng(0)
    if overlapping:
        prediction = vote_overlapping(random.random((3, 2, SIDE, SIDE), dtype=np.float32))
    else:
        drawn = random.random((3, 3, SIDE, SIDE), dtype=np.float32)
        prediction = vote(drawn / drawn.sum(axis=1, keepdims=True))
    fov, geometry = (
        np.ones((SIDE, SIDE), np.bool_),
        Geometry.whole(SIDE, SIDE, SIDE),
    )
    found = Segmentation(prediction, fov, geometry)
    answer = dataclasses.replace(disc_and_cup(), labels=found.labels, layers=found.layers, prediction=prediction)
    kept = restricted_to(answer, ["OD"])
    now, before = kept.prediction, answer.prediction
    assert set(np.unique(now.labels_by_voter)) == {0, 1}
    np.testing.assert_array_equal(now.labels_by_voter == 1, before.masks_by_voter[:, 0])
    assert not now.probabilities[2].any()
    np.testing.assert_allclose(now.probabilities.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(now.probabilities[1], before.probabilities[1])
    assert (now.disagreement > 0).sum() < (before.disagreement > 0).sum()
    agreed = now.votes[1] % len(now.labels_by_voter) == 0
    np.testing.assert_array_equal(now.disagreement == 0, agreed)
    arrays = np.load(io.BytesIO(OUTPUTS["npz"].render(kept, Options(by_timestep=True), SOURCE)))
    assert not arrays["probabilities"][2].any()
    everything = restricted_to(answer, ["OD", "cup"]).prediction
    for name in ("labels", "probabilities", "votes", "disagreement", "labels_by_voter", "masks", "masks_by_voter"):
        np.testing.assert_allclose(getattr(everything, name), getattr(before, name), atol=1e-6)


def test_shares_are_those_of_the_masks(shared_engine: Engine) -> None:
    answer = shared_engine.segment(png(3))
    response = to_response(answer, Options())
    seen = int(answer.native_fov().sum())
    for one in response.classes[1:]:
        assert one.share == pytest.approx(one.pixels / seen)
    assert sum(one.share for one in response.classes) == pytest.approx(1)
