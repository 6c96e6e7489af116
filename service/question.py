"""What is asked of the engine and what it keeps count of: the values that pass through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from extractor.images import MAX_PIXELS
from service.errors import BadRequest, NotFound
from service.metrics import Metrics
from service.models import Model
from service.photographs import FORMATS
from store.spec import FeatureSpec
from store.views import IDENTITY, MIRRORED

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """How much an engine does at once, and what it reads: settings of the same names have defaults for a service.

    Attributes:
        max_pixels: of one image.
        formats: that are read.
        batch: images inverted together; ``batch_wait`` seconds are waited for them.
        queue: images at work or waiting.
        answers_bytes: memory for finished answers.
        store_timeout: seconds until a store that hangs is left alone.
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
    """What is asked about one photograph.

    Attributes:
        image_id: sha256 of its bytes.
        data: the bytes; None where its features must be in the store.
        name: for messages.
        model: reads them.
        timesteps: that vote; all of the model's if None.
        mirrored: its three mirror images are read, too.
    """

    image_id: str
    data: bytes | None
    name: str
    model: Model
    timesteps: tuple[int, ...] | None = None
    mirrored: bool = False

    @property
    def views(self) -> tuple[str, ...]:
        """What is read of the photograph: itself last, so that a store that forgets the oldest keeps it longest."""
        return MIRRORED if self.mirrored else (IDENTITY,)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for questions with equal answers: who sent no photograph may be told that it is needed, and nothing
        can be said of how sharp it is."""
        return self.image_id, self.data is None, self.model.name, self.model.version, self.timesteps, self.mirrored


@dataclass
class Work:
    """Bookkeeping of one answer.

    Attributes:
        wanted: whether anybody still waits for it.
        seconds: by stage.
        warnings: what the reader should know of the photograph.
        troubles: likewise of the store, which later answers need not have.
        bytes_stored: written to the store.
        all_stored: nothing was refused by it.
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
        """Count the time of a block of code towards a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent(name, time.perf_counter() - started)

    def on_device(self, name: str, work: Callable[[], tuple[T, float]]) -> T:
        """The result of work on the device; the time it waited there is the stage ``queue``, the rest this stage."""
        started = time.perf_counter()
        result, waited = work()
        self.spent("queue", waited)
        self.spent(name, time.perf_counter() - started - waited)
        return result

    def spent(self, name: str, seconds: float) -> None:
        """Count some time towards a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.metrics.observe(name, seconds)


@dataclass(frozen=True)
class FeaturesResult:
    """Features that have been made or found.

    Attributes:
        key: what ``/v1/features`` calls them.
        spec: what they are.
        stored: all of them are in the store, or another process is just storing them.
    """

    key: str
    image_id: str
    spec: FeatureSpec
    cached: bool
    forwards: int
    stored: bool


def subset(model: Model, timesteps: Sequence[int] | None) -> tuple[int, ...] | None:
    """Timesteps in the order of the model's spec; None for all of them.

    Raises:
        NotFound: the spec does not keep one.
        BadRequest: the model reads all of them at once.
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
