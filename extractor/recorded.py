"""A run that leaves a record in the store, on this machine or on a cluster: what ``extractor run`` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from extractor.backbone import Backbone
from extractor.datasets import DataSet
from extractor.extraction import Extractor
from extractor.pipeline import AnyExtractor, usual_batch
from extractor.pixels import PixelExtractor
from extractor.presets import codebook_for
from extractor.repeating import Request, absolute_backbone, absolute_store, require_own_name
from extractor.run_report import RunReport
from extractor.runs import extract_dataset
from store.feature_store import FeatureStore
from store.interrupts import Stop
from store.pixels import PIXELS, holds_pixels
from store.records import RunRecord


@dataclass(frozen=True)
class Execution:
    """How a run is done; none of it decides what is made, but for the last bits.

    Attributes:
        device: cpu, cuda or cuda:N.
        batch: views in one forward; what is usual on the device if None.
        workers: processes on this machine that do the work; or
        scheduler: address of a Dask scheduler whose workers do.
        overwrite: compute again what is there.
        compiled: compile the network first.
    """

    device: str = "cpu"
    batch: int | None = None
    workers: int | None = None
    scheduler: str | None = None
    overwrite: bool = False
    compiled: bool = False

    @property
    def spread(self) -> bool:
        """Whether others do the work, and this process hands it out."""
        return self.workers is not None or self.scheduler is not None


def extract_recorded(
    request: Request,
    store: FeatureStore,
    network: Backbone,
    execution: Execution | None = None,
    *,
    dataset: DataSet | None = None,
    advance: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RunReport:
    """Extract what is asked for; what is there already is left. ``store verify --repair`` can do it again.

    Args:
        request: what is made.
        network: the request's backbone; where others do the work, or photographs are stored, it is asked nothing.
        dataset: the request's photographs, where they, and whose their name is, have been looked for already.
        advance: called with the name of each view that is done.
        stop: asked between views; what is in flight is finished.
        say: called with what a user should know meanwhile.

    Raises:
        DatasetError: no image could be used, or the store knows others by the name of the data set.
        StoreFull: no room left; run again to go on.
        ClusterError: of a run on a cluster.
    """
    execution, spec, started = execution or Execution(), request.spec, time.perf_counter()
    if dataset is None:
        dataset = request.photographs()
        if request.name is None:
            require_own_name(store, dataset.name, request.dataset)
    extractor = None if execution.spread else _extractor(request, network, compiled=execution.compiled)
    record = RunRecord(spec=spec.digest, dataset=dataset.name, options=request.options(), device=execution.device)
    store.records.write(record)
    batch = execution.batch or usual_batch(execution.device, spec.entry_bytes(), spread=execution.spread)
    if extractor is None:
        report = _on_cluster(request, dataset, store, execution, batch, advance, stop, say)
    else:
        report = extract_dataset(
            dataset,
            store,
            extractor,
            backbone=PIXELS if holds_pixels(spec) else absolute_backbone(request.backbone),
            views=request.views,
            batch=batch,
            overwrite=execution.overwrite,
            part_of_a_set=request.part_of_a_set,
            advance=advance,
            stop=stop,
            say=say,
        )
    report.seconds = {"all": time.perf_counter() - started} | report.seconds
    store.records.write(record.done(report.counts(), {stage: round(s, 3) for stage, s in report.seconds.items()}))
    return report


def _extractor(request: Request, network: Backbone, *, compiled: bool) -> AnyExtractor:
    if holds_pixels(request.spec):
        return PixelExtractor(request.spec)
    codebook = codebook_for(request.spec, request.backbone, request.codebook)
    return Extractor(network.compiled() if compiled else network, request.spec, codebook)


def _on_cluster(
    request: Request,
    dataset: DataSet,
    store: FeatureStore,
    execution: Execution,
    batch: int,
    advance: Callable[[str], None] | None,
    stop: Stop | None,
    say: Callable[[str], None],
) -> RunReport:
    from extractor.cluster import ExtractionJob, connected, extract_on_cluster  # Dask takes a second to import

    job = ExtractionJob(
        spec=request.spec,
        store=absolute_store(store.location),
        backbone=absolute_backbone(request.backbone),
        codebook=request.codebook and request.codebook.resolve(),
        device=execution.device,
        class_label=request.class_label,
        batch=batch,
        overwrite=execution.overwrite,
        compiled=execution.compiled,
    )
    with connected(execution.scheduler, execution.workers, gpu=execution.device != "cpu") as client:
        say(f"dashboard: {client.dashboard_link}")
        return extract_on_cluster(
            dataset,
            job,
            client,
            views=request.views,
            part_of_a_set=request.part_of_a_set,
            advance=advance,
            stop=stop,
        )
