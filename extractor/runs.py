"""A batch run: a data set goes through the extractor into a store.

What is there already is not computed again. An image that cannot be used, or one of whose masks cannot, is listed
and left out; everything else is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from extractor.datasets import DataSet, Photograph
from extractor.errors import DatasetError, ImageError
from extractor.images import image_id, read_bytes
from extractor.pipeline import AnyExtractor, Pipeline, Work
from extractor.run_report import RunReport
from store.collection import Collection, Sample
from store.console import human_bytes
from store.errors import StoreFull
from store.feature_store import FeatureStore
from store.features import Key
from store.interrupts import Stop
from store.memory import keep_freed_memory
from store.parallel import in_parallel
from store.spec import FeatureSpec
from store.views import IDENTITY


class SizePlan(NamedTuple):
    """About what a run will write: the maps before the lossless codec, which is more than they take, and no metadata.

    Attributes:
        entries: still to do, one for each view of a photograph.
        bytes_by_block: of an entry.
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

    Args:
        advance: called for each photograph that was looked at.
    """

    def missing(photograph: Photograph) -> int:
        try:
            name = image_id(read_bytes(photograph.image))
        except ImageError:
            return 0  # the run will list it
        return sum(overwrite or not store.has(spec, Key(name, view)) for view in views)

    todo = 0
    for count in in_parallel(missing, dataset.photographs):
        todo += count
        if advance is not None:
            advance()
    return SizePlan(todo, spec.block_bytes(), store.objects.free_bytes())


def require_room(plan: SizePlan) -> None:
    """StoreFull if the planned bytes cannot fit."""
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
    part_of_a_set: bool = False,
    advance: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    say: Callable[[str], None] | None = None,
) -> RunReport:
    """Extract every photograph of a data set and record the set in the store.

    Several processes, on one machine or many, may do the same at once: each claims what it makes.

    Args:
        backbone: name or place of the extractor's, for those who have to find it again.
        views: renderings of each photograph to extract (``store.views``).
        batch: views in one forward.
        overwrite: compute again what is there.
        part_of_a_set: other images that the store knows under the same name stay in the set.
        advance: called with the name of each view that is done.
        stop: asked between views; what is in flight is finished.
        say: called with what a user should know meanwhile.

    Raises:
        DatasetError: no image could be used.
        StoreFull: no room left; run again to go on.
    """
    if extractor.device.type == "cpu":
        keep_freed_memory()
    store.register(extractor.spec, backbone, extractor.codebook)
    pipeline = Pipeline(store, extractor, batch=batch, overwrite=overwrite, advance=advance, stop=stop, say=say)
    pipeline.run(work_of(dataset, views))
    record_collection(store, dataset, pipeline.report, pipeline.samples, part_of_a_set=part_of_a_set)
    return pipeline.report


def work_of(dataset: DataSet, views: Sequence[str]) -> list[Work]:
    """Every view of every photograph, those of one photograph side by side."""
    return [Work(photograph, view) for photograph in dataset.photographs for view in views]


def record_collection(
    store: FeatureStore, dataset: DataSet, report: RunReport, samples: Mapping[str, Sample], *, part_of_a_set: bool
) -> None:
    """Write the data set as the store knows it now, in the order of its photographs.

    Raises:
        DatasetError: no image could be used.
    """
    if not samples:
        if report.interrupted:
            return
        raise DatasetError(f"none of the {len(dataset.photographs)} images could be used; first: {report.failed[0][1]}")
    ordered = {p.name: samples[p.name] for p in dataset.photographs if p.name in samples}
    collection = Collection(name=dataset.name, samples=tuple(ordered.values()))
    store.collections.update(collection, keep=part_of_a_set or report.interrupted)
