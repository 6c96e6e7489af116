"""From the bytes of a photograph to an answer: the features cached, one prediction for each timestep, a vote.

H, W  native size of the photograph
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from extractor.extraction import Extractor
from extractor.images import MAX_PIXELS, decode_image, image_id
from extractor.presets import open_backbone
from interpreter.checkpoint import Card, load_interpreter
from interpreter.network import Interpreter
from interpreter.prediction import Prediction, segment
from store.claims import Claims
from store.errors import DamagedEntry, MissingEntry, StoreFull
from store.feature_store import FeatureStore
from store.features import Features, Key, entry_path

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Answer:
    """What is known about one photograph.

    Attributes:
        image_id: sha256 of its bytes.
        pixels: the photograph, uint8 (H, W, 3).
        labels: class ids, uint8 (H, W).
        prediction: at the network's size.
        fov: bool (R, R).
        cached: its features were in the store already.
        forwards: network forwards that were run.
        bytes_stored: bytes written to the store.
        seconds: by stage.
        warnings: what the reader should know.
    """

    image_id: str
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    prediction: Prediction
    fov: NDArray[np.bool_]
    cached: bool
    forwards: int
    bytes_stored: int
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def mean_agreement(self) -> float:
        """Mean share of timesteps that voted for the label, inside the field of view."""
        votes = self.prediction.votes
        return float((votes.max(axis=0) / votes.sum(axis=0))[self.fov].mean())


@dataclass
class _Work:
    """Bookkeeping of one request."""

    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    bytes_stored: int = 0
    forwards: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Engine:
    """Models in memory and the store they share with the trainer; safe to call from several threads.

    Args:
        extractor: makes the features that the interpreter reads.
        interpreter: in evaluation mode.
        card: of the interpreter.
        store: looked into first; new features are written to it.
        max_pixels: larger photographs are refused.
    """

    def __init__(
        self,
        extractor: Extractor,
        interpreter: Interpreter,
        card: Card,
        store: FeatureStore,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        interpreter.spec.require(extractor.spec)
        self.extractor, self.interpreter, self.card, self.store = extractor, interpreter, card, store
        self._max_pixels = max_pixels
        self._registered = False
        self._device = threading.Lock()  # one request at a time has the network

    def segment(self, data: bytes, name: str = "image") -> Answer:
        """Segment one photograph.

        Args:
            data: contents of an image file.
            name: for messages.

        Raises:
            ImageError: no photograph; NoFieldOfView: nothing lit in it.
        """
        work = _Work()
        key = Key(image_id(data))
        with work.stage("decode"):
            pixels = decode_image(data, name, self._max_pixels)
        with self._device:
            features = self._cached(key, work)
            cached = features is not None
            if features is None:
                features = self._extracted(pixels, name, key, work)
            with work.stage("interpret"):
                prediction, labels = segment(self.interpreter, features)
        return Answer(
            image_id=key.image_id,
            pixels=pixels,
            labels=labels,
            prediction=prediction,
            fov=features.fov,
            cached=cached,
            forwards=work.forwards,
            bytes_stored=work.bytes_stored,
            seconds=work.seconds,
            warnings=tuple(work.warnings),
        )

    def _cached(self, key: Key, work: _Work) -> Features | None:
        with work.stage("read"):
            try:
                if self.store.has(self.extractor.spec, key):
                    return self.store.entry(self.extractor.spec, key).features()
            except (MissingEntry, DamagedEntry) as error:
                logger.warning("cached features are damaged and made anew", problem=str(error))
                work.warnings.append("cached features were damaged and have been made anew")
            except OSError as error:
                logger.warning("the store cannot be read", problem=str(error))
                work.warnings.append("the feature store cannot be read")
        return None

    def _extracted(self, pixels: NDArray[np.uint8], name: str, key: Key, work: _Work) -> Features:
        """Invert and store; an answer is given even if that fails. The maps are in the store's own type."""
        before = self.extractor.forwards
        with work.stage("prepare"):
            prepared = self.extractor.render(pixels, key, name)
        with work.stage("invert"):
            features = self.extractor.features([prepared])[0]
        work.forwards = self.extractor.forwards - before
        with work.stage("store"):
            try:
                work.bytes_stored = self._store(key, features)
            except (StoreFull, OSError) as error:
                logger.warning("features could not be stored", problem=str(error))
                work.warnings.append("features could not be stored; the next request inverts again")
        return features

    def _store(self, key: Key, features: Features) -> int:
        """Keep the features, unless another process is just about to."""
        spec, claims = self.extractor.spec, Claims(self.store.objects)
        if not self._registered:  # not at start-up: the engine answers without a store, too
            self.store.register(spec, self.card.backbone, self.interpreter.codebook)
            self._registered = True
        if not claims.take(entry_path(spec, key)):
            return 0
        try:
            return self.store.write(spec, key, features)
        finally:
            claims.release(entry_path(spec, key))


def load_engine(
    model: str, store: Path | str, backbone: str | None = None, device: str = "cpu", max_pixels: int = MAX_PIXELS
) -> Engine:
    """Load an interpreter, the backbone it reads, and the store."""
    interpreter, card = load_interpreter(model)
    network = open_backbone(backbone or card.backbone, card.spec.precision, device)
    extractor = Extractor(network, card.spec, interpreter.codebook)
    return Engine(extractor, interpreter.to(device), card, FeatureStore(store), max_pixels)
