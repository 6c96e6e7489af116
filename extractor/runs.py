"""A batch run: the features of a data set are extracted into a store.

Entries that the store has already are not computed again. An image is left out, and listed in the report, if it or one
of its masks cannot be used; the run goes on with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from extractor.datasets import DataSet, Photograph
from extractor.errors import DatasetError, ImageError
from extractor.images import image_id, read_bytes
from extractor.pipeline import AnyExtractor, Pipeline, ViewTask
from extractor.run_report import RunReport
from store.collection import Collection, Sample
from store.console import human_bytes
from store.errors import StoreError, StoreFull
from store.feature_store import FeatureStore
from store.features import Key
from store.interrupts import Stop
from store.memory import keep_freed_memory
from store.parallel import in_parallel
from store.spec import FeatureSpec
from store.views import IDENTITY


class SizePlan(NamedTuple):
    """An estimate of what a run will write: maps before lossless compression, so rather too many; no metadata.

    Attributes:
        entries: number of entries still to be made, one for each view of a photograph.
        bytes_by_block: {block: bytes} of one entry.
        free: bytes free where the store is; None if that cannot be known.
    """

    entries: int
    bytes_by_block: dict[str, int]
    free: int | None

    @property
    def bytes_total(self) -> int:
        return self.entries * sum(self.bytes_by_block.values())


def plan_size(
    dataset: DataSet,
    store: FeatureStore,
    spec: FeatureSpec,
    views: Sequence[str] = (IDENTITY,),
    *,
    overwrite: bool = False,
    advance: Callable[[], None] | None = None,
) -> SizePlan:
    """Count the entries that a run will make and the bytes they will take.

    Photographs are read for this, as their names in the store are hashes of their bytes; not if all have to be
    extracted anyway: with ``overwrite``, or where the store has no entry of the spec yet.

    Args:
        advance: called for each photograph that was checked.
    """

    def missing(photograph: Photograph) -> int:
        try:
            name = image_id(read_bytes(photograph.image))
        except ImageError:
            return 0  # the run will list it
        return sum(not store.has(spec, Key(name, view)) for view in views)

    everything = overwrite or next(store.all_keys(spec), None) is None
    counts = (len(views) for _ in dataset.photographs) if everything else in_parallel(missing, dataset.photographs)
    todo = 0
    for count in counts:
        todo += count
        if advance is not None:
            advance()
    return SizePlan(todo, spec.block_bytes(), store.objects.free_bytes())


def require_room(plan: SizePlan) -> None:
    """Raise StoreFull if the planned bytes exceed the free ones."""
    if plan.free is not None and plan.bytes_total > plan.free:
        raise StoreFull(
            f"{plan.entries} entries will take about {human_bytes(plan.bytes_total)} and {human_bytes(plan.free)} are "
            "free; free some space, take fewer images (--limit), or go on anyway with --ignore-space"
        )


def extract_dataset(
    dataset: DataSet,
    store: FeatureStore,
    extractor: AnyExtractor,
    *,
    backbone: str | None = None,
    views: Sequence[str] = (IDENTITY,),
    batch: int = 1,
    overwrite: bool = False,
    advance: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    say: Callable[[str], None] | None = None,
) -> RunReport:
    """Extract every photograph of a data set and record the set in the store.

    Several processes, on one machine or many, may do the same at once: each claims the entries that it makes.

    Args:
        backbone: name or place of the extractor's backbone, recorded so that it can be found again.
        views: renderings of each photograph to extract (``store.views``).
        batch: batch size, in views.
        overwrite: compute entries again that the store already has.
        advance: called with the photograph's name for each view that is done.
        stop: checked between views; views that are under way are finished.
        say: called with notes for the user during the run.

    Raises:
        DatasetError: no image could be used.
        StoreFull: no room left; run again to continue.
    """
    if extractor.device.type == "cpu":
        keep_freed_memory()
    store.register(extractor.spec, backbone, extractor.codebook)
    pipeline = Pipeline(store, extractor, batch=batch, overwrite=overwrite, advance=advance, stop=stop, say=say)
    with collection_recorded(store, dataset, pipeline.report, pipeline.samples):
        pipeline.run(work_of(dataset.photographs, views))
    return pipeline.report


def work_of(photographs: Iterable[Photograph], views: Sequence[str]) -> list[ViewTask]:
    """Every view of every photograph; the views of one photograph are adjacent."""
    return [ViewTask(photograph, view) for photograph in photographs for view in views]


@contextmanager
def collection_recorded(
    store: FeatureStore, dataset: DataSet, report: RunReport, samples: Mapping[str, Sample]
) -> Iterator[None]:
    """Record the data set in the store after this context, with the samples of a run in the order of its photographs.

    A context that ends with an error counts as interrupted: what was made until then can be used.

    Of what was recorded before, the samples stay of photographs that the data set has and the run did not come to: it
    was asked for a part of them, or was interrupted. A sample is dropped if the photograph could not be used, or has
    masks of other targets now. A run that was interrupted before its first sample records nothing.

    Raises:
        DatasetError: no image could be used.
    """
    try:
        yield
    except Exception:
        report.interrupted = True
        with suppress(StoreError, OSError):  # the store may be what has failed
            _record_collection(store, dataset, report, samples)
        raise
    _record_collection(store, dataset, report, samples)


def _record_collection(store: FeatureStore, dataset: DataSet, report: RunReport, samples: Mapping[str, Sample]) -> None:
    if not samples:
        if report.interrupted:
            return
        raise DatasetError(f"none of the {len(dataset.photographs)} images could be used; first: {report.failed[0][1]}")
    ordered = {p.name: samples[p.name] for p in dataset.photographs if p.name in samples}
    collection = Collection(name=dataset.name, samples=tuple(ordered.values()))
    failed = {image for image, _ in report.failed}
    interrupted = (p for p in dataset.photographs if str(p.image) not in failed) if report.interrupted else ()
    not_reached = (*dataset.others, *interrupted)
    targets = {photograph.name: set(photograph.masks) for photograph in not_reached}

    def is_current(sample: Sample) -> bool:
        return targets.get(sample.name) == set(sample.masks)

    store.collections.update(collection, keep=is_current if not_reached else None)
