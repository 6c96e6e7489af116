"""Distances from training images, against NumPy's own covariance and scikit-learn's Ledoit-Wolf."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from interpreter.checkpoint import MODELS, Card, load_interpreter
from interpreter.config import InterpreterConfig
from interpreter.domain import DomainScore, descriptor, domain_of, fit_domain, load_domain, residual
from interpreter.errors import CheckpointError, DataError
from interpreter.task import Task
from store import FeatureSpec, FeatureStore
from tests.conftest import changed


def described(n: int, d: int = 40, shift: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    """Draws from a Gaussian with correlated numbers of different sizes."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, 6))
    sizes = np.geomspace(0.1, 10, d)
    return list(sizes * (shift + random.normal(size=(n, 6)) @ mixing.T + 0.3 * random.normal(size=(n, d))))


def test_the_distance_is_mahalanobis_with_ledoit_and_wolfs_covariance(spec: FeatureSpec) -> None:
    draws = np.stack(described(25))
    domain = fit_domain(spec, draws)
    scaled = (draws - draws.mean(0)) / (draws.std(0) + 1e-6)
    oracle = LedoitWolf(assume_centered=True).fit(scaled)
    new = described(1, shift=2.0, seed=5)[0]
    away = (new - draws.mean(0)) / (draws.std(0) + 1e-6)
    expected = np.sqrt(away @ np.linalg.inv(oracle.covariance_) @ away / len(away))
    assert domain.distance(new) == pytest.approx(expected, rel=1e-6)


def test_images_like_the_training_images_are_below_the_threshold_and_others_above(spec: FeatureSpec) -> None:
    domain = fit_domain(spec, described(40))
    inside = [domain.distance(one) for one in described(200, seed=1)]
    outside = [domain.distance(one) for one in described(200, shift=6.0, seed=2)]
    assert np.mean(np.array(inside) > domain.threshold) < 0.05
    assert np.mean(np.array(outside) > domain.threshold) > 0.95


def test_it_is_kept_beside_the_interpreter(spec: FeatureSpec, tmp_path: Path) -> None:
    domain = fit_domain(spec, described(12))
    assert load_domain(tmp_path, spec) is None
    domain.save(tmp_path)
    back = load_domain(tmp_path, spec)
    assert back is not None
    new = described(1, shift=1.0, seed=3)[0]
    assert back.distance(new) == pytest.approx(domain.distance(new), rel=1e-4)
    assert back.threshold == domain.threshold
    with pytest.raises(CheckpointError, match="fitted to features"):
        load_domain(tmp_path, changed(spec, clip=True))
    (tmp_path / "domain.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_domain(tmp_path, spec)


def test_the_residual_is_a_geometric_mean_over_the_grid(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    features = filled_store.entry(spec, next(iter(filled_store.keys(spec)))).features()
    assert residual(replace(features, residuals={1: 1e-6, 10: 1e-2})) == pytest.approx(1e-2)
    assert residual(replace(features, residuals={})) is None
    assert 0 < (residual(replace(features, residuals={1: 0.0})) or 0) < 1e-6


def test_residuals_are_judged_by_those_of_the_training_images(spec: FeatureSpec, tmp_path: Path) -> None:
    descriptors, residuals = described(101), [0.01 + i / 1e4 for i in range(101)]
    fitted = fit_domain(spec, descriptors, residuals)
    assert fitted.residual_range == pytest.approx((0.0101 / 1.1, 1.1 * 0.0199))
    fitted.save(tmp_path)
    back = load_domain(tmp_path, spec)
    assert back is not None
    assert back.residual_range == fitted.residual_range
    assert fit_domain(spec, descriptors, [*residuals[:-1], None]).residual_range is None  # one is not known
    assert fit_domain(spec, descriptors).residual_range is None


@pytest.mark.parametrize(
    ("score", "reasons"),
    [
        (DomainScore(1.0, 1.5, 0.01, (0.01, 0.02)), ()),
        (DomainScore(1.0, 1.5, 0.03, (0.01, 0.02)), ("residual",)),
        (DomainScore(1.0, 1.5, 0.009, (0.01, 0.02)), ("residual",)),  # too smooth for a fundus
        (DomainScore(2.0, 1.5, 0.03, (0.01, 0.02)), ("distance", "residual")),
        (DomainScore(2.0, 1.5, None, (0.01, 0.02)), ("distance",)),
        (DomainScore(1.0, 1.5, 9.0, None), ()),  # told, and not judged
    ],
)
def test_either_figure_advises_to_abstain(score: DomainScore, reasons: tuple[str, ...]) -> None:
    assert (score.reasons, score.abstain) == (reasons, bool(reasons))


@pytest.mark.parametrize("model", sorted(MODELS.iterdir()), ids=lambda model: model.name)
def test_the_shipped_statistics_are_those_of_the_card(model: Path) -> None:
    _, card = load_interpreter(model)
    domain = load_domain(model, card.spec)
    assert domain is not None
    assert domain.residual_range is not None
    told = " ".join((model / "README.md").read_text().split())
    assert f"abstain beyond {domain.threshold:.2f}" in told
    assert "{:.4f} to {:.4f}".format(*domain.residual_range) in told


def test_a_store_of_an_earlier_version_is_fitted_without_residuals(
    filled_store: FeatureStore, spec: FeatureSpec
) -> None:
    keys = [*filled_store.keys(spec)]
    card = Card(
        spec=spec, backbone="", task=Task(name="vessels", targets=("mask",)), config=InterpreterConfig(),
        training_ids=tuple(key.image_id for key in keys),
    )  # fmt: skip
    fitted = domain_of(card, filled_store)
    known = [residual(filled_store.entry(spec, key).features()) or 0 for key in keys]
    assert fitted.residual_range is not None
    assert min(known) / 1.1 <= fitted.residual_range[0] < min(known)
    assert max(known) < fitted.residual_range[1] <= 1.1 * max(known)
    filled_store.write(spec, keys[0], replace(filled_store.entry(spec, keys[0]).features(), residuals={}))
    again = domain_of(card, filled_store)
    assert (again.threshold, again.residual_range) == (fitted.threshold, None)


def test_a_handful_of_images_is_too_few(spec: FeatureSpec) -> None:
    with pytest.raises(DataError, match="at least 5 images"):
        fit_domain(spec, described(4))


def test_a_descriptor_is_means_and_log_deviations(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    entry = filled_store.entry(spec, next(iter(filled_store.keys(spec))))
    numbers = descriptor(entry.features(), filled_store.codec(spec))
    assert numbers.shape == (2 * sum(len(spec.timesteps) * block.channels for block in spec.blocks),)
    maps = entry.read("block_0").astype(np.float64)
    means, deviations = maps.mean((-2, -1)).ravel(), maps.std((-2, -1), ddof=1).ravel()
    np.testing.assert_allclose(numbers[: means.size], means, atol=1e-5)
    np.testing.assert_allclose(numbers[means.size : 2 * means.size], np.log(deviations + 1e-6), atol=1e-4)
