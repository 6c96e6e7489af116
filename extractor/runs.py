"""A batch run: a data set goes through the extractor into a store.

What is there already is not computed again. An image that cannot be used is listed and left out;
everything else is done. Images are decoded ahead of the network and written behind it, each in
threads of their own, so that at most a few photographs are in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from extractor.datasets import DataSet, Photograph
from extractor.errors import DatasetError, ImageError
from extractor.extraction import Extractor, Prepared
from extractor.images import image_id, read_bytes
from store.claims import Claims
from store.collection import Collection, Sample
from store.errors import StoreFull
from store.feature_store import Features, FeatureStore, Key, entry_path
from store.spec import FeatureSpec
from store.views import IDENTITY

DECODED_AHEAD = 4
WRITTEN_BEHIND = 1


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        extracted: views of images whose features were computed.
        present: views of images whose features were there already.
        failed: (image file, reason) for images that could not be used.
        bytes_stored: bytes written.
        forwards: network forwards.
    """

    extracted: int = 0
    present: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bytes_stored: int = 0
    forwards: int = 0

    def counts(self) -> dict[str, int]:
        """All of it as numbers."""
        return {
            "extracted": self.extracted,
            "present": self.present,
            "failed": len(self.failed),
            "bytes_stored": self.bytes_stored,
            "forwards": self.forwards,
        }


class SizePlan(NamedTuple):
    """What a run will write, before the lossless codec: an upper bound.

    Attributes:
        images: views of images still to do.
        bytes_by_block: for one view of one image.
        free: bytes free where the store is; None if that cannot be known.
    """

    images: int
    bytes_by_block: dict[str, int]
    free: int | None

    @property
    def bytes_total(self) -> int:
        return self.images * sum(self.bytes_by_block.values())


def plan_size(
    dataset: DataSet,
    store: FeatureStore,
    spec: FeatureSpec,
    views: Sequence[str] = (IDENTITY,),
    *,
    overwrite: bool = False,
) -> SizePlan:
    """Count the images that a run will extract and the bytes they will take."""
    todo = 0
    for photograph in dataset.photographs:
        try:
            name = image_id(read_bytes(photograph.image))
        except ImageError:
            continue  # the run will list it
        todo += sum(overwrite or not store.has(spec, Key(name, view)) for view in views)
    return SizePlan(todo, spec.block_bytes(), store.objects.free_bytes())


def require_room(plan: SizePlan) -> None:
    """StoreFull if the planned bytes cannot fit."""
    if plan.free is not None and plan.bytes_total > plan.free:
        raise StoreFull(
            f"{plan.images} images will take up to {plan.bytes_total / 1e9:.1f} GB and {plan.free / 1e9:.1f} GB are "
            "free; free some space, take fewer images (--limit), or go on anyway with --ignore-space"
        )


def extract_dataset(
    dataset: DataSet,
    store: FeatureStore,
    extractor: Extractor,
    *,
    views: Sequence[str] = (IDENTITY,),
    overwrite: bool = False,
    part_of_a_set: bool = False,
    advance: Callable[[str], None] | None = None,
) -> RunReport:
    """Extract every photograph of a data set and record the set in the store.

    Several processes, on one machine or many, may do the same at once: each claims what it makes.

    Args:
        views: renderings of each photograph to extract (``store.views``).
        overwrite: compute again what is there.
        part_of_a_set: other images that the store knows under the same name stay in the set.
        advance: called with the name of each view that is done.

    Raises:
        DatasetError: a mask does not belong to its image, or no image could be used.
        StoreFull: no room left; run again to go on.
    """
    store.register(extractor.spec, codebook=extractor.codebook)
    work = [_Work(photograph, view) for photograph in dataset.photographs for view in views]
    with Claims(store.objects) as claims, ThreadPoolExecutor(2) as decoders, ThreadPoolExecutor(1) as writer:
        run = _Run(store, extractor, claims, decoders, writer, overwrite, advance)
        run.complete(work)
    report, samples = run.report, run.samples
    if not samples:
        raise DatasetError(f"none of the {len(dataset.photographs)} images could be used; first: {report.failed[0][1]}")
    if part_of_a_set and dataset.name in store.collections.names():
        known = {sample.name: sample for sample in store.collections.read(dataset.name).samples}
        samples = known | samples
    store.collections.write(Collection(name=dataset.name, samples=tuple(samples.values())))
    return report


class _Work(NamedTuple):
    """One view of one photograph."""

    photograph: Photograph
    view: str


class _Decoded(NamedTuple):
    """A view that was looked at: ready for the network, there already, or being made elsewhere."""

    key: Key
    prepared: Prepared | None = None
    elsewhere: bool = False


class _Run:
    """The state of one call of ``extract_dataset``."""

    def __init__(
        self,
        store: FeatureStore,
        extractor: Extractor,
        claims: Claims,
        decoders: ThreadPoolExecutor,
        writer: ThreadPoolExecutor,
        overwrite: bool,
        advance: Callable[[str], None] | None,
    ) -> None:
        self.report = RunReport()
        self.samples: dict[str, Sample] = {}
        self._store, self._extractor, self._claims = store, extractor, claims
        self._decoders, self._writer = decoders, writer
        self._overwrite, self._advance = overwrite, advance
        self._writing: deque[Future[int]] = deque()
        self._made: set[Key] = set()

    def complete(self, work: Sequence[_Work]) -> None:
        """Do all of it; wait for what other processes make, and take over what they leave undone."""
        left, wait = list(work), 0.1
        while left:
            before = len(left)
            left = self._extract(left)
            if left:
                wait = 0.1 if len(left) < before else min(2 * wait, 2.0)
                time.sleep(wait)

    def _extract(self, work: Sequence[_Work]) -> list[_Work]:
        """Do all of it but what other processes are doing, which is returned."""
        elsewhere = []
        forwards = self._extractor.forwards
        for one, decoding in self._decoded_ahead(work):
            try:
                decoded = decoding.result()
                if decoded.elsewhere:
                    elsewhere.append(one)
                    continue
                self._finish(one.photograph, decoded)
            except ImageError as error:
                self.report.failed.append((str(one.photograph.image), str(error)))
            if self._advance is not None:
                self._advance(one.photograph.name)
        while self._writing:
            self.report.bytes_stored += self._writing.popleft().result()
        self.report.forwards += self._extractor.forwards - forwards
        return elsewhere

    def _finish(self, photograph: Photograph, decoded: _Decoded) -> None:
        if decoded.prepared is None:
            self.report.present += 1
        else:
            features = self._extractor.features([decoded.prepared])[0]
            self._writing.append(self._writer.submit(self._write, decoded.key, features))
            self.report.extracted += 1
        while len(self._writing) > WRITTEN_BEHIND:
            self.report.bytes_stored += self._writing.popleft().result()
        if photograph.name not in self.samples:
            spec = self._extractor.spec
            self.samples[photograph.name] = _record(photograph, decoded.key, self._store, spec, decoded.prepared)

    def _write(self, key: Key, features: Features) -> int:
        written = self._store.write(self._extractor.spec, key, features)
        self._made.add(key)
        self._claims.release(entry_path(self._extractor.spec, key))
        return written

    def _decoded_ahead(self, work: Iterable[_Work]) -> Iterator[tuple[_Work, Future[_Decoded]]]:
        """Each view with its decoding, ``DECODED_AHEAD`` of them under way."""
        waiting: deque[tuple[_Work, Future[_Decoded]]] = deque()
        for one in work:
            waiting.append((one, self._decoders.submit(self._decode, one)))
            if len(waiting) >= DECODED_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _decode(self, work: _Work) -> _Decoded:
        data = read_bytes(work.photograph.image)
        key = Key(image_id(data), work.view)
        claim = entry_path(self._extractor.spec, key)
        if self._is_there(key):
            return _Decoded(key)
        if not self._claims.take(claim):
            return _Decoded(key, elsewhere=True)
        try:
            if self._is_there(key):  # made between the look and the claim
                self._claims.release(claim)
                return _Decoded(key)
            return _Decoded(key, self._extractor.prepare(data, str(work.photograph.image), view=work.view))
        except ImageError:
            self._claims.release(claim)
            raise

    def _is_there(self, key: Key) -> bool:
        to_do_again = self._overwrite and key not in self._made
        return not to_do_again and self._store.has(self._extractor.spec, key)


def _record(
    photograph: Photograph, key: Key, store: FeatureStore, spec: FeatureSpec, prepared: Prepared | None
) -> Sample:
    """The photograph as a sample of the collection; its masks go into the store."""
    geometry = prepared.input.geometry if prepared else store.entry(spec, key).geometry
    size = geometry.height, geometry.width
    masks = {t: store.collections.write_mask(photograph.read_mask(t, size)) for t in photograph.masks}
    return Sample(
        image_id=key.image_id,
        name=photograph.name,
        split=photograph.split,
        group=photograph.group,
        masks=masks,
    )
