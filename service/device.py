"""The one thread that owns a device: photographs that wait are inverted in one batch, everything else in turn."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import torch

from extractor.errors import DeviceFull
from extractor.extraction import Extractor, Prepared
from service.errors import Abandoned, Busy, DeviceLost, NoRoom
from service.metrics import Metrics
from store.features import Features
from store.memory import keep_freed_memory

logger = structlog.get_logger(__name__)
T = TypeVar("T")
Wanted = Callable[[], bool]


@dataclass
class _Inversion:
    extractor: Extractor
    prepared: Prepared
    wanted: Wanted
    future: Future[Features] = field(default_factory=Future)
    queued: float = field(default_factory=time.perf_counter)
    waited: float = 0.0


@dataclass
class _Call:
    work: Callable[[], Any]
    wanted: Wanted
    future: Future[Any] = field(default_factory=Future)
    queued: float = field(default_factory=time.perf_counter)
    waited: float = 0.0


class Device:
    """A device and its thread.

    Args:
        name: cpu, cuda or cuda:N.
        batch: photographs of one extractor that are inverted together, at most.
        wait: seconds that a batch waits for company.
        metrics: batch sizes are counted there.

    Attributes:
        lost: the device computes no more in this process; everything that is asked of it is refused with DeviceLost.
    """

    def __init__(self, name: str, batch: int, wait: float, metrics: Metrics) -> None:
        self.name, self.batch = name, batch
        self.lost = False
        self._wait, self._metrics = wait, metrics
        self._inversions: deque[_Inversion] = deque()
        self._calls: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"device {name}", daemon=True)
        self._thread.start()

    def invert(self, extractor: Extractor, prepared: Prepared, wanted: Wanted) -> tuple[Features, float]:
        """Features of a photograph, inverted with others that wait, and the seconds that it waited itself.

        Raises:
            Abandoned: it was not wanted any more when its turn came.
            NoRoom: the device has no memory for it now.
            DeviceLost: the device computes no more.
        """
        inversion = _Inversion(extractor, prepared, wanted)
        self._add(self._inversions, inversion)
        return inversion.future.result(), inversion.waited

    def run(self, work: Callable[[], T], wanted: Wanted) -> tuple[T, float]:
        """The result of work that needs the device, and the seconds that it waited.

        It goes before inversions: it finishes what was begun.

        Raises:
            Abandoned: it was not wanted any more when its turn came.
            NoRoom: the device has no memory for it now.
            DeviceLost: the device computes no more.
        """
        call = _Call(work, wanted)
        self._add(self._calls, call)
        result: T = call.future.result()
        return result, call.waited

    def close(self) -> None:
        """Finish what waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def memory_bytes(self) -> int:
        """Bytes that tensors take on a CUDA device; 0 on CPUs, where they are the process's own."""
        return int(torch.cuda.memory_allocated(self.name)) if self.name.startswith("cuda") else 0

    def _add(self, queue: deque[Any], item: _Inversion | _Call) -> None:
        with self._changed:
            if self._closed:
                raise Busy("the service is stopping")
            if self.lost:
                raise DeviceLost
            queue.append(item)
            self._changed.notify_all()

    def _run(self) -> None:
        if self.name == "cpu":
            keep_freed_memory()
        while (work := self._next()) is not None:
            if isinstance(work, _Call):
                work.waited = time.perf_counter() - work.queued
                self._settle(work.future, work.work)
            else:
                self._invert(work)

    def _next(self) -> _Call | list[_Inversion] | None:
        """What to do next, None at the end."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if self._calls:
                    return self._calls.popleft()
                if self._inversions:
                    batch = self._gathered()
                    if batch:
                        return batch
                    continue
                if self._closed:
                    return None
                self._changed.wait()

    def _gathered(self) -> list[_Inversion]:
        """The first inversion and those that can go with it; waits a little for more. Under the lock."""
        extractor, until = self._inversions[0].extractor, time.monotonic() + self._wait
        while self.batch > 1 and not self._calls and not self._closed:
            left = until - time.monotonic()
            if left <= 0 or sum(one.extractor is extractor for one in self._inversions) >= self.batch:
                break
            self._changed.wait(left)
        self._drop_unwanted()
        batch = [one for one in self._inversions if one.extractor is extractor][: self.batch]
        for one in batch:
            self._inversions.remove(one)
        return batch

    def _drop_unwanted(self) -> None:
        queues: tuple[deque[Any], ...] = (self._calls, self._inversions)
        for queue in queues:
            gone = [item for item in queue if not item.wanted()]
            for item in gone:
                queue.remove(item)
                item.future.set_exception(Abandoned("nobody waits for this answer any more"))

    def _invert(self, batch: Sequence[_Inversion]) -> None:
        self._metrics.batch_size.observe(len(batch))
        for one in batch:
            one.waited = time.perf_counter() - one.queued
        try:
            features = batch[0].extractor.features([one.prepared for one in batch])
        except Exception:  # one photograph's trouble is not the others': each alone
            for one in batch:
                self._settle(one.future, lambda one=one: one.extractor.features([one.prepared])[0])  # type: ignore[misc]
        else:
            for one, its in zip(batch, features, strict=True):
                one.future.set_result(its)
        for done in batch[0].extractor.take_fallbacks():
            logger.warning("half precision could not hold an image, it was done in float32", image=done)

    def _settle(self, future: Future[Any], work: Callable[[], Any]) -> None:
        """Do what somebody waits for; of a lost device all learn the same."""
        try:
            if self.lost:
                raise DeviceLost
            result = work()
        except Exception as error:
            if isinstance(error, RuntimeError) and not self._computes():
                logger.critical("the device computes no more, the process has to be started anew", problem=str(error))
                self.lost = True
                error = DeviceLost(by_this=True)
            elif isinstance(error, (DeviceFull, torch.OutOfMemoryError)):
                logger.warning("the device has no room for a photograph", problem=str(error))
                error = NoRoom("the device has no memory for a photograph now; ask again later")
            future.set_exception(error)
        else:
            future.set_result(result)

    def _computes(self) -> bool:
        """Whether the device still works: after some errors a CUDA context never does again."""
        try:
            return bool(torch.ones(1, device=self.name).item() == 1)
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False
