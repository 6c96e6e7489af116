"""One process's way through a list of photographs: decode ahead, run the network, write behind.

Memory is bounded: a batch and as many photographs as there are decoders wait for the network beside the batch that is
in it, and at most a batch (or as many as there are writers) waits to be written; whoever is ahead waits.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import torch

from extractor.datasets import Photograph
from extractor.errors import ImageError
from extractor.extraction import Extractor, Prepared, Unstacked
from extractor.images import image_id, is_indexed, read_bytes
from store.claims import Claims
from store.collection import Sample
from store.feature_store import FeatureStore
from store.features import Key, entry_path
from store.interrupts import Stop
from store.spec import FeatureSpec

MOST_THREADS = 8
LARGEST_BATCH = 16
BATCH_BYTES = 4 << 30
BEHIND = 5
"""Niceness of threads that decode and write."""


class Threads(NamedTuple):
    """Threads beside the one that feeds the network.

    Attributes:
        decoders: that decode and prepare photographs.
        writers: that gather, compress and write them.
    """

    decoders: int
    writers: int


def usual_threads(device: str, cores: int) -> Threads:
    """Two of each beside a network that needs the cores itself; beside a GPU, which is done sooner than they are, more.

    Args:
        device: of the network: cpu, cuda or cuda:N.
        cores: that this process may use.
    """
    if device == "cpu":
        return Threads(decoders=2, writers=2)
    each = min(max(2, cores // 2), MOST_THREADS)
    return Threads(decoders=each, writers=each)


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        extracted: views of images whose features were computed.
        present: views of images whose features were there already.
        failed: (image file, reason) for images that could not be used.
        bytes_stored: bytes written.
        forwards: network forwards.
        fallbacks: views that half precision could not hold and float32 could.
        interrupted: stopped before all was done.
        seconds: by stage, summed over threads.
    """

    extracted: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bytes_stored: int = 0
    forwards: int = 0
    fallbacks: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, other: RunReport) -> None:
        """What another part of the run did."""
        self.extracted += other.extracted
        self.present += other.present
        self.failed += other.failed
        self.bytes_stored += other.bytes_stored
        self.forwards += other.forwards
        self.fallbacks += other.fallbacks
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def counts(self) -> dict[str, int]:
        """All of it as numbers."""
        return {
            "extracted": self.extracted,
            "present": self.present,
            "failed": len(self.failed),
            "bytes_stored": self.bytes_stored,
            "forwards": self.forwards,
            "fallbacks": len(self.fallbacks),
        }


class Work(NamedTuple):
    """One view of one photograph."""

    photograph: Photograph
    view: str


def usual_batch(device: str, entry_bytes: int, *, spread: bool = False) -> int:
    """Views in one forward where nobody said how many.

    On CPUs two, which are a tenth faster than one and take a quarter of a gigabyte more with the small backbone at 512
    pixels (docs/decisions/0009); of workers with one thread each (``spread``) one. On GPUs sixteen, or as many as 4 GiB
    of the machine's memory hold; the device may have room for fewer (``Extractor.features``).

    Args:
        device: cpu, cuda or cuda:N.
        entry_bytes: of the features of one view, as the spec encodes them.
    """
    if device != "cpu":
        return max(1, min(LARGEST_BATCH, BATCH_BYTES // entry_bytes))
    return 1 if spread else 2


class _Decoded(NamedTuple):
    """A view that was looked at: ready for the network, there already, or being made elsewhere."""

    key: Key
    prepared: Prepared | None = None
    elsewhere: bool = False


class Pipeline:
    """Extracts views into a store, together with any other process that does the same.

    Args:
        store: receives the features.
        extractor: makes them.
        batch: views in one forward.
        overwrite: compute again what is there.
        advance: called with the name of each view that is done.
        stop: asked between views.
        say: called with what a user should know meanwhile.

    Attributes:
        report: what was done so far.
        samples: a record of each photograph, by name.
        made: keys of the entries that were written.
    """

    def __init__(
        self,
        store: FeatureStore,
        extractor: Extractor,
        *,
        batch: int = 1,
        overwrite: bool = False,
        advance: Callable[[str], None] | None = None,
        stop: Stop | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.report = RunReport()
        self.samples: dict[str, Sample] = {}
        self._store, self._extractor = store, extractor
        self._batch, self._overwrite = batch, overwrite
        self._stop = stop or Stop()
        self._advance, self._say = advance, say
        self._threads = usual_threads(extractor.backbone.device.type, torch.get_num_threads())
        self._ahead = batch + self._threads.decoders
        self._writing: deque[tuple[str, Future[int]]] = deque()
        self.made: set[Key] = set()
        self._stages = extractor.stages
        self._claims: Claims

    def run(self, work: Sequence[Work]) -> None:
        """Do all of it; wait for what other processes make, and take over what they leave undone.

        Raises:
            StoreFull: no room left; run again to go on.
        """
        forwards, before = self._extractor.forwards, dict(self._stages.seconds)
        with (
            _ONE_THREAD_OF_OPENCV,
            Claims(self._store.objects) as self._claims,
            ThreadPoolExecutor(self._threads.decoders, initializer=_give_way) as self._decoders,
            ThreadPoolExecutor(self._threads.writers, initializer=_give_way) as self._writer,
        ):
            self._complete(work)
        self.report.forwards += self._extractor.forwards - forwards
        for stage, seconds in self._stages.seconds.items():
            self.report.seconds[stage] = seconds - before.get(stage, 0.0)

    def _complete(self, work: Sequence[Work]) -> None:
        left, wait, said = list(work), 0.1, False
        while left and not self._stop.asked:
            before = len(left)
            left = self._once(left)
            if left and not self._stop.asked:
                if self._say is not None and not said:
                    self._say(f"waiting for another process that makes {len(left)} of the entries")
                    said = True
                wait = 0.1 if len(left) < before else min(2 * wait, 2.0)
                time.sleep(wait)
        self.report.interrupted = bool(left)

    def _once(self, work: Sequence[Work]) -> list[Work]:
        """Go through the work; returns what other processes are doing, or what was not begun."""
        left: list[Work] = []
        together: list[tuple[Work, _Decoded]] = []
        for one, decoding in self._decoded_ahead(work):
            if decoding is None or self._stop.asked:  # the claim of what was only decoded ends with the run
                left.append(one)
                continue
            try:
                with self._stages("wait for decoding"):
                    decoded = decoding.result()
            except ImageError as error:
                self.report.failed.append((str(one.photograph.image), str(error)))
                self._done(one)
                continue
            if decoded.elsewhere:
                left.append(one)
            elif decoded.prepared is None:
                self.report.present += 1
                self._record(one.photograph, decoded)
                self._done(one)
            else:
                together.append((one, decoded))
                if len(together) == self._batch:
                    self._extract(together)
                    together = []
        if together:
            self._extract(together)
        while self._writing:
            self._await_write()
        return left

    def _extract(self, together: Sequence[tuple[Work, _Decoded]]) -> None:
        prepared = [decoded.prepared for _, decoded in together if decoded.prepared is not None]
        extracted = deque(self._extractor.unstacked(prepared))
        for one, decoded in together:  # a photograph is handed over, so that its memory ends with the writing
            writing = self._writer.submit(self._write, decoded.key, [extracted.popleft()])
            self._writing.append((one.photograph.name, writing))
            self.report.extracted += 1
            self._record(one.photograph, decoded)
        self.report.fallbacks += self._extractor.take_fallbacks()
        while len(self._writing) > max(self._batch, self._threads.writers):
            self._await_write()

    def _await_write(self) -> None:
        name, writing = self._writing.popleft()
        with self._stages("wait for writing"):
            self.report.bytes_stored += writing.result()
        if self._advance is not None:
            self._advance(name)

    def _done(self, one: Work) -> None:
        if self._advance is not None:
            self._advance(one.photograph.name)

    def _record(self, photograph: Photograph, decoded: _Decoded) -> None:
        if photograph.name not in self.samples:
            spec = self._extractor.spec
            with self._stages("masks"):
                self.samples[photograph.name] = _sample(photograph, decoded, self._store, spec)

    def _write(self, key: Key, handed_over: list[Unstacked]) -> int:
        with self._stages("gather"):
            features = handed_over.pop().gathered()
        with self._stages("write"):
            claim = entry_path(self._extractor.spec, key)
            written = 0
            if self._claims.is_ours(claim):  # who slept longer than its lease leaves the entry to whoever took over
                self._store.clear(self._extractor.spec, key)  # only now: who is stopped before takes nothing away
                written = self._store.write(self._extractor.spec, key, features)
            self.made.add(key)
            self._claims.release(claim)
        return written

    def _decoded_ahead(self, work: Iterable[Work]) -> Iterator[tuple[Work, Future[_Decoded] | None]]:
        """Each view with its decoding, some of them under way; None for what is not begun any more."""
        waiting: deque[tuple[Work, Future[_Decoded] | None]] = deque()
        for one in work:
            waiting.append((one, None if self._stop.asked else self._decoders.submit(self._decode, one)))
            if len(waiting) > self._ahead:
                yield waiting.popleft()
        yield from waiting

    def _decode(self, work: Work) -> _Decoded:
        with self._stages("decode"):
            data = read_bytes(work.photograph.image)
            key = Key(image_id(data), work.view)
            claim = entry_path(self._extractor.spec, key)
            if self._is_there(key):
                return _Decoded(key)
            if not self._claims.take(claim):
                return _Decoded(key, elsewhere=True)
            try:
                if not self._is_there(key):  # else it was made between the look and the claim
                    return _Decoded(key, self._extractor.prepare(data, str(work.photograph.image), view=work.view))
            except ImageError:
                self._claims.release(claim)
                raise
            self._claims.release(claim)
            return _Decoded(key)

    def _is_there(self, key: Key) -> bool:
        to_do_again = self._overwrite and key not in self.made
        return not to_do_again and self._store.has(self._extractor.spec, key)


def _give_way() -> None:
    """The calling thread is scheduled behind those that it works for, on Linux, where each thread has a priority."""
    if sys.platform == "linux":
        me = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + BEHIND)


class _OneThreadOfOpenCV:
    """While anybody is within, OpenCV takes no threads of its own beside those that call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                cv2.setNumThreads(self._before)


_ONE_THREAD_OF_OPENCV = _OneThreadOfOpenCV()


def _sample(photograph: Photograph, decoded: _Decoded, store: FeatureStore, spec: FeatureSpec) -> Sample:
    """The photograph as a sample of a collection; its masks go into the store."""
    prepared = decoded.prepared
    geometry = prepared.input.geometry if prepared else store.entry(spec, decoded.key).geometry
    size = geometry.height, geometry.width
    return Sample(
        image_id=decoded.key.image_id,
        name=photograph.name,
        split=photograph.split,
        group=photograph.group,
        masks={t: store.collections.write_mask(photograph.read_mask(t, size)) for t in photograph.masks},
        indexed=tuple(t for t, path in photograph.masks.items() if is_indexed(path)),
    )
