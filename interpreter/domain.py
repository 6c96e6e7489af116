"""How far a photograph's features are from those that an interpreter was fitted to.

A photograph's descriptor is, for every block, timestep and channel, the mean and the logarithm of the
standard deviation of its feature map: where and how strongly the backbone responds, not to what. The
descriptors of the training images are taken as draws from a Gaussian whose covariance is shrunk towards
its mean variance (Ledoit and Wolf 2004, in the dual form for few images of many numbers), and the
distance is Mahalanobis's, divided by the root of the descriptor's length.

    t  timesteps    c  channels of a block    n  images    d = 2 sum_blocks(t c) numbers of a descriptor

The threshold is fitted without the image it judges: each training image is measured against the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from interpreter.checkpoint import Card, require_sealed
from interpreter.errors import CheckpointError, TrainingDataError
from store.codecs import Codec
from store.feature_store import FeatureStore
from store.features import Features, Key
from store.spec import FeatureSpec

DOMAIN_FILE = "domain.safetensors"
QUANTILE = 0.99
MARGIN = 1.1
LEAST = 5
_FLOOR = 1e-6


@dataclass(frozen=True)
class DomainScore:
    """One photograph against the training images.

    Attributes:
        distance: root mean square of whitened numbers; about 1 for photographs like the training images.
        threshold: fitted on training images; larger distances are shifts.
    """

    distance: float
    threshold: float

    @property
    def abstain(self) -> bool:
        """Whether the answer should not be relied on."""
        return self.distance > self.threshold


@dataclass(frozen=True)
class Domain:
    """Statistics of the descriptors of an interpreter's training images.

    Attributes:
        spec: digest of the features.
        mean: float64 (d,).
        scale: float64 (d,), by which every number is divided before anything else.
        directions: float64 (m, d), orthonormal directions in which the training images differ.
        variances: float64 (m,), shrunk variances along them.
        rest: shrunk variance in every other direction.
        threshold: of the distance.
    """

    spec: str
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    directions: NDArray[np.float64]
    variances: NDArray[np.float64]
    rest: float
    threshold: float

    def score(self, features: Features, codec: Codec) -> DomainScore:
        """The distance of a photograph, with its features as they are stored."""
        return DomainScore(self.distance(descriptor(features, codec)), self.threshold)

    def distance(self, described: NDArray[np.float64]) -> float:
        """The distance of a descriptor, float64 (d,)."""
        away = (described - self.mean) / self.scale
        along = self.directions @ away
        outside = max(0.0, float(away @ away - along @ along))
        return float(np.sqrt(((along**2 / self.variances).sum() + outside / self.rest) / len(away)))

    def save(self, folder: Path) -> Path:
        """Write ``domain.safetensors`` beside the interpreter; returns its path."""
        path, partial = folder / DOMAIN_FILE, folder / f"{DOMAIN_FILE}.tmp"
        arrays = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in _ARRAYS}
        save_file(arrays, partial, {"spec": self.spec, "numbers": json.dumps([self.rest, self.threshold])})
        partial.rename(path)
        return path


_ARRAYS = ("mean", "scale", "directions", "variances")


def descriptor(features: Features, codec: Codec) -> NDArray[np.float64]:
    """Means and log standard deviations of every block, timestep and channel inside the map: float64 (d,)."""
    parts: list[NDArray[np.float64]] = []
    for name in sorted(features.maps):
        variances, means = torch.var_mean(codec.decode(name, features.maps[name]), dim=(-2, -1))
        parts += [means.flatten().numpy(), np.log(variances.sqrt().flatten().numpy() + _FLOOR)]
    return np.concatenate(parts).astype(np.float64)


def fit_domain(spec: FeatureSpec, descriptors: Sequence[NDArray[np.float64]] | Iterable[NDArray[np.float64]]) -> Domain:
    """Statistics of training images' descriptors, and a threshold from leaving each image out.

    The threshold is the 0.99 quantile of the left-out images' distances, with a margin of a tenth: of a few
    dozen images that quantile is nearly their maximum.

    Raises:
        TrainingDataError: fewer than five images.
    """
    described = np.stack(list(descriptors)).astype(np.float64)
    if len(described) < LEAST:
        raise TrainingDataError(f"expected at least {LEAST} images to fit a domain to, got {len(described)}")
    left_out = [_gaussian(spec, np.delete(described, i, 0)).distance(one) for i, one in enumerate(described)]
    whole = _gaussian(spec, described)
    threshold = MARGIN * float(np.quantile(left_out, QUANTILE))
    return Domain(whole.spec, whole.mean, whole.scale, whole.directions, whole.variances, whole.rest, threshold)


def domain_of(card: Card, store: FeatureStore) -> Domain:
    """The domain of the images that an interpreter was trained and selected on.

    Raises:
        TrainingDataError: their features are not in the store, or the card names fewer than five.
    """
    ids = (*card.training_ids, *card.validation_ids)
    if missing := [one for one in ids if not store.has(card.spec, Key(one))]:
        raise TrainingDataError(
            f"{store.location} lacks features of {len(missing)} of the {len(ids)} images that the interpreter was "
            f"trained on, {missing[0][:12]} among them; extract them first"
        )
    codec = store.codec(card.spec)
    return fit_domain(card.spec, (descriptor(store.entry(card.spec, Key(one)).features(), codec) for one in ids))


def load_domain(folder: Path, spec: FeatureSpec) -> Domain | None:
    """The statistics beside an interpreter; None if it has none.

    Raises:
        CheckpointError: damaged, or of other features.
    """
    path = folder / DOMAIN_FILE
    if not path.is_file():
        return None
    require_sealed(folder, DOMAIN_FILE)
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in _ARRAYS}
        rest, threshold = json.loads(metadata["numbers"])
        digest = metadata["spec"]
    except Exception as error:  # safetensors raises different types for damaged files
        raise CheckpointError(f"{path}: cannot be read ({error}); fit the domain again") from error
    if digest != spec.digest:
        raise CheckpointError(f"{path}: made of features {digest[:12]}, the interpreter reads {spec.digest[:12]}")
    return Domain(digest, **arrays, rest=float(rest), threshold=float(threshold))


def _gaussian(spec: FeatureSpec, described: NDArray[np.float64]) -> Domain:
    """Mean and shrunk covariance; what n images cannot tell of d numbers is the mean variance."""
    n, d = described.shape
    mean, scale = described.mean(axis=0), described.std(axis=0) + _FLOOR
    away = (described - mean) / scale
    _, singular, directions = np.linalg.svd(away, full_matrices=False)
    kept = singular > singular.max() * 1e-9
    variances = singular[kept] ** 2 / n
    total = float(variances.sum()) / d  # the mean variance, 1 where no number is constant
    shrinkage = _shrinkage(away, variances, total)
    return Domain(
        spec.digest, mean, scale, directions[kept], (1 - shrinkage) * variances + shrinkage * total,
        shrinkage * total, float("inf"),
    )  # fmt: skip


def _shrinkage(away: NDArray[np.float64], variances: NDArray[np.float64], total: float) -> float:
    """Ledoit and Wolf's weight of the mean variance (2004, lemma 3.3 and section 3.2), 0..1.

    d^2 = |S - m I|^2, b^2 = 1/n^2 sum_k |x_k x_k' - S|^2, both over d; the weight is b^2 / d^2.
    """
    n, d = away.shape
    squared = float((variances**2).sum()) / d
    spread = squared - total**2
    lengths = (away**2).sum(axis=1)
    noise = (float((lengths**2).sum()) / d / n - squared) / n
    return float(np.clip(noise / spread, 0.01, 1.0)) if spread > 0 else 1.0
