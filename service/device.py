"""The single thread that owns a device: waiting photographs are inverted in batches, other work one by one."""

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
from service.errors import Abandoned, Busy, DeviceLost, DeviceOutOfMemory
from service.metrics import Metrics
from service.single_flight import Wanted
from store.features import Features
from store.memory import keep_freed_memory

logger = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass
class _Queued:
    wanted: Wanted
    future: Future[Any] = field(default_factory=Future, init=False)
    queued: float = field(default_factory=time.perf_counter, init=False)
    waited: float = field(default=0.0, init=False)


@dataclass
class _Inversion(_Queued):
    extractor: Extractor
    prepared: Prepared


@dataclass
class _Call(_Queued):
    work: Callable[[], Any]


class Device:
    """A device and its thread.

    Args:
        name: cpu, cuda or cuda:N.
        batch: most photographs that are inverted together; a batch has a single extractor.
        wait: seconds that a batch waits to be filled.
        metrics: metrics that record batch sizes.

    Attributes:
        lost: whether the device has failed for good in this process; all work is then refused with DeviceLost.
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
        """Return the features of a photograph, and the seconds that it waited in the queue.

        It is inverted in one batch with others that wait.

        Raises:
            Abandoned: it was not wanted any more when its turn came.
            Busy: the device is closed.
            DeviceOutOfMemory: the device has no memory for it now.
            DeviceLost: the device has failed for good.
        """
        inversion = _Inversion(wanted, extractor, prepared)
        self._add(self._inversions, inversion)
        features: Features = inversion.future.result()
        return features, inversion.waited

    def run(self, work: Callable[[], T], wanted: Wanted) -> tuple[T, float]:
        """Return the result of work that needs the device, and the seconds that it waited in the queue.

        Such work goes before inversions, because it completes answers that have been begun.

        Raises:
            Abandoned: it was not wanted any more when its turn came.
            Busy: the device is closed.
            DeviceOutOfMemory: the device has no memory for it now.
            DeviceLost: the device has failed for good.
        """
        call = _Call(wanted, work)
        self._add(self._calls, call)
        result: T = call.future.result()
        return result, call.waited

    def close(self) -> None:
        """Finish everything in the queues, then stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated by tensors on a CUDA device; 0 on a CPU, where they are part of the process's memory."""
        return int(torch.cuda.memory_allocated(self.name)) if self.name.startswith("cuda") else 0

    def _add(self, queue: deque[Any], item: _Queued) -> None:
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
        """Wait for the next call or batch and return it; None once the device is closed and its queues are empty."""
        with self._changed:
            while True:
                self._drop_unwanted()
                if self._calls:
                    return self._calls.popleft()
                if self._inversions:
                    batch = self._take_batch()
                    if batch:
                        return batch
                    continue
                if self._closed:
                    return None
                self._changed.wait()

    def _take_batch(self) -> list[_Inversion]:
        """Take the first inversion and others of its extractor from the queue, after a short wait for more of them.

        The lock must be held. The batch is empty if nobody wants these inversions any more.
        """
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
        features = _features_of(batch) if len(batch) > 1 else None
        for i, one in enumerate(batch):
            if features is not None:
                one.future.set_result(features[i])
            else:
                self._settle(one.future, lambda one=one: one.extractor.features([one.prepared])[0])  # type: ignore[misc]
        for done in batch[0].extractor.take_fallbacks():
            logger.warning("an image overflowed half precision and was done in float32", image=done)

    def _settle(self, future: Future[Any], work: Callable[[], Any]) -> None:
        """Settle a future with the result or error of ``work``; with DeviceLost once the device is lost."""
        try:
            if self.lost:
                raise DeviceLost
            result = work()
        except Exception as error:
            if isinstance(error, RuntimeError) and not self._computes():
                logger.critical("the device has failed, the process must be restarted", problem=str(error))
                self.lost = True
                error = DeviceLost(by_this=True)
            elif isinstance(error, (DeviceFull, torch.OutOfMemoryError)):
                logger.warning("the device has no memory for a photograph", problem=str(error))
                error = DeviceOutOfMemory("the device has no memory for a photograph now; ask again later")
            future.set_exception(error)
        else:
            future.set_result(result)

    def _computes(self) -> bool:
        """Return whether the device still works: after some errors a CUDA context never does again."""
        try:
            return bool(torch.ones(1, device=self.name).item() == 1)
        except torch.OutOfMemoryError:
            return True
        except RuntimeError:
            return False


def _features_of(batch: Sequence[_Inversion]) -> list[Features] | None:
    """Return the features of a batch; None if it fails: one photograph must not fail the others, so each goes alone."""
    try:
        return batch[0].extractor.features([one.prepared for one in batch])
    except Exception:
        return None  # with the exception, whatever it kept on the device is freed
