"""Answers about photographs, and a cache of finished ones.

R  side of the network's square    H, W  native size of the photograph    n  classes, background included
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from interpreter.domain import DomainScore
from interpreter.expected import expected_of
from interpreter.metrics import finite_or_none
from interpreter.prediction import (
    Prediction,
    disagreement,
    labels_from_masks,
    largest_disagreement,
    native_probabilities,
    vote,
)
from service.models import feature_key
from service.options import Options
from store.geometry import Geometry, Interpolation


class Box(NamedTuple):
    """A rectangle in native pixels, which may reach beyond the photograph."""

    top: int
    left: int
    height: int
    width: int


class Area(NamedTuple):
    """The area of a class: in pixels of the photograph, and as a share of the field of view, 0..1."""

    pixels: int
    share: float


@dataclass(frozen=True)
class Answer:
    """The segmentation of one photograph, with everything that is reported about it.

    Attributes:
        image_id: sha256 of the photograph's bytes.
        model: name of the model.
        version: version of the model's files.
        spec: digest of the feature spec that the model reads; empty where no features were needed.
        classes: names of all classes, background first.
        colours: colours of classes 1, 2, ...
        timesteps: timesteps that were read.
        voters: names of the voters: the timesteps, unless the model reads several at once.
        mirrored: whether the photograph's three mirror images were read as well.
        labels: class ids, uint8 (H, W); where classes overlap, the last one present.
        layers: where classes may overlap, the mask of each but the background, bool (n - 1, H, W); else None.
        prediction: the vote at the network's size.
        fov: field of view, bool (R, R).
        geometry: mapping between native and network's size.
        seen: the part of the photograph that was looked at: what ``geometry`` crops to, if None.
        cached: whether all its features were in the store, or the answer itself was in the cache.
        forwards: network forwards that were run for this answer.
        bytes_stored: bytes written to the feature store.
        seconds: seconds spent in each stage; empty if the answer was in the cache.
        warnings: messages for the reader about the photograph and the store.
        domain: distance from the training images; None where the model has no statistics of them.
    """

    image_id: str
    model: str
    version: str
    spec: str
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    timesteps: tuple[int, ...]
    voters: tuple[str, ...]
    labels: NDArray[np.uint8]
    prediction: Prediction
    fov: NDArray[np.bool_]
    geometry: Geometry
    cached: bool
    forwards: int
    bytes_stored: int
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()
    domain: DomainScore | None = None
    layers: NDArray[np.bool_] | None = None
    mirrored: bool = False
    seen: Box | None = None

    @property
    def box(self) -> Box:
        """The part of the photograph that was looked at."""
        g = self.geometry
        return self.seen or Box(g.top, g.left, g.box_height, g.box_width)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the mask of a class, bool (H, W); the background's has the pixels that belong to no other class."""
        return np.asarray(self.labels == index if self.layers is None or index == 0 else self.layers[index - 1])

    @property
    def key(self) -> str | None:
        """The key of this photograph's features in ``/v1/features``; None where no features were needed."""
        return feature_key(self.spec, self.image_id) if self.spec else None

    @property
    def abstain(self) -> bool | None:
        """Whether the photograph is unlike the training images; None where the model has no statistics of them."""
        return None if self.domain is None else self.domain.abstain

    @property
    def areas(self) -> dict[str, Area]:
        """{class: its area at native size}, the background included."""
        seen, areas = self.native_fov(), dict[str, Area]()
        for i, name in enumerate(self.classes):
            mask = self.mask(i)
            areas[name] = Area(int(np.count_nonzero(mask)), float(mask[seen].mean()))
        return areas

    @property
    def agreement(self) -> NDArray[np.float32]:
        """Share of voters that agree with the result, float32 (R, R); where classes overlap, the smallest share of any.

        A single voter always agrees.
        """
        p = self.prediction
        steps = np.float32(len(p.labels_by_voter))
        if self.layers is None:
            return np.asarray(np.take_along_axis(p.votes, p.labels[None], axis=0)[0] / steps)
        return np.asarray(np.where(p.masks, p.votes[1:], steps - p.votes[1:]).min(axis=0) / steps)

    @property
    def mean_agreement(self) -> float:
        """Mean agreement inside the field of view; 1 where there is a single voter."""
        return float(self.agreement[self.fov].mean())

    @property
    def expected_dice(self) -> dict[str, float | None]:
        """Expected Dice of each class but the background: what its mask would score if the probabilities were true.

        None for a class that was not found.
        """
        return dict(zip(self.classes[1:], map(finite_or_none, expected_of(self.prediction, self.fov)), strict=True))

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """Entropy of the votes divided by its largest possible value, float32 (R, R): 0 where all agree, at most 1.

        A single voter always agrees.
        """
        choices = 2 if self.layers is not None else len(self.classes)  # for an overlapping class: present or absent
        largest = largest_disagreement(len(self.prediction.labels_by_voter), choices)
        return np.asarray(self.prediction.disagreement / (largest or 1.0), dtype=np.float32)

    @property
    def nbytes(self) -> int:
        """Memory of the answer's arrays, in bytes."""
        p = self.prediction
        arrays = [self.labels, self.fov, p.labels, p.probabilities, p.votes, p.disagreement, p.labels_by_voter]
        arrays += [p.masks, p.masks_by_voter] + ([] if self.layers is None else [self.layers])
        return sum(array.nbytes for array in arrays)

    def native_fov(self) -> NDArray[np.bool_]:
        """Return the field of view at native size, bool (H, W)."""
        return self.geometry.restore(self.fov).astype(np.bool_)

    def native_probabilities(self) -> NDArray[np.float32]:
        """Return the mean probabilities over voters at native size, float32 (n, H, W); 0 outside the field of view."""
        return np.ascontiguousarray(native_probabilities(self.prediction, self.fov, self.geometry))

    def native_map(self, square: NDArray[np.generic], interpolation: Interpolation) -> NDArray[np.generic]:
        """Return a map (R, R) resized to native size (H, W), with 0 outside the field of view."""
        native = self.geometry.restore(square, interpolation)
        native[~self.native_fov()] = 0
        return native


def relabelled(answer: Answer, options: Options) -> Answer:
    """Return the answer with the options' ``threshold`` and restricted to their ``labels``, where these are given.

    Raises:
        NotFound: the model has no such class.
    """
    options.require_classes(answer.classes)
    if options.threshold is not None:
        answer = at_threshold(answer, options.threshold)
    return answer if options.labels is None else restricted_to(answer, options.labels)


def at_threshold(answer: Answer, threshold: float) -> Answer:
    """Return the answer with labels from a threshold instead of the vote.

    A pixel gets the likeliest class other than the background where the probability of that class reaches the
    threshold. Where classes may overlap, each is present where its own probability does.

    Args:
        threshold: least probability, averaged over voters, 0..1.
    """
    native, square = answer.native_probabilities()[1:], answer.prediction.probabilities[1:]
    enough = (native >= threshold) & answer.native_fov()
    if answer.layers is not None:
        return _with_masks(answer, enough, square >= threshold)
    labels = np.where(enough.any(axis=0), native.argmax(axis=0) + 1, 0).astype(np.uint8)
    return _with_labels(answer, labels, np.where(square.max(axis=0) >= threshold, square.argmax(axis=0) + 1, 0))


def restricted_to(answer: Answer, names: Sequence[str]) -> Answer:
    """Return the answer with all classes but ``names`` merged into the background: labels, votes and probabilities."""
    kept = np.array([name in names for name in answer.classes[1:]])
    if answer.layers is not None:
        chosen = kept[:, None, None]
        return _with_masks(_restricted_votes(answer, kept), answer.layers & chosen, answer.prediction.masks & chosen)
    others = np.flatnonzero(~kept) + 1
    labels, square = (np.where(np.isin(x, others), 0, x) for x in (answer.labels, answer.prediction.labels))
    return _with_labels(_restricted_votes(answer, kept), labels, square)


def _restricted_votes(answer: Answer, kept: NDArray[np.bool_]) -> Answer:
    """Return the answer as if only the classes ``kept``, bool (n - 1,), existed.

    A voter that chose another class counts for the background.
    """
    before, overlapping = answer.prediction, answer.layers is not None
    by_voter = before.masks_by_voter & kept[:, None, None]
    votes = np.concatenate([(~by_voter.any(axis=1)).sum(axis=0)[None], by_voter.sum(axis=0)]).astype(np.uint8)
    probabilities = before.probabilities * np.append(True, kept)[:, None, None]
    if overlapping:
        probabilities[0] = 1 - probabilities[1:].max(axis=0)
    else:
        probabilities[0] += before.probabilities[1:][~kept].sum(axis=0)
    now = replace(
        before,
        votes=votes,
        probabilities=probabilities,
        disagreement=disagreement(votes, len(by_voter), overlapping=overlapping),
        labels_by_voter=np.stack([labels_from_masks(one) for one in by_voter]),
        masks_by_voter=by_voter,
    )
    return replace(answer, prediction=now)


def _with_labels(answer: Answer, labels: NDArray[np.integer], square: NDArray[np.integer]) -> Answer:
    """Return the answer with other labels: ``labels`` (H, W) and ``square`` (R, R)."""
    masks = np.stack([square == c for c in range(1, len(answer.classes))])
    prediction = replace(answer.prediction, labels=square.astype(np.uint8), masks=masks)
    return replace(answer, labels=labels.astype(np.uint8), prediction=prediction)


def _with_masks(answer: Answer, layers: NDArray[np.bool_], square: NDArray[np.bool_]) -> Answer:
    """Return the answer with other masks of overlapping classes: ``layers`` (n - 1, H, W), ``square`` (n - 1, R, R)."""
    prediction = replace(answer.prediction, labels=labels_from_masks(square), masks=square)
    return replace(answer, labels=labels_from_masks(layers), layers=layers, prediction=prediction)


def of_field_of_view(
    image_id: str, fov: NDArray[np.bool_], resolution: int, seconds: dict[str, float], warnings: tuple[str, ...]
) -> Answer:
    """Return the field of view as an answer of two classes.

    Args:
        fov: field of view at native size, bool (H, W).
        resolution: side R of the network's square.
    """
    geometry = Geometry.whole(fov.shape[0], fov.shape[1], resolution)
    square = geometry.apply(fov).astype(np.bool_)
    rows, columns = (np.flatnonzero(fov.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    return Answer(
        image_id=image_id,
        model="field of view",
        version="1",
        spec="",
        classes=("outside", "field of view"),
        colours=("#ffffff",),
        timesteps=(),
        voters=("field of view",),
        labels=fov.astype(np.uint8),
        prediction=vote(np.stack([~square, square]).astype(np.float32)[None]),
        fov=np.ones_like(square),
        geometry=geometry,
        cached=False,
        forwards=0,
        bytes_stored=0,
        seconds=seconds,
        warnings=warnings,
        seen=Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left),
    )


class AnswerCache:
    """A cache of finished answers, bounded in bytes; the least recently used are evicted first.

    Args:
        limit: most bytes to keep; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Hashable) -> Answer | None:
        """Return a cached answer, marked as such and without forwards, stored bytes or seconds; None on a miss."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                return None
            self._answers.move_to_end(key)
        return replace(answer, cached=True, forwards=0, bytes_stored=0, seconds={})

    def put(self, key: Hashable, answer: Answer) -> None:
        """Keep an answer and evict others as needed; one that is larger than the limit is not kept."""
        size = answer.nbytes
        if size > self._limit:
            return
        with self._lock:
            if key in self._answers:
                self.bytes -= self._answers.pop(key).nbytes
            self._answers[key] = answer
            self.bytes += size
            while self.bytes > self._limit:
                _, dropped = self._answers.popitem(last=False)
                self.bytes -= dropped.nbytes

    def forget(self, image_id: str) -> None:
        """Drop all answers about one photograph."""
        with self._lock:
            for key in [key for key, answer in self._answers.items() if answer.image_id == image_id]:
                self.bytes -= self._answers.pop(key).nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._answers.clear()
            self.bytes = 0
