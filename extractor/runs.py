"""A batch run: a data set goes through the extractor into a store.

What is there already is not computed again. An image that cannot be used is listed and left out;
everything else is done. Images are decoded ahead of the network and written behind it, each in
threads of their own, so that at most a few photographs are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from extractor.datasets import DataSet, Photograph
from extractor.errors import DatasetError, ImageError
from extractor.extraction import Extractor, Prepared
from extractor.images import image_id, read_bytes
from store.collection import Collection, Sample
from store.errors import StoreFull
from store.feature_store import FeatureStore, Key
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

    Args:
        views: renderings of each photograph to extract (``store.views``).
        overwrite: compute again what is there.
        part_of_a_set: other images that the store knows under the same name stay in the set.
        advance: called with the name of each view that is done.

    Raises:
        DatasetError: a mask does not belong to its image, or no image could be used.
        StoreFull: no room left; run again to go on.
    """
    report = RunReport()
    started = extractor.forwards
    store.register(extractor.spec)
    samples: dict[str, Sample] = {}
    work = [(photograph, view) for photograph in dataset.photographs for view in views]
    with ThreadPoolExecutor(2) as decoders, ThreadPoolExecutor(1) as writer:
        writing: deque[Future[int]] = deque()
        for photograph, decoding in _decoded_ahead(work, decoders, store, extractor, overwrite):
            try:
                key, prepared = decoding.result()
                if prepared is None:
                    report.present += 1
                else:
                    features = extractor.features([prepared])[0]
                    writing.append(writer.submit(store.write, extractor.spec, key, features))
                    report.extracted += 1
                while len(writing) > WRITTEN_BEHIND:
                    report.bytes_stored += writing.popleft().result()
                if photograph.name not in samples:
                    samples[photograph.name] = _record(photograph, key, store, extractor.spec, prepared)
            except ImageError as error:
                report.failed.append((str(photograph.image), str(error)))
            if advance is not None:
                advance(photograph.name)
        report.bytes_stored += sum(done.result() for done in writing)
    report.forwards = extractor.forwards - started
    if not samples:
        raise DatasetError(f"none of the {len(dataset.photographs)} images could be used; first: {report.failed[0][1]}")
    if part_of_a_set and dataset.name in store.collections.names():
        known = {sample.name: sample for sample in store.collections.read(dataset.name).samples}
        samples = known | samples
    store.collections.write(Collection(name=dataset.name, samples=tuple(samples.values())))
    return report


_Decoding = Future[tuple[Key, Prepared | None]]


def _decoded_ahead(
    work: Iterable[tuple[Photograph, str]],
    pool: ThreadPoolExecutor,
    store: FeatureStore,
    extractor: Extractor,
    overwrite: bool,
) -> Iterator[tuple[Photograph, _Decoding]]:
    """Each photograph with the decoding of its view, ``DECODED_AHEAD`` of them under way."""

    def decode(photograph: Photograph, view: str) -> tuple[Key, Prepared | None]:
        data = read_bytes(photograph.image)
        key = Key(image_id(data), view)
        if not overwrite and store.has(extractor.spec, key):
            return key, None
        return key, extractor.prepare(data, str(photograph.image), view=view)

    waiting: deque[tuple[Photograph, _Decoding]] = deque()
    for photograph, view in work:
        waiting.append((photograph, pool.submit(decode, photograph, view)))
        if len(waiting) >= DECODED_AHEAD:
            yield waiting.popleft()
    yield from waiting


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
