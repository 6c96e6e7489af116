"""The state that routes share (settings, engine, keys, jobs), and the dependencies that give them access to it."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from service.engine import Engine, load_engine
from service.errors import Abandoned, Conflict, Forbidden, NotReady
from service.flights import Flight, Ticket, deadline_error
from service.job_runner import JobRunner
from service.job_storage import JobStorage
from service.jobs import JobLimits, Jobs
from service.metrics import HttpMetrics
from service.models import load_models
from service.question import Limits
from service.security import Admission, Keys, presented_key
from service.settings import FIXED_AT_START, FIXED_IN_ENGINE, Settings
from service.sources import Sources
from service.uploads import UploadBudget, release_body
from store.objects import open_objects

logger = structlog.get_logger(__name__)
T = TypeVar("T")
_POLL = 0.25
_LIMITS = tuple(one.name for one in dataclasses.fields(Limits))
"""Settings that are limits of the engine; a reload cannot change them once the models are loaded."""


class Context:
    """The state of one application.

    Args:
        settings: settings of the operator.
        load: returns the engine; by default, one that is loaded as the settings say.
        read_settings: reads the settings again, for a reload; by default, they stay the same.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], Engine] | None = None,
        read_settings: Callable[[], Settings] | None = None,
    ) -> None:
        self._load = load or (lambda: engine_from(self.settings))
        self._read_settings = read_settings or (lambda: settings)
        self.engine: Future[Engine] = Future()
        self.runner: JobRunner | None = None
        jobs = Jobs(open_objects(settings.jobs_location), _job_limits(settings))
        self.jobs = JobStorage(jobs, settings.store_timeout)
        self.http = HttpMetrics()
        self.sources = Sources({})
        self.rendering = asyncio.Semaphore(2)
        self._reloading = threading.Lock()
        self._adopt(settings, Keys(settings.api_keys))

    def start(self) -> None:
        """Load the models, then resume interrupted jobs. An error is logged and kept in ``engine``."""
        try:
            engine = self._load()
            self.runner = JobRunner(self.jobs.jobs, engine, self.settings, self.sources)
            self.runner.start()
        except Exception as error:
            logger.exception("models could not be loaded")
            self.engine.set_exception(error)
        else:
            self.engine.set_result(engine)
            logger.info("ready", models=list(engine.models.by_name))

    def reload(self) -> list[str]:
        """Read settings, keys and models again; return the names of the models.

        Work under way is finished with the old ones. If the models could not be loaded before, the new settings are
        adopted at once and loading is tried again; otherwise an error in settings or models is raised and leaves
        everything as it was.

        Raises:
            Conflict: another reload is under way.
            NotReady: the models are still being loaded, or could not be loaded again.
        """
        if not self._reloading.acquire(blocking=False):
            raise Conflict("a reload is under way")
        try:
            failed = self.load_error() is not None
            fixed = FIXED_AT_START if failed else (*FIXED_AT_START, *FIXED_IN_ENGINE, *_LIMITS)
            settings, ignored = self.settings.reloaded(self._read_settings(), fixed)
            if ignored:
                logger.warning("these settings have changed and need a restart", settings=ignored)
            keys = Keys(settings.api_keys)
            if failed:  # there is no working state to preserve
                self._adopt(settings, keys)
                self.engine = Future()
                self.start()
                return list(self.ready_engine().models.by_name)
            engine = self.ready_engine()
            names = (settings.model, *settings.models)
            models = load_models(names, settings.backbone, engine.device.name, engine.models.extractors())
            engine.replace_models(models)
            self._adopt(settings, keys)
            logger.info("reloaded", models=list(models.by_name), keys=sum(map(len, settings.api_keys.values())))
            return list(models.by_name)
        finally:
            self._reloading.release()

    def stop(self) -> None:
        """Stop: jobs after the photographs that are being segmented, the engine after the work that has begun."""
        if self.runner is not None:
            self.runner.stop()
        self.jobs.close()
        self.sources.close()
        if (engine := self.loaded_engine()) is not None:
            engine.close()

    def require_admin(self, key: str, doing: str) -> None:
        """Raise Forbidden unless the operator listed the key's name in ``admins``; ``doing`` completes the message."""
        if key not in self.settings.admins:
            raise Forbidden(f"only the keys named in admins may {doing}")

    def loaded_engine(self) -> Engine | None:
        """Return the engine; None while it is being loaded, or if that failed."""
        return self.engine.result() if self.engine.done() and self.load_error() is None else None

    def load_error(self) -> BaseException | None:
        """Return why the engine could not be loaded; None if it is there, or still being loaded."""
        return self.engine.exception() if self.engine.done() else None

    def ready_engine(self) -> Engine:
        """Return the engine; raises NotReady while it is being loaded, or if that failed."""
        if self.load_error() is not None:
            raise NotReady("models could not be loaded; the log of the service says why", retry_after=30)
        if (engine := self.loaded_engine()) is None:
            raise NotReady("models are still being loaded; try again in a few seconds")
        return engine

    def _adopt(self, settings: Settings, keys: Keys) -> None:
        self.settings, self.keys = settings, keys
        self.uploads = UploadBudget(settings.uploads_bytes, settings.upload_seconds)
        self.jobs.jobs.limits, self.jobs.timeout = _job_limits(settings), settings.store_timeout
        former, self.sources = self.sources, Sources(settings.folders, settings.store_timeout)
        if self.runner is not None:
            self.runner.adopt(settings, self.sources)
        former.close()
        self.admission = Admission(settings.rate, settings.key_requests, settings.max_requests)


def _job_limits(settings: Settings) -> JobLimits:
    room = min(settings.jobs_bytes, settings.memory_bytes) if settings.keep_nothing else settings.jobs_bytes
    return JobLimits(settings.max_jobs, settings.job_hours, room)


def engine_from(settings: Settings) -> Engine:
    """Load the engine that the settings describe, and run every model once."""
    limits = Limits(**{name: getattr(settings, name) for name in _LIMITS})
    memory = settings.memory_bytes if settings.keep_nothing else None
    names = (settings.model, *settings.models)
    engine = load_engine(names, settings.store_location, settings.backbone, settings.device, limits, memory)
    try:
        engine.warm()
    except BaseException:
        engine.close()
        raise
    return engine


# Coroutines, because FastAPI runs plain functions in threads, which may all be blocked by a storage that hangs.
async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _engine(request: Request) -> Engine:
    return (await _context(request)).ready_engine()


_bearer = HTTPBearer(auto_error=False, description="An API key, where the operator has set some")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key, in a header of its own")


async def _known(
    request: Request, _one: Annotated[Any, Security(_bearer)], _other: Annotated[Any, Security(_header)]
) -> str:
    """Return the name of the request's API key."""
    return (await _context(request)).keys.name_of(presented_key(request.headers))


async def _admitted(request: Request, name: Annotated[str, Depends(_known)]) -> AsyncIterator[str]:
    """Yield the name of the request's API key while the request counts towards the limits of keys and of the service.

    The memory of its body is given back afterwards.
    """
    context = await _context(request)
    with context.admission.admit(name):
        try:
            yield name
        finally:
            release_body(request)


SharedContext = Annotated[Context, Depends(_context)]
ReadyEngine = Annotated[Engine, Depends(_engine)]
Admitted = Annotated[str, Depends(_admitted)]


async def wait_for_flight(request: Request, engine: Engine, flight: Flight[T], ticket: Ticket) -> T:
    """Wait for the result of a flight, until the deadline passes or the client disconnects.

    Raises:
        Busy: the deadline passed while the flight was queued.
        DeadlinePassed: the deadline passed while it was running.
        Abandoned: the client has disconnected.
    """
    future = asyncio.wrap_future(flight.future)
    # Retrieves the exception in any case, so that asyncio does not complain if nobody waits for it any more.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        while ticket.wanted and not future.done():
            await asyncio.wait({future}, timeout=min(_POLL, ticket.remaining or _POLL))
            if not future.done() and await request.is_disconnected():
                raise Abandoned("the client went away")
        if not future.done() or future.cancelled() or isinstance(future.exception(), Abandoned):
            raise deadline_error(flight)
        return future.result()
    finally:
        engine.leave(flight, ticket)
