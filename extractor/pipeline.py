"""One process's way through a list of photographs: decode ahead, run the network, write behind.

Memory is bounded: a batch and as many photographs as there are decoders wait for the network beside the batch that is
in it, and at most a batch (or as many as there are writers) waits to be written; whoever is ahead waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from extractor.background import ONE_THREAD_OF_OPENCV, lower_priority
from extractor.datasets import Photograph
from extractor.errors import DatasetError, ImageError, NonFiniteActivation
from extractor.extraction import Extractor, Prepared, Unstacked
from extractor.opened import OpenedPhotograph, OpenedPhotographs
from extractor.pixels import PixelExtractor
from extractor.run_report import RunReport
from store.claims import Claims
from store.collection import Sample
from store.errors import NonFiniteFeatures
from store.feature_store import FeatureStore
from store.features import Key, entry_path
from store.geometry import Geometry
from store.interrupts import Stop

MOST_THREADS = 8
LARGEST_BATCH = 16
BATCH_BYTES = 4 << 30
AnyExtractor = Extractor | PixelExtractor
"""Makes entries of features, or of the photographs themselves."""
BROKEN_AFTER = 3
"""Photographs of which a network makes no finite numbers, before any of which it does, are the network's trouble."""


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
    sample: Sample | None = None
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
        extractor: AnyExtractor,
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
        self._threads = usual_threads(extractor.device.type, torch.get_num_threads())
        self._ahead = batch + self._threads.decoders
        self._opened = OpenedPhotographs(store, extractor, self._ahead + 1)
        self._writing: deque[tuple[Work, Future[int | None]]] = deque()
        self._lost: list[Work] = []
        self._not_held: set[str] = set()
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
            ONE_THREAD_OF_OPENCV,
            Claims(self._store.objects) as self._claims,
            ThreadPoolExecutor(self._threads.decoders, initializer=lower_priority) as self._decoders,
            ThreadPoolExecutor(self._threads.writers, initializer=lower_priority) as self._writer,
        ):
            self._complete(work)
        self.report.forwards += self._extractor.forwards - forwards
        for stage, seconds in self._stages.seconds.items():
            self.report.seconds[stage] = seconds - before.get(stage, 0.0)

    def _complete(self, work: Sequence[Work]) -> None:
        left, wait, waits = list(work), 0.1, 0
        while left and not self._stop.requested:
            before = len(left)
            left = self._once(left)
            if left and not self._stop.requested:
                waits += 1
                if self._say is not None and waits == 2:  # what only this process was making is there by now
                    self._say(f"waiting for another process that makes {len(left)} of the entries")
                wait = 0.1 if len(left) < before else min(2 * wait, 2.0)
                time.sleep(wait)
        self.report.interrupted = bool(left)

    def _once(self, work: Sequence[Work]) -> list[Work]:
        """Go through the work; returns what other processes are doing, or what was not begun."""
        left: list[Work] = []
        together: list[tuple[Work, _Decoded]] = []
        for one, decoding in self._decoded_ahead(work):
            if decoding is None or self._stop.requested:  # the claim of what was only decoded ends with the run
                left.append(one)
                continue
            try:
                with self._stages("wait for decoding"):
                    decoded = decoding.result()
            except (ImageError, DatasetError) as error:
                self.report.leave_out(str(one.photograph.image), str(error))
                self._done(one)
                continue
            if decoded.elsewhere:
                left.append(one)
            elif decoded.prepared is None:
                self.report.present += 1
                self._record(one, decoded)
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
        lost, self._lost = self._lost, []
        return left + lost

    def _extract(self, together: Sequence[tuple[Work, _Decoded]]) -> None:
        prepared = [decoded.prepared for _, decoded in together if decoded.prepared is not None]
        reason: str | None = None
        try:
            extracted = deque(self._extractor.unstacked(prepared))
        except (NonFiniteFeatures, NonFiniteActivation) as error:
            if isinstance(error, NonFiniteActivation) and len(together) == 1 and self._is_the_backbones(together[0][1]):
                raise
            reason = str(error)
        if reason is not None:  # not within the clause above: the error holds the batch until it is left
            self._extract_apart(together, reason)
            return
        for one, decoded in together:  # a photograph is handed over, so that its memory ends with the writing
            self._writing.append((one, self._writer.submit(self._write, decoded.key, [extracted.popleft()])))
            self._record(one, decoded)
        self.report.fallbacks += self._extractor.take_fallbacks()
        while len(self._writing) > max(self._batch, self._threads.writers):
            self._await_write()

    def _is_the_backbones(self, decoded: _Decoded) -> bool:
        """Whether the network had no finite numbers for any of its first photographs: that is not their fault."""
        if self.samples:
            return False
        self._not_held.add(decoded.key.image_id)
        return len(self._not_held) == BROKEN_AFTER

    def _extract_apart(self, together: Sequence[tuple[Work, _Decoded]], reason: str) -> None:
        """Each view of a batch that network or encoding cannot hold; one that they cannot hold alone is left out."""
        if len(together) > 1:
            for pair in together:
                self._extract([pair])
            return
        one, decoded = together[0]
        image = str(one.photograph.image)
        self.report.leave_out(image, f"{image}: {reason}")
        self._claims.release(entry_path(self._extractor.spec, decoded.key))
        self._done(one)

    def _await_write(self) -> None:
        one, writing = self._writing.popleft()
        with self._stages("wait for writing"):
            written = writing.result()
        if written is None:
            self._lost.append(one)
            return
        self.report.extracted += 1
        self.report.bytes_stored += written
        self._done(one)

    def _done(self, one: Work) -> None:
        if self._advance is not None:
            self._advance(one.photograph.name)

    def _record(self, one: Work, decoded: _Decoded) -> None:
        if decoded.sample is not None:
            self.samples.setdefault(one.photograph.name, decoded.sample)

    def _write(self, key: Key, handed_over: list[Unstacked]) -> int | None:
        """Bytes written; None where this process slept longer than its lease: whoever took over makes the entry."""
        with self._stages("gather"):
            features = handed_over.pop().gathered()
        with self._stages("write"):
            claim = entry_path(self._extractor.spec, key)
            written = None
            if self._claims.is_ours(claim):
                self._store.clear(self._extractor.spec, key)  # only now: who is stopped before takes nothing away
                written = self._store.write(self._extractor.spec, key, features)
                self.made.add(key)
            self._claims.release(claim)
        return written

    def _decoded_ahead(self, work: Iterable[Work]) -> Iterator[tuple[Work, Future[_Decoded] | None]]:
        """Each view with its decoding, some of them under way; None for what is not begun any more."""
        waiting: deque[tuple[Work, Future[_Decoded] | None]] = deque()
        for one in work:
            waiting.append((one, None if self._stop.requested else self._decoders.submit(self._decode, one)))
            if len(waiting) > self._ahead:
                yield waiting.popleft()
        yield from waiting

    def _decode(self, work: Work) -> _Decoded:
        opened = self._opened.of(work.photograph)
        with self._stages("decode"):
            decoded = self._looked_at(opened, work.view)
        if decoded.elsewhere:
            return decoded
        try:
            with self._stages("masks"):
                return decoded._replace(sample=opened.sample(self._geometry(decoded)))
        except (ImageError, DatasetError):
            if decoded.prepared is not None:
                self._claims.release(entry_path(self._extractor.spec, decoded.key))
            raise

    def _looked_at(self, opened: OpenedPhotograph, view: str) -> _Decoded:
        key = Key(opened.image_id, view)
        claim = entry_path(self._extractor.spec, key)
        if self._is_there(key):
            return _Decoded(key)
        if not self._claims.take(claim):
            return _Decoded(key, elsewhere=True)
        try:
            if not self._is_there(key):  # else it was made between the look and the claim
                return _Decoded(key, self._extractor.view_of(opened.framed, key))
        except ImageError:
            self._claims.release(claim)
            raise
        self._claims.release(claim)
        return _Decoded(key)

    def _geometry(self, decoded: _Decoded) -> Geometry:
        if decoded.prepared is not None:
            return decoded.prepared.input.geometry
        return self._store.entry(self._extractor.spec, decoded.key).geometry

    def _is_there(self, key: Key) -> bool:
        to_do_again = self._overwrite and key not in self.made
        return not to_do_again and self._store.has(self._extractor.spec, key)
