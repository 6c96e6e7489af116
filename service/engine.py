"""From the bytes of a photograph to an answer: cached features, one prediction for each timestep, a vote.

    request ── finished answers ── flights (one for each question) ── storage ── device (one thread) ── answer

Simultaneous requests for the same work share it, and work that nobody waits for any more leaves the queue
(docs/decisions/0011-engine.md).

H, W  native size of the photograph      R  side of the network's square
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from extractor.extraction import Prepared
from extractor.field_of_view import find_field_of_view
from extractor.images import image_id
from extractor.preprocess import Framed, NetworkInput
from interpreter.checkpoint import Card
from interpreter.domain import DomainScore
from interpreter.prediction import Segmentation, predict, segment
from service.answers import Answer, AnswerCache, of_field_of_view
from service.device import Device
from service.errors import Conflict, NotFound
from service.finding import FeatureFinder
from service.flights import Flight, Flights, Ticket
from service.metrics import Metrics
from service.models import Model, Models, feature_key, load_models
from service.photographs import decode_photograph, quality_warnings
from service.question import FeaturesResult, Limits, Question, Work, subset
from service.storage import GuardedStore
from store.feature_store import FeatureStore
from store.features import Features, Key
from store.geometry import Geometry
from store.spec import FeatureSpec
from store.views import IDENTITY


class Engine:
    """Models in memory and the feature store they share with the trainer; safe to call from several threads.

    Args:
        models: the loaded models.
        storage: the feature store, looked up before anything is extracted; new features are written to it.
        limits: how much is done at once.
        metrics: counters that the engine updates.
        device: device that the models are on: cpu, cuda or cuda:N.
    """

    def __init__(
        self,
        models: Models,
        storage: GuardedStore,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        device: str = "cpu",
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.models, self.storage = models, storage
        self.device = Device(device, self.limits.batch, self.limits.batch_wait, self.metrics)
        self._answers = AnswerCache(self.limits.answers_bytes)
        self._finder = FeatureFinder(storage, self.device)
        joined = self.metrics.joined.inc
        self._flights: Flights[Any] = Flights(2 * self.limits.batch + 2, self.limits.queue, joined)
        self._at_native_size = threading.Semaphore(2)  # arrays are large there: two at a time, whatever the pool's size
        gauge = self.metrics.gauge
        gauge("diffdgss_queue_length", "Images in progress or queued", lambda: self._flights.count)
        gauge("diffdgss_answer_cache_bytes", "Memory of finished answers", lambda: self._answers.bytes)
        gauge("diffdgss_device_memory_bytes", "Memory of tensors on the device", lambda: self.device.memory_bytes)
        gauge("diffdgss_models", "Models loaded", lambda: len(self.models.by_name))

    @property
    def card(self) -> Card:
        """The card of the default model."""
        return self.models.default.card

    def segment(
        self,
        data: bytes,
        model: str | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        mirrored: bool = False,
    ) -> Answer:
        """Segment one photograph. Blocks until it is done, and waits for a place in the queue if that is full.

        Args:
            data: contents of an image file.
            model: name of the model; the default model if None.
            timesteps: timesteps that vote; all of the model's if None.
            mirrored: read the photograph's three mirror images as well, for four times the work.

        Raises:
            ImageError: not a photograph.
            NoFieldOfView: nothing in it is lit.
            NotFound: no such model here, or it does not keep these timesteps.
            BadRequest: timesteps were given, and the model can only read all of its timesteps at once.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"expected the bytes of an image file (Path.read_bytes), got {type(data).__name__}")
        ticket = Ticket()
        question = self.question(data, model, timesteps, mirrored=mirrored)
        known = self.cached_answer(question)
        return known or self._flights.wait(self.ask(question, ticket, patient=True), ticket)

    def question(
        self,
        data: bytes,
        model: str | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        mirrored: bool = False,
    ) -> Question:
        """Return the question about a photograph that these arguments pose (see ``segment``).

        Raises:
            NotFound: no such model here, or it does not keep these timesteps.
            BadRequest: timesteps were given, and the model can only read all of its timesteps at once.
        """
        chosen = self.models.get(model)
        return self._posed(image_id(data), data, chosen, timesteps, mirrored=mirrored)

    def question_by_key(
        self, key: str, model: str | None, timesteps: Sequence[int] | None = None, *, mirrored: bool = False
    ) -> Question:
        """Return the question about a photograph whose features are in the store already, named by their key.

        Args:
            key: key of the features, as made by ``feature_key``.
            model: name of the model; any model that reads these features if None.

        Raises:
            NotFound: no such features for this model, or it does not keep these timesteps.
            BadRequest: timesteps were given, and the model can only read all of its timesteps at once.
        """
        readers, image = self.models.readers(key)
        reader = readers[0] if model is None else self.models.get(model)
        if all(one is not reader for one in readers):
            raise NotFound(
                f"{reader.name} reads no features of this spec; {', '.join(one.name for one in readers)} can"
            )
        return self._posed(image, None, reader, timesteps, mirrored=mirrored)

    def _posed(
        self,
        image: str,
        data: bytes | None,
        model: Model,
        timesteps: Sequence[int] | None,
        *,
        mirrored: bool,
    ) -> Question:
        deleted = self._finder.last_deleted(model.card.spec, image)
        return Question(image, data, model, subset(model, timesteps), mirrored, deleted)

    def cached_answer(self, question: Question) -> Answer | None:
        """Return the cached answer to a question; None if there is none."""
        answer = self._answers.get(question.key)
        if answer is not None:
            self.metrics.answers.labels(question.model.name, "answers").inc()
        return answer

    def ask(self, question: Question, ticket: Ticket, *, patient: bool = False) -> Flight[Answer]:
        """Submit a question, or join the flight that is answering it already.

        Args:
            patient: wait for a place in the queue instead of being refused.

        Raises:
            Busy: the queue is full, and the caller is not patient.
        """
        key = ("answer", *question.key)
        return self._flights.join(key, ticket, lambda flight: self._answer(question, flight), patient=patient)

    def ask_features(self, question: Question, ticket: Ticket) -> Flight[FeaturesResult]:
        """Submit the extraction of a photograph's features into the store, or join it; stored ones are used as is.

        The flight fails with Conflict if the photograph is deleted meanwhile.
        """
        spec = question.model.card.spec.digest
        key = ("features", question.image_id, spec, question.views, question.deleted)
        return self._flights.join(key, ticket, lambda flight: self._made_or_found(question, flight))

    def ask_field_of_view(self, data: bytes, ticket: Ticket) -> Flight[Answer]:
        """Submit the search for the field of view alone, answered with two classes; no network is run."""
        image = image_id(data)
        return self._flights.join(("fov", image), ticket, lambda _: self._field_of_view(data, image))

    def leave(self, flight: Flight[Any], ticket: Ticket) -> None:
        """Stop waiting for a flight; one that has not begun and that nobody else waits for is cancelled."""
        self._flights.leave(flight, ticket)

    def forget(self, spec: FeatureSpec, image_id: str) -> int:
        """Delete a photograph's features, in every view, and its cached answers; return the number of views deleted.

        What is being made of it at this moment is answered, but neither stored nor cached.
        """
        try:
            return self._finder.forget(spec, image_id)
        finally:  # after the deletion is known, so that no answer that was under way stays
            self._answers.forget(image_id)

    def warm(self) -> None:
        """Run every model once, so that the first request finds kernels compiled and memory allocated."""
        for model in self.models.by_name.values():
            self._warm(model)

    def replace_models(self, models: Models) -> None:
        """Answer with other models from now on; work under way is finished with the old ones."""
        known = {(model.name, model.version) for model in self.models.by_name.values()}
        for model in models.by_name.values():
            if (model.name, model.version) not in known:
                self._warm(model)
        self.models = models
        self._answers.clear()
        self.metrics.reloads.inc()

    def close(self) -> None:
        """Finish the work that has begun, and stop."""
        self._flights.close()
        self.device.close()
        self.storage.close()

    def _warm(self, model: Model) -> None:
        self.device.run(lambda: _run_once(model), lambda: True)

    def _answer(self, question: Question, flight: Flight[Any]) -> Answer:
        if (known := self.cached_answer(question)) is not None:  # finished while this question was queued
            return known
        work, model = Work(self.metrics, lambda: flight.wanted), question.model
        by_view, cached = self._finder.features(question, self._framed(question, work), work)
        timesteps = question.timesteps or model.card.spec.timesteps
        features, reader = by_view[IDENTITY], model.interpreter.with_timesteps(timesteps)
        mirrored = {view: one.with_timesteps(model.card.spec, timesteps) for view, one in by_view.items()}
        plain = mirrored.pop(IDENTITY)
        prediction = work.on_device(
            "interpret",
            lambda: self.device.run(lambda: predict(reader, plain.maps, plain.fov, mirrored), work.wanted),
        )
        with work.stage("interpret"):
            score = _scored(model, features, work.warnings)
        work.check()
        with self._at_native_size, work.stage("outline"):
            found = Segmentation(prediction, features.fov, features.geometry)
            labels, layers = found.labels, found.layers
        answer = Answer(
            image_id=question.image_id,
            model=model.name,
            version=model.version,
            spec=model.card.spec.digest,
            classes=model.card.task.classes,
            colours=model.card.task.palette,
            timesteps=timesteps,
            voters=reader.voters,
            mirrored=question.mirrored,
            labels=labels,
            prediction=prediction,
            fov=features.fov,
            geometry=features.geometry,
            cached=cached,
            forwards=work.forwards,
            bytes_stored=work.bytes_stored,
            seconds=work.seconds,
            warnings=tuple(dict.fromkeys([*work.warnings, *work.troubles])),
            domain=score,
            layers=layers,
        )
        self._count(answer)
        self._answers.put(question.key, replace(answer, warnings=tuple(dict.fromkeys(work.warnings))))
        if self._finder.is_deleted(question):
            self._answers.forget(question.image_id)
        return answer

    def _count(self, answer: Answer) -> None:
        self.metrics.answers.labels(answer.model, "store" if answer.cached else "inverted").inc()
        if (score := answer.domain) is None:
            return
        self.metrics.distance.labels(answer.model).observe(score.distance)
        if score.residual is not None:
            self.metrics.residual.labels(answer.model).observe(score.residual)
        if score.abstain:
            self.metrics.abstentions.labels(answer.model).inc()

    def _made_or_found(self, question: Question, flight: Flight[Any]) -> FeaturesResult:
        work, spec = Work(self.metrics, lambda: flight.wanted), question.model.card.spec
        _, cached = self._finder.features(question, self._framed(question, work), work)
        if self._finder.is_deleted(question):
            raise Conflict("the photograph was deleted while its features were made; ask again to have them stored")
        key = feature_key(spec.digest, question.image_id)
        return FeaturesResult(key, question.image_id, spec, cached, work.forwards, work.all_stored)

    def _framed(self, question: Question, work: Work) -> Framed | None:
        """Return the photograph cropped and resized for the network; None if only the key of its features was sent.

        Comes before the store is read, so that a file that is not an image is refused in any case, and its pixels are
        not held until then.
        """
        if question.data is None:
            return None
        with self._at_native_size, work.stage("decode"):
            pixels, fov = self._decoded(question.data, work)
            return question.model.extractor.frame(pixels, fov)

    def _decoded(self, data: bytes, work: Work) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the pixels of a photograph, uint8 (H, W, 3), and its field of view, bool (H, W)."""
        pixels = decode_photograph(data, self.limits.max_pixels, self.limits.formats)
        fov = find_field_of_view(pixels)
        work.warnings += quality_warnings(pixels, fov)
        return pixels, fov

    def _field_of_view(self, data: bytes, image: str) -> Answer:
        work = Work(self.metrics, lambda: True)
        with self._at_native_size, work.stage("decode"):
            _, fov = self._decoded(data, work)
        return of_field_of_view(image, fov, self.card.spec.resolution, work.seconds, tuple(work.warnings))


def load_engine(
    models: str | Sequence[str],
    store: Path | str,
    backbone: str | None = None,
    device: str = "cpu",
    limits: Limits | None = None,
    memory_bytes: int | None = None,
) -> Engine:
    """Load interpreters, the backbones they read, and the feature store.

    Args:
        models: shipped names or folders of interpreters; the first is the default model.
        store: location of the feature store.
        backbone: shipped name, folder or hub id of the backbone for all of them; the one that each card names if None.
        device: cpu, cuda or cuda:N.
        memory_bytes: most bytes of features to keep, of those that this process has written; beyond it the oldest
            are deleted. None keeps all.
    """
    metrics, limits = Metrics(), limits or Limits()
    loaded = load_models([models] if isinstance(models, str) else models, backbone, device)
    storage = GuardedStore(lambda: FeatureStore(store), metrics, limits.store_timeout, memory_bytes)
    try:
        return Engine(loaded, storage, limits, metrics, device)
    except BaseException:
        storage.close()
        raise


def _scored(model: Model, features: Features, warnings: list[str]) -> DomainScore | None:
    """Return how far the photograph is from the model's training images; None if it has no statistics of them."""
    if model.domain is None:
        return None
    score = model.domain.score(features, model.extractor.codec)
    if score.residual is None and score.residual_range is not None:
        warnings.append("the features were stored without their inversion's residual: trust is judged without it")
    return score


def _run_once(model: Model) -> None:
    """Invert and segment a blank image."""
    spec, extractor = model.card.spec, model.extractor
    side = spec.resolution
    nothing = NetworkInput(
        torch.zeros(1, 3, side, side), np.ones((side, side), np.bool_), Geometry.whole(side, side, side)
    )
    features = extractor.features([Prepared(Key("0" * 64), nothing)])[0]
    segment(model.interpreter, features)
