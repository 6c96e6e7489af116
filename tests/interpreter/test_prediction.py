"""The vote and its ties, and labels at native size."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from interpreter.config import InterpreterConfig
from interpreter.data import all_images
from interpreter.errors import NonFinitePrediction
from interpreter.network import Interpreter
from interpreter.prediction import (
    Segmentation,
    disagreement,
    largest_disagreement,
    native_probabilities,
    predict,
    segment,
    vote,
    vote_overlapping,
)
from interpreter.stored import segment_stored
from store import FeatureSpec, FeatureStore, Geometry


def one_pixel(*by_timestep: tuple[float, ...]) -> np.ndarray:
    return np.array(by_timestep, dtype=np.float32)[:, :, None, None]


def test_the_majority_wins_even_against_the_mean() -> None:
    prediction = vote(one_pixel((0.49, 0.51), (0.49, 0.51), (0.99, 0.01)))
    assert prediction.labels[0, 0] == 1
    assert prediction.probabilities[0, 0, 0] > 0.5
    assert prediction.votes[:, 0, 0].tolist() == [1, 2]
    assert prediction.labels_by_voter[:, 0, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize(("sure", "winner"), [(0.95, 1), (0.6, 0)])
def test_ties_go_to_the_larger_mean_probability(sure: float, winner: int) -> None:
    prediction = vote(one_pixel((0.7, 0.3), (0.7, 0.3), (1 - sure, sure), (1 - sure, sure)))
    assert prediction.votes[:, 0, 0].tolist() == [2, 2]
    assert prediction.labels[0, 0] == winner


def test_a_class_without_votes_never_wins_a_tie() -> None:
    prediction = vote(one_pixel((0.51, 0.0, 0.49), (0.0, 0.51, 0.49)))
    assert prediction.labels[0, 0] in (0, 1)
    assert prediction.probabilities[:, 0, 0].argmax() == 2


def test_disagreement_is_the_entropy_of_the_votes() -> None:
    assert vote(one_pixel((0.9, 0.1), (0.8, 0.2))).disagreement[0, 0] == 0
    assert vote(one_pixel((0.9, 0.1), (0.1, 0.9))).disagreement[0, 0] == pytest.approx(np.log(2))


@pytest.mark.parametrize("overlapping", [False, True])
def test_nan_is_an_error_and_not_a_vote_for_the_background(
    filled_store: FeatureStore, spec: FeatureSpec, overlapping: bool
) -> None:
    network = Interpreter(spec, InterpreterConfig(overlapping=overlapping))
    features = filled_store.entry(spec, next(filled_store.keys(spec))).features()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(NonFinitePrediction, match="train it again"):
        predict(network, features.maps, features.fov)
    (first, *_) = all_images(filled_store, "eyes")
    with pytest.raises(NonFinitePrediction, match=f"^{first.name}: "):
        segment_stored(network, filled_store, spec, first)


def test_every_timestep_is_read_with_its_own_maps(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    torch.manual_seed(0)
    network = Interpreter(spec, InterpreterConfig())
    features = filled_store.entry(spec, next(iter(filled_store.keys(spec)))).features()
    maps = features.maps
    prediction = predict(network, maps, features.fov)
    for i, t in enumerate(spec.timesteps):
        at_t = {name: torch.from_numpy(m.values[i : i + 1]) for name, m in maps.items()}
        labels = network(at_t, torch.tensor([t])).argmax(dim=1)[0].numpy()
        np.testing.assert_array_equal(prediction.labels_by_voter[i], labels)
    again = predict(network, maps, features.fov)
    np.testing.assert_array_equal(prediction.probabilities, again.probabilities)


def test_mirror_images_are_turned_back_and_averaged(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    torch.manual_seed(0)
    first, second = list(filled_store.keys(spec))[:2]
    plain, other = (filled_store.entry(spec, key).features() for key in (first, second))
    for overlapping in (False, True):
        network = Interpreter(spec, InterpreterConfig(overlapping=overlapping))
        alone, reversed_ = (predict(network, one.maps, one.fov).probabilities for one in (plain, other))
        for view, turned in (
            ("flip-h", reversed_[..., ::-1]),
            ("flip-v", reversed_[..., ::-1, :]),
            ("flip-hv", reversed_[..., ::-1, ::-1]),
        ):
            both = predict(network, plain.maps, plain.fov, {view: other})
            np.testing.assert_allclose(both.probabilities[1:], ((alone + turned) / 2)[1:], atol=1e-6)
            assert both.labels_by_voter.shape == (len(spec.timesteps), spec.resolution, spec.resolution)
        both = segment(network, plain, {"flip-h": other, "flip-v": other}).prediction
        expected = (alone + reversed_[..., ::-1] + reversed_[..., ::-1, :]) / 3
        np.testing.assert_allclose(both.probabilities[1:], expected[1:], atol=1e-6)


def test_native_labels_follow_the_vote_and_stay_inside_the_field_of_view(
    filled_store: FeatureStore, spec: FeatureSpec
) -> None:
    torch.manual_seed(0)
    network = Interpreter(spec, InterpreterConfig())
    features = filled_store.entry(spec, next(iter(filled_store.keys(spec)))).features()
    found = segment(network, features)
    prediction, native = found.prediction, found.labels
    assert found.layers is None
    np.testing.assert_array_equal(found.masks, [native == 1])
    assert native.shape == (80, 96)
    outside = ~features.geometry.restore(features.fov).astype(bool)
    assert not native[outside].any()
    probabilities = native_probabilities(prediction, features.fov, features.geometry)
    assert not probabilities[:, outside].any()  # the scores that curves are made of are those of the answer
    np.testing.assert_allclose(probabilities[:, ~outside].sum(axis=0), 1, atol=1e-4)
    same_size = Geometry.whole(32, 32, 32)
    everywhere = np.ones((32, 32), dtype=np.bool_)
    np.testing.assert_array_equal(Segmentation(prediction, everywhere, same_size).labels, prediction.labels)


def test_overlapping_classes_are_voted_on_one_by_one() -> None:
    prediction = vote_overlapping(one_pixel((0.9, 0.6), (0.4, 0.7), (0.6, 0.1)))
    assert prediction.masks[:, 0, 0].tolist() == [True, True]
    assert prediction.votes[:, 0, 0].tolist() == [0, 2, 2]
    assert prediction.labels[0, 0] == 2
    assert prediction.labels_by_voter[:, 0, 0].tolist() == [2, 2, 1]
    assert prediction.probabilities[0, 0, 0] == pytest.approx(1 - (0.9 + 0.4 + 0.6) / 3)
    tie = vote_overlapping(one_pixel((0.6, 0.95), (0.3, 0.3)))
    assert tie.masks[:, 0, 0].tolist() == [False, True]
    assert tie.disagreement[0, 0] == pytest.approx(np.log(2))


def test_native_masks_of_overlapping_classes_are_the_vote_at_the_same_size() -> None:
    random = np.random.default_rng(0)
    prediction = vote_overlapping(random.random((4, 3, 32, 32)).astype(np.float32))
    everywhere = np.ones((32, 32), dtype=np.bool_)
    masks = Segmentation(prediction, everywhere, Geometry.whole(32, 32, 32)).masks
    np.testing.assert_array_equal(masks, prediction.masks)


def test_the_temperature_changes_probabilities_and_not_the_votes(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    torch.manual_seed(0)
    network = Interpreter(spec, InterpreterConfig())
    features = filled_store.entry(spec, next(iter(filled_store.keys(spec)))).features()
    plain = predict(network, features.maps, features.fov)
    network.temperature = 3.0
    cooled = predict(network, features.maps, features.fov)
    np.testing.assert_array_equal(plain.votes, cooled.votes)
    assert np.abs(cooled.probabilities - 0.5).mean() < np.abs(plain.probabilities - 0.5).mean()


@pytest.mark.parametrize(("voters", "choices"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 3), (4, 2), (3, 5)])
def test_the_largest_disagreement_is_that_of_some_votes(voters: int, choices: int) -> None:
    splits = [split for split in product(range(voters + 1), repeat=choices) if sum(split) == voters]
    votes = np.array(splits, np.uint8).T[:, None, :]
    assert disagreement(votes, voters).max() == pytest.approx(largest_disagreement(voters, choices), abs=1e-6)
