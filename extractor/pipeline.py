"""The pipeline of one process: photographs are decoded ahead of the network, and features written behind it.

Back pressure bounds the memory. Besides the batch in the network, at most a batch and one view per decoder are
decoded ahead, and at most a batch (or one view per writer, if that is more) waits to be written.
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
from extractor.extraction import Extractor, Prepared, UnstackedFeatures
from extractor.opened import OpenedPhotograph, PhotographCache
from extractor.pixels import PixelExtractor
from extractor.run_report import RunReport
from store.claims import Claims
from store.collection import Sample
from store.errors import NonFiniteFeatures
from store.feature_store import FeatureStore
from store.features import Key, entry_path
from store.geometry import Geometry
from store.interrupts import Stop
from store.parallel import lookahead

MOST_THREADS = 8
LARGEST_BATCH = 16
BATCH_BYTES = 4 << 30
AnyExtractor = Extractor | PixelExtractor
"""Makes the entries of a store: features, or the photographs themselves."""
MAX_NONFINITE_PHOTOGRAPHS = 3
"""If the first so many photographs all give non-finite numbers, the network is broken and not the photographs."""


class Threads(NamedTuple):
    """Numbers of threads besides the one that feeds the network.

    Attributes:
        decoders: threads that decode and prepare photographs.
        writers: threads that stack, compress and write features.
    """

    decoders: int
    writers: int


def default_threads(device: str, cores: int) -> Threads:
    """The default: two of each if the network needs the cores itself, and up to ``MOST_THREADS`` to keep a GPU busy.

    Args:
        device: device of the network: cpu, cuda or cuda:N.
        cores: number of cores that this process may use.
    """
    if device == "cpu":
        return Threads(decoders=2, writers=2)
    each = min(max(2, cores // 2), MOST_THREADS)
    return Threads(decoders=each, writers=each)


class ViewTask(NamedTuple):
    """One view of one photograph."""

    photograph: Photograph
    view: str


def default_batch(device: str, entry_bytes: int, *, spread: bool = False) -> int:
    """The default batch size, in views.

    On CPUs it is two, which is a tenth faster than one and takes a quarter of a gigabyte more with the small backbone
    at 512 pixels (docs/decisions/0009), or one for cluster workers, which have one thread each (``spread``). On GPUs it
    is sixteen, or as many as 4 GiB of the machine's memory hold; the device may have room for fewer
    (``Extractor.features``).

    Args:
        device: cpu, cuda or cuda:N.
        entry_bytes: bytes of the features of one view, in the spec's encoding.
        spread: the work is done by the workers of a cluster.
    """
    if device != "cpu":
        return max(1, min(LARGEST_BATCH, BATCH_BYTES // entry_bytes))
    return 1 if spread else 2


class _Decoded(NamedTuple):
    """The outcome of decoding a view: it is ready for the network, already in the store, or being made elsewhere.

    Attributes:
        geometry: None if the view is being made elsewhere.
        prepared: None unless it is ready for the network.
    """

    key: Key
    geometry: Geometry | None = None
    prepared: Prepared | None = None
    sample: Sample | None = None


class Pipeline:
    """Extracts views into a store, together with any other process that does the same.

    Args:
        store: receives the features.
        extractor: makes the features.
        batch: batch size, in views.
        overwrite: compute entries again that the store already has.
        advance: called with the photograph's name for each view that is done.
        stop: checked between views.
        say: called with notes for the user during the run.

    Attributes:
        report: counts, failures and times so far.
        samples: {name: sample} of the photographs that could be used.
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
        self._threads = default_threads(extractor.device.type, torch.get_num_threads())
        self._ahead = batch + self._threads.decoders
        self._opened = PhotographCache(store, extractor, self._ahead + 1)
        self._writing: deque[tuple[ViewTask, Sample | None, Future[int | None]]] = deque()
        self._lost: list[ViewTask] = []
        self._nonfinite_ids: set[str] = set()
        self._gave_finite = False
        self.made: set[Key] = set()
        self._stages = extractor.stages
        self._claims: Claims

    def run(self, work: Sequence[ViewTask]) -> None:
        """Do all the work; wait for entries that other processes are making, and take over those they leave undone.

        Raises:
            StoreFull: no room left; run again to continue.
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

    def _complete(self, work: Sequence[ViewTask]) -> None:
        left, wait, waits = list(work), 0.1, 0
        while left and not self._stop.requested:
            before = len(left)
            left = self._once(left)
            if left and not self._stop.requested:
                waits += 1
                if self._say is not None and waits == 2:  # this process's own entries are in the store by now
                    self._say(f"waiting for another process that makes {len(left)} of the entries")
                wait = 0.1 if len(left) < before else min(2 * wait, 2.0)
                time.sleep(wait)
        self.report.interrupted = bool(left)

    def _once(self, work: Sequence[ViewTask]) -> list[ViewTask]:
        """Go through the work once; returns what is claimed by others, was lost to them, or was not begun."""
        left: list[ViewTask] = []
        together: list[tuple[ViewTask, _Decoded]] = []
        for one, decoding in self._decoded_ahead(work):
            if decoding is None or self._stop.requested:  # claims of decoded views end with the run
                left.append(one)
                continue
            try:
                with self._stages("wait for decoding"):
                    decoded = decoding.result()
            except (ImageError, DatasetError) as error:
                self.report.leave_out(str(one.photograph.image), str(error))
                self._done(one)
                continue
            if decoded.geometry is None:
                left.append(one)
            elif decoded.prepared is None:
                self.report.present += 1
                self._record(one, decoded.sample)
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

    def _extract(self, together: Sequence[tuple[ViewTask, _Decoded]]) -> None:
        prepared = [decoded.prepared for _, decoded in together if decoded.prepared is not None]
        reason: str | None = None
        try:
            extracted = deque(self._extractor.extract_unstacked(prepared))
        except (NonFiniteFeatures, NonFiniteActivation) as error:
            if (
                isinstance(error, NonFiniteActivation)
                and len(together) == 1
                and self._backbone_is_broken(together[0][1])
            ):
                raise
            reason = str(error)
        if reason is not None:  # outside the clause above: the exception keeps the batch's tensors alive until it ends
            self._extract_apart(together, reason)
            return
        self._gave_finite = True
        for one, decoded in together:  # the features are handed over, so that writing them frees their memory
            writing = self._writer.submit(self._write, decoded.key, [extracted.popleft()])
            self._writing.append((one, decoded.sample, writing))
        self.report.fallbacks += self._extractor.take_fallbacks()
        while len(self._writing) > max(self._batch, self._threads.writers):
            self._await_write()

    def _backbone_is_broken(self, decoded: _Decoded) -> bool:
        """Return whether none of the first ``MAX_NONFINITE_PHOTOGRAPHS`` photographs gave finite numbers."""
        if self.samples or self._gave_finite:
            return False
        self._nonfinite_ids.add(decoded.key.image_id)
        return len(self._nonfinite_ids) == MAX_NONFINITE_PHOTOGRAPHS

    def _extract_apart(self, together: Sequence[tuple[ViewTask, _Decoded]], reason: str) -> None:
        """Extract the views of a batch with non-finite numbers one by one; leave out a view that has them by itself."""
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
        one, sample, writing = self._writing.popleft()
        with self._stages("wait for writing"):
            written = writing.result()
        if written is None:
            self._lost.append(one)
            return
        self.report.extracted += 1
        self.report.bytes_stored += written
        self._record(one, sample)
        self._done(one)

    def _done(self, one: ViewTask) -> None:
        if self._advance is not None:
            self._advance(one.photograph.name)

    def _record(self, one: ViewTask, sample: Sample | None) -> None:
        """Record the sample of a photograph of which the store has a view now."""
        if sample is not None:
            self.samples.setdefault(one.photograph.name, sample)

    def _write(self, key: Key, handed_over: list[UnstackedFeatures]) -> int | None:
        """Return the bytes written; None if the claim's lease has expired and another process makes the entry."""
        with self._stages("gather"):
            features = handed_over.pop().stacked()
        with self._stages("write"):
            claim = entry_path(self._extractor.spec, key)
            written = None
            if self._claims.is_ours(claim):
                written = self._store.write(self._extractor.spec, key, features)
                self.made.add(key)
            self._claims.release(claim)
        return written

    def _decoded_ahead(self, work: Iterable[ViewTask]) -> Iterator[tuple[ViewTask, Future[_Decoded] | None]]:
        """Yield each view with its decoding, several of which run ahead; None for views not begun before the stop."""
        started = ((one, None if self._stop.requested else self._decoders.submit(self._decode, one)) for one in work)
        return lookahead(started, self._ahead)

    def _decode(self, work: ViewTask) -> _Decoded:
        opened = self._opened.get(work.photograph)
        with self._stages("decode"):
            decoded = self._claim_and_prepare(opened, work.view)
        if decoded.geometry is None:
            return decoded
        try:
            with self._stages("masks"):
                return decoded._replace(sample=opened.sample(decoded.geometry))
        except (ImageError, DatasetError):
            if decoded.prepared is not None:
                self._claims.release(entry_path(self._extractor.spec, decoded.key))
            raise

    def _claim_and_prepare(self, opened: OpenedPhotograph, view: str) -> _Decoded:
        key = Key(opened.image_id, view)
        claim = entry_path(self._extractor.spec, key)
        if (geometry := self._geometry_there(key)) is not None:
            return _Decoded(key, geometry)
        if not self._claims.acquire(claim):
            return _Decoded(key)
        try:
            geometry = self._geometry_there(key)  # another process may have made it just before the claim
            if geometry is None:
                prepared = self._extractor.view_of(opened.framed, key)
                return _Decoded(key, prepared.input.geometry, prepared)
        except ImageError:
            self._claims.release(claim)
            raise
        self._claims.release(claim)
        return _Decoded(key, geometry)

    def _geometry_there(self, key: Key) -> Geometry | None:
        """The geometry of a view that the store has; None if the view is to be made."""
        if self._overwrite and key not in self.made:
            return None
        entry = self._store.find(self._extractor.spec, key)
        return None if entry is None else entry.geometry
