"""The prediction of each voter, and the vote among them. Evaluation and the service share this code.

t  voters: timesteps, models of an ensemble, or one that reads all timesteps    n  classes, background included
R  network's square    H, W  native size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from interpreter.errors import NonFinitePrediction
from interpreter.network import Interpreter
from store.encoded import Encoded
from store.features import Features
from store.geometry import Geometry, Interpolation
from store.views import flipped_axes


@dataclass(frozen=True)
class Prediction:
    """The outcome of a vote at the network's size.

    Attributes:
        labels: uint8 (R, R), the class with most votes; ties go to the larger mean probability. If classes
            overlap, the last one that is present.
        probabilities: float32 (n, R, R), mean over voters. If classes overlap, each is between 0 and 1 on its
            own, and the background's is 1 minus the largest of the others.
        votes: uint8 (n, R, R), how many voters chose each class.
        disagreement: float32 (R, R), entropy of the votes in nats, 0 where all agree; if classes overlap, the
            largest entropy of any class.
        labels_by_voter: uint8 (t, R, R), each voter's own labels.
        masks: bool (n - 1, R, R), the pixels of each class but the background.
        masks_by_voter: bool (t, n - 1, R, R), each voter's own masks.
        overlapping: whether classes may overlap.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    votes: NDArray[np.uint8]
    disagreement: NDArray[np.float32]
    labels_by_voter: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    masks_by_voter: NDArray[np.bool_]
    overlapping: bool = False


def vote(probabilities: NDArray[np.float32]) -> Prediction:
    """Majority vote among classes that exclude each other; ties go to the larger mean probability.

    Args:
        probabilities: float32 (t, n, R, R), summing to one over n.
    """
    steps, classes = probabilities.shape[:2]
    labels_by_voter = probabilities.argmax(axis=1).astype(np.uint8)
    votes = np.stack([(labels_by_voter == c).sum(axis=0) for c in range(classes)]).astype(np.uint8)
    mean = probabilities.mean(axis=0, dtype=np.float32)
    leading = votes == votes.max(axis=0)
    labels = np.where(leading, mean, -1).argmax(axis=0).astype(np.uint8)
    masks = np.stack([labels == c for c in range(1, classes)])
    masks_by_voter = np.stack([labels_by_voter == c for c in range(1, classes)], axis=1)
    return Prediction(labels, mean, votes, disagreement(votes, steps), labels_by_voter, masks, masks_by_voter)


def vote_overlapping(probabilities: NDArray[np.float32]) -> Prediction:
    """Majority vote on each class by itself; ties are decided by whether the mean probability exceeds 0.5.

    Args:
        probabilities: float32 (t, n - 1, R, R), for each class but the background.
    """
    steps = len(probabilities)
    by_voter = probabilities > 0.5
    votes = by_voter.sum(axis=0)
    mean = probabilities.mean(axis=0, dtype=np.float32)
    masks = (2 * votes > steps) | ((2 * votes == steps) & (mean > 0.5))
    nobody = (~by_voter.any(axis=1)).sum(axis=0)
    of_each = np.concatenate([nobody[None], votes]).astype(np.uint8)
    return Prediction(
        labels_from_masks(masks),
        np.concatenate([1 - mean.max(axis=0, keepdims=True), mean]),
        of_each,
        disagreement(of_each, steps, overlapping=True),
        np.stack([labels_from_masks(one) for one in by_voter]),
        masks,
        by_voter,
        overlapping=True,
    )


def disagreement(votes: NDArray[np.uint8], steps: int, *, overlapping: bool = False) -> NDArray[np.float32]:
    """Entropy of the votes in nats, float32 (R, R); if classes overlap, the largest entropy of any class.

    Args:
        votes: uint8 (n, R, R), how many voters chose each class.
        steps: number of voters.
    """
    shares = (votes / np.float32(steps)).astype(np.float32)
    if overlapping:
        return np.asarray((_entropy(shares[1:]) + _entropy(1 - shares[1:])).max(axis=0) + 0.0)
    return np.asarray(_entropy(shares).sum(axis=0) + 0.0)


def largest_disagreement(voters: int, choices: int) -> float:
    """The largest entropy, in nats, that the votes of some voters for some choices can have: split as evenly as can be.

    Three voters cannot split their votes evenly between two choices, so this may be less than log(choices).
    """
    each, more = divmod(voters, choices)
    shares = np.array([each + 1] * more + [each] * (choices - more), dtype=np.float32) / np.float32(voters)
    return float(_entropy(shares).sum())


def predict(
    interpreter: Interpreter,
    maps: Mapping[str, Encoded],
    fov: NDArray[np.bool_],
    mirrored: Mapping[str, Features] | None = None,
) -> Prediction:
    """Segment one photograph with each voter, and vote.

    Args:
        maps: stored maps {block: Encoded (t, k, h, w)} at the timesteps of the interpreter's spec.
        fov: bool (R, R), the field of view.
        mirrored: features of the same photograph in flipped views (``store.views.FLIPS``), by view. Each voter's
            probabilities are then averaged over all views, after flipping them back.

    Raises:
        NonFinitePrediction: the interpreter computes NaN or infinity.
    """
    mirrored = mirrored or {}
    probabilities = _probabilities(interpreter, maps, fov)
    for view, features in mirrored.items():
        reversed_ = _probabilities(interpreter, features.maps, features.fov)
        probabilities += np.flip(reversed_, flipped_axes(view))
    probabilities /= np.float32(1 + len(mirrored))
    return vote_overlapping(probabilities) if interpreter.config.overlapping else vote(probabilities)


@torch.inference_mode()
def _probabilities(
    interpreter: Interpreter, maps: Mapping[str, Encoded], fov: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Probabilities of each voter, float32 (t, n, R, R); (t, n - 1, R, R), without background, if classes overlap."""
    interpreter.eval()
    logits = torch.cat([one.float() for one in interpreter.votes(maps, fov)]) / interpreter.temperature
    if not bool(logits.isfinite().all()):  # a vote over them would be a unanimous one for the background
        raise NonFinitePrediction(
            "the interpreter computes NaN or infinity for this photograph: its weights are damaged, or its training "
            "diverged; train it again"
        )
    squashed = torch.sigmoid(logits) if interpreter.config.overlapping else torch.softmax(logits, dim=1)
    probabilities: NDArray[np.float32] = squashed.cpu().numpy()
    return probabilities


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A vote at the network's size, which is brought to native size when that is asked for.

    Attributes:
        prediction: the vote.
        fov: field of view, bool (R, R).
        geometry: mapping between native and network's size.
    """

    prediction: Prediction
    fov: NDArray[np.bool_]
    geometry: Geometry

    @cached_property
    def labels(self) -> NDArray[np.uint8]:
        """Class ids uint8 (H, W), 0 outside the field of view; if classes overlap, the last one that is present.

        Votes plus mean probability rank the classes exactly as the vote does. Resized to native size before the largest
        is taken, they give smooth outlines, where resized labels would give steps.
        """
        if self.prediction.overlapping:
            return labels_from_masks(self.masks)
        planes = _restored(self.prediction.votes + self.prediction.probabilities, self.geometry)
        best = next(planes)
        labels = np.zeros(best.shape, dtype=np.uint8)
        for c, plane in enumerate(planes, 1):
            labels[plane > best] = c
            np.maximum(best, plane, out=best)
        labels[~self.native_fov] = 0
        return labels

    @cached_property
    def masks(self) -> NDArray[np.bool_]:
        """The pixels of each class but the background, bool (n - 1, H, W), none outside the field of view."""
        if not self.prediction.overlapping:
            return np.stack([self.labels == c for c in range(1, len(self.prediction.votes))])
        votes, probabilities = self.prediction.votes[1:], self.prediction.probabilities[1:]
        half = np.float32(len(self.prediction.labels_by_voter) / 2)
        # Positive exactly where the vote finds the class: more than half of the votes, or half and a mean above 0.5.
        scores = votes - half + np.float32(0.99) * (probabilities - np.float32(0.5))
        return np.stack([(plane > 0) & self.native_fov for plane in _restored(scores, self.geometry)])

    @property
    def layers(self) -> NDArray[np.bool_] | None:
        """``masks`` if classes may overlap; None otherwise, since the labels then say everything."""
        return self.masks if self.prediction.overlapping else None

    @cached_property
    def native_fov(self) -> NDArray[np.bool_]:
        """The field of view, bool (H, W)."""
        return self.geometry.restore(self.fov).astype(np.bool_)


def segment(
    interpreter: Interpreter, features: Features, mirrored: Mapping[str, Features] | None = None
) -> Segmentation:
    """Segment a photograph from its features, and from those of its mirror images if given (``predict``)."""
    prediction = predict(interpreter, features.maps, features.fov, mirrored)
    return Segmentation(prediction, features.fov, features.geometry)


def native_probabilities(prediction: Prediction, fov: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.float32]:
    """Mean probabilities, float32 (n, H, W); 0 outside the field of view, where nothing is predicted."""
    outside = ~geometry.restore(fov).astype(np.bool_)
    native = np.empty((len(prediction.probabilities), geometry.height, geometry.width), dtype=np.float32)
    for i, plane in enumerate(_restored(prediction.probabilities, geometry)):
        native[i] = plane
    native[:, outside] = 0
    return native


def _restored(planes: NDArray[np.float32], geometry: Geometry) -> Iterator[NDArray[np.float32]]:
    """Yield each plane of (k, R, R) at native size, float32 (H, W); one at a time, since photographs may be large."""
    for plane in planes:
        yield geometry.restore(np.ascontiguousarray(plane, dtype=np.float32), Interpolation.AREA).astype(np.float32)


def _entropy(shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """-p log p, 0 at 0."""
    entropy: NDArray[np.float32] = -(shares * np.log(np.where(shares > 0, shares, 1))).astype(np.float32)
    return entropy


def labels_from_masks(masks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Class ids, uint8 (...), of masks bool (n - 1, ...): the last class present in each pixel, 0 where none is."""
    labels = np.zeros(masks.shape[1:], dtype=np.uint8)
    for i, mask in enumerate(masks, 1):
        labels[mask] = i
    return labels
