"""Distances from training images, against NumPy's own covariance and scikit-learn's Ledoit-Wolf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from interpreter.domain import descriptor, fit_domain, load_domain
from interpreter.errors import CheckpointError, TrainingDataError
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
    with pytest.raises(CheckpointError, match="made of features"):
        load_domain(tmp_path, changed(spec, clip=True))
    (tmp_path / "domain.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_domain(tmp_path, spec)


def test_a_handful_of_images_is_too_few(spec: FeatureSpec) -> None:
    with pytest.raises(TrainingDataError, match="at least 5 images"):
        fit_domain(spec, described(4))


def test_a_descriptor_is_means_and_log_deviations(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    entry = filled_store.entry(spec, next(iter(filled_store.keys(spec))))
    numbers = descriptor(entry.features(), filled_store.codec(spec))
    assert numbers.shape == (2 * sum(len(spec.timesteps) * block.channels for block in spec.blocks),)
    maps = entry.read("block_0").astype(np.float64)
    means, deviations = maps.mean((-2, -1)).ravel(), maps.std((-2, -1), ddof=1).ravel()
    np.testing.assert_allclose(numbers[: means.size], means, atol=1e-5)
    np.testing.assert_allclose(numbers[means.size : 2 * means.size], np.log(deviations + 1e-6), atol=1e-4)
