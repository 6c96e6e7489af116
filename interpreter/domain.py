"""How far a photograph is from those that an interpreter was trained on, judged by its features and its inversion.

A photograph's descriptor holds, for every block, timestep and channel, the mean and the logarithm of the
standard deviation of its feature map: how strongly the backbone responds, but not to what. The descriptors
of the training images are modelled as draws from a Gaussian whose covariance is shrunk towards its mean
variance (Ledoit and Wolf 2004; in the dual form, since there are few images and many numbers). The distance
is the Mahalanobis distance divided by the square root of the descriptor's length.

    t  timesteps    c  channels of a block    n  images    d = 2 sum_blocks(t c), length of a descriptor

The threshold is fitted by leave-one-out: each training image is measured against all others.

The second figure is the inversion's residual: how badly the backbone estimates the clean photograph at each step
up the noise grid. Only its usual range is fitted; a photograph that is easier to estimate than a fundus is as
suspicious as one that is harder (docs/decisions/0012-trust.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from interpreter.checkpoint import Card
from interpreter.errors import CheckpointError, DataError
from store.codecs import Codec
from store.feature_store import FeatureStore
from store.features import Features, Key
from store.files import replaced
from store.manifest import require_intact
from store.spec import FeatureSpec
from store.views import plain_view

DOMAIN_FILE = "domain.safetensors"
QUANTILE = 0.99
MARGIN = 1.1
MIN_IMAGES = 5
Range = tuple[float, float]
_FLOOR = 1e-6
_LEAST_SQUARE = 1e-18


@dataclass(frozen=True)
class DomainScore:
    """How far one photograph is from the training images.

    Attributes:
        distance: root mean square of the whitened descriptor; about 1 for photographs like the training images.
        threshold: largest usual distance, fitted to the training images; a larger one is a domain shift.
        residual: residual of the inversion, in units of the network's range [-1, 1]; None if it was not stored.
        residual_range: lowest and highest usual residual, fitted to the training images; None if residuals are not
            judged.
    """

    distance: float
    threshold: float
    residual: float | None = None
    residual_range: Range | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Names of the figures that are unusual, out of ``distance`` and ``residual``; empty if neither is."""
        found = ["distance"] if self.distance > self.threshold else []
        if self.residual is not None and self.residual_range is not None:
            lowest, highest = self.residual_range
            found += [] if lowest <= self.residual <= highest else ["residual"]
        return tuple(found)

    @property
    def abstain(self) -> bool:
        """Whether the segmentation should not be relied on."""
        return bool(self.reasons)


@dataclass(frozen=True)
class Domain:
    """Statistics of the descriptors of an interpreter's training images.

    Attributes:
        spec: digest of the features' spec.
        mean: float64 (d,), mean of the descriptors.
        scale: float64 (d,), by which centred descriptors are divided first.
        directions: float64 (m, d), orthonormal directions in which the training images differ.
        variances: float64 (m,), shrunk variances along ``directions``.
        rest: shrunk variance in every other direction.
        threshold: largest usual distance.
        residual_range: lowest and highest usual residual of the inversion; None if the training images' residuals are
            not known.
    """

    spec: str
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    directions: NDArray[np.float64]
    variances: NDArray[np.float64]
    rest: float
    threshold: float
    residual_range: Range | None = None

    def score(self, features: Features, codec: Codec) -> DomainScore:
        """Score a photograph by its distance and residual, from its features as they are stored."""
        distance = self.distance(descriptor(features, codec))
        return DomainScore(distance, self.threshold, residual(features), self.residual_range)

    def distance(self, descriptor: NDArray[np.float64]) -> float:
        """The distance of a descriptor, float64 (d,), from the training images."""
        away = (descriptor - self.mean) / self.scale
        along = self.directions @ away
        outside = max(0.0, float(away @ away - along @ along))
        return float(np.sqrt(((along**2 / self.variances).sum() + outside / self.rest) / len(away)))

    def save(self, folder: Path) -> Path:
        """Write ``domain.safetensors`` into an interpreter's folder and return its path."""
        path = folder / DOMAIN_FILE
        arrays = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _ARRAYS}
        metadata = {"spec": self.spec, "numbers": json.dumps([self.rest, self.threshold])}
        if self.residual_range is not None:
            metadata["residual_range"] = json.dumps(self.residual_range)
        with replaced(path) as partial:
            save_file(arrays, partial, metadata)
        return path


_ARRAYS = ("mean", "scale", "directions", "variances")


def descriptor(features: Features, codec: Codec) -> NDArray[np.float64]:
    """Mean and log standard deviation of the feature map of every block, timestep and channel: float64 (d,)."""
    parts: list[NDArray[np.float64]] = []
    for name in sorted(features.maps):
        variances, means = torch.var_mean(codec.decode(name, features.maps[name]), dim=(-2, -1))
        parts += [means.flatten().numpy(), np.log(variances.sqrt().flatten().numpy() + _FLOOR)]
    return np.concatenate(parts).astype(np.float64)


def residual(features: Features) -> float | None:
    """The inversion's residual, in units of the network's range [-1, 1]; None if it was not stored.

    At every step of the grid but the last, the network estimates the clean photograph. The root mean square error of
    these estimates inside the field of view is averaged over the steps by the geometric mean, since it is a hundred
    times larger at the last of them than at the first.
    """
    if not features.residuals:
        return None
    squares = np.maximum(list(features.residuals.values()), _LEAST_SQUARE)
    return float(np.exp(np.log(squares).mean() / 2))


def fit_domain(
    spec: FeatureSpec, descriptors: Iterable[NDArray[np.float64]], residuals: Sequence[float | None] = ()
) -> Domain:
    """Fit the statistics of training images' descriptors, and a threshold by leaving out each image in turn.

    The threshold is the 0.99 quantile of the left-out images' distances, plus a margin of a tenth, since for a few
    dozen images that quantile is nearly their maximum. The usual range of residuals extends from their 0.01 to their
    0.99 quantile, with the same margin at either end.

    Args:
        residuals: residuals of the same images; if one is None, or none are given, residuals are not judged.

    Raises:
        DataError: fewer than five images.
    """
    if len(images := list(descriptors)) < MIN_IMAGES:
        raise DataError(f"expected at least {MIN_IMAGES} images to fit a domain to, got {len(images)}")
    descriptors = np.stack(images).astype(np.float64)
    left_out = [_gaussian(spec, np.delete(descriptors, i, 0)).distance(one) for i, one in enumerate(descriptors)]
    whole = _gaussian(spec, descriptors)
    threshold = MARGIN * float(np.quantile(left_out, QUANTILE))
    return replace(whole, threshold=threshold, residual_range=_usual(residuals))


def domain_of(card: Card, store: FeatureStore) -> Domain:
    """The domain of the images that an interpreter was trained and selected on.

    Raises:
        DataError: their features are not in the store, or the card names fewer than five.
    """
    ids, view = (*card.training_ids, *card.validation_ids), plain_view(card.training.views)
    keys = [Key(one, view) for one in ids]
    if missing := [one for one, there in zip(ids, store.has_each(card.spec, keys), strict=True) if not there]:
        raise DataError(
            f"{store.location} lacks features of {len(missing)} of the {len(ids)} images that the interpreter was "
            f"trained on, {missing[0][:12]} among them; extract them first"
        )
    return domain_of_stored(store, card.spec, keys)


def domain_of_stored(store: FeatureStore, spec: FeatureSpec, keys: Iterable[Key]) -> Domain:
    """The domain of some images whose features are in the store; DataError for fewer than five."""
    codec, descriptors, residuals = store.codec(spec), [], []
    for key in keys:
        features = store.entry(spec, key).features()
        descriptors.append(descriptor(features, codec))
        residuals.append(residual(features))
    return fit_domain(spec, descriptors, residuals)


def load_domain(folder: Path, spec: FeatureSpec) -> Domain | None:
    """The domain stored in an interpreter's folder; None if there is none.

    Raises:
        CheckpointError: it is damaged, or was fitted to features of another spec.
    """
    path = folder / DOMAIN_FILE
    require_intact(folder, DOMAIN_FILE, otherwise=CheckpointError)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in _ARRAYS}
        rest, threshold = json.loads(metadata["numbers"])
        digest, usual = metadata["spec"], json.loads(metadata.get("residual_range", "null"))
        residual_range = None if usual is None else (float(usual[0]), float(usual[1]))
    except Exception as error:  # safetensors raises different types for damaged files
        raise CheckpointError(f"{path}: cannot be read ({error}); fit the domain again") from error
    if digest != spec.digest:
        raise CheckpointError(f"{path}: fitted to features {digest[:12]}, the interpreter reads {spec.digest[:12]}")
    return Domain(digest, **arrays, rest=float(rest), threshold=float(threshold), residual_range=residual_range)


def _usual(residuals: Sequence[float | None]) -> Range | None:
    """The usual range of residuals, margin included; None if there are none, or one is not known."""
    known = [one for one in residuals if one is not None]
    if not known or len(known) < len(residuals):
        return None
    lowest, highest = np.quantile(known, [1 - QUANTILE, QUANTILE])
    return float(lowest) / MARGIN, float(highest) * MARGIN


def _gaussian(spec: FeatureSpec, descriptors: NDArray[np.float64]) -> Domain:
    """Mean and shrunk covariance of n descriptors; variance outside their span is the shrunk mean. No threshold yet."""
    n, d = descriptors.shape
    mean, scale = descriptors.mean(axis=0), descriptors.std(axis=0) + _FLOOR
    away = (descriptors - mean) / scale
    _, singular, directions = np.linalg.svd(away, full_matrices=False)
    kept = singular > singular.max() * 1e-9
    variances = singular[kept] ** 2 / n
    total = float(variances.sum()) / d  # the mean variance; 1 if no entry of the descriptor is constant
    shrinkage = _shrinkage(away, variances, total)
    return Domain(
        spec.digest, mean, scale, directions[kept], (1 - shrinkage) * variances + shrinkage * total,
        shrinkage * total, float("inf"),
    )  # fmt: skip


def _shrinkage(away: NDArray[np.float64], variances: NDArray[np.float64], total: float) -> float:
    """The weight of the mean variance (Ledoit and Wolf 2004, lemma 3.3 and section 3.2), clipped to 0.01..1.

    In the paper's letters the weight is b^2 / d^2 with d^2 = |S - m I|^2 and b^2 = 1/n^2 sum_k |x_k x_k' - S|^2, both
    divided by the descriptor's length (here ``spread`` and ``noise``).
    """
    n, d = away.shape
    squared = float((variances**2).sum()) / d
    spread = squared - total**2
    lengths = (away**2).sum(axis=1)
    noise = (float((lengths**2).sum()) / d / n - squared) / n
    return float(np.clip(noise / spread, 0.01, 1.0)) if spread > 0 else 1.0
