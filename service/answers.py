"""Answers, and those that are kept. R network's square, H, W native size, n classes, t timesteps."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from interpreter.domain import DomainScore
from interpreter.expected import expected_of
from interpreter.metrics import finite_or_none
from interpreter.prediction import Prediction, disagreement, labels_from_masks, native_probabilities, vote
from store.geometry import Geometry, Interpolation


@dataclass(frozen=True)
class Answer:
    """What is known about one photograph.

    Attributes:
        image_id: sha256 of its bytes.
        model: name of the model; ``version`` of its files.
        spec: digest of the features that were read.
        classes: names of all classes, background first.
        colours: of classes 1, 2, ...
        timesteps: those that were read.
        voters: names of those that voted: the timesteps, unless the model reads several at once.
        mirrored: the photograph's three mirror images were read, too.
        labels: class ids, uint8 (H, W); of overlapping classes the last one that is there.
        layers: where classes may overlap, the pixels of each but the background, bool (n - 1, H, W); else None.
        prediction: at the network's size.
        fov: bool (R, R).
        geometry: between both sizes.
        cached: its features, or the answer, were there already.
        forwards: network forwards that were run.
        bytes_stored: bytes written to the store.
        seconds: by stage.
        warnings: what the reader should know.
        domain: how far it is from the training images; None where the model cannot tell.
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

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The pixels of a class, bool (H, W); those of the background are the pixels of no other class."""
        return np.asarray(self.labels == index if self.layers is None or index == 0 else self.layers[index - 1])

    @property
    def key(self) -> str | None:
        """What ``/v1/features`` calls the features of this photograph; None where none were needed."""
        return feature_key(self.spec, self.image_id) if self.spec else None

    @property
    def agreement(self) -> NDArray[np.float32]:
        """float32 (R, R): share of voters for what was chosen (1 of 1); of overlapping classes the smallest."""
        p = self.prediction
        steps = np.float32(len(p.labels_by_voter))
        if self.layers is None:
            return np.asarray(np.take_along_axis(p.votes, p.labels[None], axis=0)[0] / steps)
        return np.asarray(np.where(p.masks, p.votes[1:], steps - p.votes[1:]).min(axis=0) / steps)

    @property
    def mean_agreement(self) -> float:
        """Mean share of voters for what was chosen, inside the field of view; 1 where there is one."""
        return float(self.agreement[self.fov].mean())

    @property
    def expected_dice(self) -> dict[str, float | None]:
        """Of each class but the background, what Dice its mask would have if the probabilities were true.

        None where it was not found.
        """
        return dict(zip(self.classes[1:], map(finite_or_none, expected_of(self.prediction, self.fov)), strict=True))

    @property
    def uncertainty(self) -> NDArray[np.float32]:
        """float32 (R, R): entropy of the votes over its largest possible value, 0 where all agree, at most 1."""
        choices = 2 if self.layers is not None else len(self.classes)  # each overlapping class is there, or not
        largest = np.log(max(2, min(len(self.prediction.labels_by_voter), choices)))
        return np.asarray(self.prediction.disagreement / largest, dtype=np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        p = self.prediction
        arrays = [self.labels, self.fov, p.labels, p.probabilities, p.votes, p.disagreement, p.labels_by_voter]
        arrays += [p.masks, p.masks_by_voter] + ([] if self.layers is None else [self.layers])
        return sum(array.nbytes for array in arrays)

    def native_fov(self) -> NDArray[np.bool_]:
        """bool (H, W)."""
        return self.geometry.restore(self.fov).astype(np.bool_)

    def native_probabilities(self) -> NDArray[np.float32]:
        """float32 (n, H, W): mean over timesteps; 0 outside the field of view."""
        return np.ascontiguousarray(native_probabilities(self.prediction, self.fov, self.geometry))

    def native_map(self, square: NDArray[np.generic], interpolation: Interpolation) -> NDArray[np.generic]:
        """A map (R, R) at native size (H, W), 0 outside the field of view."""
        native = self.geometry.restore(square, interpolation)
        native[~self.native_fov()] = 0
        return native


def at_threshold(answer: Answer, threshold: float) -> Answer:
    """The same photograph with other labels: the likeliest class but the background where its probability is enough.

    Of classes that may overlap, each is there where its own probability is enough.

    Args:
        threshold: of the mean probability over timesteps, within 0..1.
    """
    native, square = answer.native_probabilities()[1:], answer.prediction.probabilities[1:]
    enough = (native >= threshold) & answer.native_fov()
    if answer.layers is not None:
        return _layered(answer, enough, square >= threshold)
    labels = np.where(enough.any(axis=0), native.argmax(axis=0) + 1, 0).astype(np.uint8)
    return _labelled(answer, labels, np.where(square.max(axis=0) >= threshold, square.argmax(axis=0) + 1, 0))


def of_classes(answer: Answer, names: Sequence[str]) -> Answer:
    """The same answer with every class but these left to the background: labels, votes, probabilities, everything."""
    kept = np.array([name in names for name in answer.classes[1:]])
    if answer.layers is not None:
        chosen = kept[:, None, None]
        return _layered(_voting(answer, kept), answer.layers & chosen, answer.prediction.masks & chosen)
    others = np.flatnonzero(~kept) + 1
    labels, square = (np.where(np.isin(x, others), 0, x) for x in (answer.labels, answer.prediction.labels))
    return _labelled(_voting(answer, kept), labels, square)


def _voting(answer: Answer, kept: NDArray[np.bool_]) -> Answer:
    """The answer as if there were some classes only: who chose none of them chose the background."""
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


def _labelled(answer: Answer, labels: NDArray[np.integer], square: NDArray[np.integer]) -> Answer:
    """The answer with other labels, (H, W) and (R, R)."""
    masks = np.stack([square == c for c in range(1, len(answer.classes))])
    prediction = replace(answer.prediction, labels=square.astype(np.uint8), masks=masks)
    return replace(answer, labels=labels.astype(np.uint8), prediction=prediction)


def _layered(answer: Answer, layers: NDArray[np.bool_], square: NDArray[np.bool_]) -> Answer:
    """The answer with other masks of overlapping classes, (n - 1, H, W) and (n - 1, R, R)."""
    prediction = replace(answer.prediction, labels=labels_from_masks(square), masks=square)
    return replace(answer, labels=labels_from_masks(layers), layers=layers, prediction=prediction)


def of_field_of_view(
    image_id: str, fov: NDArray[np.bool_], resolution: int, seconds: dict[str, float], warnings: tuple[str, ...]
) -> Answer:
    """The field of view as an answer of two classes.

    Args:
        fov: bool (H, W).
        resolution: R.
    """
    geometry = Geometry.whole(fov.shape[0], fov.shape[1], resolution)
    square = geometry.apply(fov).astype(np.bool_)
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
    )


def feature_key(spec: str, image_id: str) -> str:
    """A name for a photograph's features: 16 digits of the spec, a dot, the image's sha256."""
    return f"{spec[:16]}.{image_id}"


class AnswerCache:
    """Finished answers, the least recently used ones dropped beyond so many bytes.

    Args:
        limit: bytes; 0 keeps none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._answers: OrderedDict[Hashable, Answer] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Hashable) -> Answer | None:
        """An answer as if just made: cached, without forwards."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                return None
            self._answers.move_to_end(key)
        return replace(answer, cached=True, forwards=0, bytes_stored=0, seconds={})

    def put(self, key: Hashable, answer: Answer) -> None:
        """Keep an answer, if it is not larger than all that may be kept."""
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
        """Drop all answers to one photograph."""
        with self._lock:
            for key in [key for key, answer in self._answers.items() if answer.image_id == image_id]:
                self.bytes -= self._answers.pop(key).nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._answers.clear()
            self.bytes = 0
