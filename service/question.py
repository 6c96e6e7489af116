"""The values that pass through the engine: its limits, questions, the bookkeeping of their work, and results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from extractor.images import MAX_PIXELS
from service.errors import Abandoned, BadRequest, NotFound
from service.metrics import Metrics
from service.models import Model
from service.photographs import FORMATS
from store.spec import FeatureSpec
from store.views import IDENTITY, MIRRORED

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much an engine does at once, and what it accepts.

    A service takes these from the settings of the same names, some of which have other defaults.

    Attributes:
        max_pixels: most pixels of one image.
        formats: names of the image formats that are accepted.
        batch: most images inverted together.
        batch_wait: seconds to wait for a batch to fill.
        queue: most images in progress or queued.
        answers_bytes: most bytes of the cache of finished answers; 0 disables it.
        store_timeout: seconds until an operation of the feature store is given up.
    """

    max_pixels: int = MAX_PIXELS
    formats: tuple[str, ...] = FORMATS
    batch: int = 1
    batch_wait: float = 0.01
    queue: int = 32
    answers_bytes: int = 0
    store_timeout: float = 60.0


@dataclass(frozen=True)
class Question:
    """A request to segment one photograph with one model.

    Attributes:
        image_id: sha256 of the photograph's bytes.
        data: bytes of the photograph; None if they were not sent, so that its features must be in the store.
        model: model that answers.
        timesteps: timesteps that vote; all of the model's if None.
        mirrored: whether the photograph's three mirror images are read as well.
        deleted: when the photograph was deleted last before the question was posed (``time.monotonic``); 0 if not
            lately. Work that began before a deletion keeps nothing, so later questions must not share it.
    """

    image_id: str
    data: bytes | None
    model: Model
    timesteps: tuple[int, ...] | None = None
    mirrored: bool = False
    deleted: float = 0.0

    @property
    def views(self) -> tuple[str, ...]:
        """Views to read. The photograph itself comes last: a store that deletes the oldest then keeps it longest."""
        return MIRRORED if self.mirrored else (IDENTITY,)

    @property
    def key(self) -> tuple[object, ...]:
        """Key that is equal for questions with equal answers.

        Whether the photograph was sent is part of it: without it there are no warnings about its quality, and features
        that are not stored cannot be extracted.
        """
        return (
            self.image_id,
            self.data is None,
            self.model.name,
            self.model.version,
            self.timesteps,
            self.mirrored,
            self.deleted,
        )


@dataclass
class Work:
    """Bookkeeping of the work on one answer.

    Attributes:
        metrics: metrics that record the time of each stage.
        wanted: returns whether anybody still waits for the answer.
        seconds: seconds spent in each stage.
        warnings: warnings about the photograph, which are cached with the answer.
        troubles: warnings about the store, which are not, since they need not apply later.
        bytes_stored: bytes written to the feature store.
        all_stored: whether the store accepted everything so far.
        forwards: network forwards that were run.
    """

    metrics: Metrics
    wanted: Callable[[], bool]
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    bytes_stored: int = 0
    all_stored: bool = True
    forwards: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that a block of code takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent(name, time.perf_counter() - started)

    def check(self) -> None:
        """Raise Abandoned if nobody waits any more; called between the stages of the work."""
        if not self.wanted():
            raise Abandoned("nobody waits for this answer any more")

    def on_device(self, name: str, work: Callable[[], tuple[T, float]]) -> T:
        """Return the result of work on the device, and record its time.

        Args:
            name: stage that the time is added to, except that spent in the queue, which is the stage ``queue``.
            work: returns its result and the seconds that it waited in the queue.
        """
        started = time.perf_counter()
        result, waited = work()
        self.spent("queue", waited)
        self.spent(name, time.perf_counter() - started - waited)
        return result

    def spent(self, name: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.metrics.observe(name, seconds)


@dataclass(frozen=True)
class FeaturesResult:
    """The features of one photograph, after they were extracted or found in the store.

    Attributes:
        key: their key in ``/v1/features``.
        image_id: sha256 of the photograph's bytes.
        spec: spec of the features.
        cached: whether all of them were in the store already.
        forwards: network forwards that were run.
        stored: whether all of them are in the store now, or being stored by another process.
    """

    key: str
    image_id: str
    spec: FeatureSpec
    cached: bool
    forwards: int
    stored: bool


def subset(model: Model, timesteps: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the timesteps that are asked for in the order of the model's spec; None for all of them.

    Raises:
        NotFound: the spec does not keep one of them.
        BadRequest: they are not all timesteps, and the model can only read all of them at once.
    """
    spec = model.card.spec
    if timesteps is None:
        return None
    if missing := sorted(set(timesteps) - set(spec.timesteps)):
        raise NotFound(f"timesteps {missing} are not kept by this model; it has {', '.join(map(str, spec.timesteps))}")
    chosen = tuple(t for t in spec.timesteps if t in set(timesteps))
    if chosen == spec.timesteps:
        return None
    if model.interpreter.head.all_timesteps:
        raise BadRequest(
            f"{model.name} reads all its timesteps at once and cannot read some of them; ask without timesteps"
        )
    return chosen
