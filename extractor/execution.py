"""A run that leaves a record in the store, on this machine or on a cluster: what ``extractor run`` does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from extractor.backbone import Backbone
from extractor.backbones import codebook_for, open_backbone
from extractor.datasets import DataSet
from extractor.errors import ClusterError
from extractor.extraction import Extractor
from extractor.pipeline import AnyExtractor, default_batch
from extractor.pixels import PixelExtractor
from extractor.request import Request, absolute_store, require_own_name
from extractor.run_report import RunReport
from extractor.runs import extract_dataset
from store.claims import Claims
from store.collection import COLLECTIONS
from store.feature_store import FeatureStore
from store.interrupts import Stop
from store.pixels import holds_pixels
from store.records import RunRecord
from store.spec import FeatureSpec


@dataclass(frozen=True)
class Execution:
    """Options of how a run is executed, which change nothing that is made except for the last bits of numbers.

    Attributes:
        device: cpu, cuda or cuda:N.
        batch: batch size, in views; the default for the device if None.
        workers: number of processes on this machine that do the work; or
        scheduler: address of a Dask scheduler whose workers do it. If both are None, this process does it.
        overwrite: compute entries again that the store already has.
        compiled: have torch compile the network's blocks.
    """

    device: str = "cpu"
    batch: int | None = None
    workers: int | None = None
    scheduler: str | None = None
    overwrite: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.scheduler is not None:
            raise ClusterError("workers start a cluster, a scheduler has one already: expected one of the two")

    @property
    def spread(self) -> bool:
        """Whether workers do the work, and this process only hands it out."""
        return self.workers is not None or self.scheduler is not None

    def batch_for(self, spec: FeatureSpec) -> int:
        """The batch size, in views."""
        return self.batch or default_batch(self.device, spec.entry_bytes(), spread=self.spread)


def extract_recorded(
    request: Request,
    store: FeatureStore,
    network: Backbone | None = None,
    execution: Execution | None = None,
    *,
    dataset: DataSet | None = None,
    advance: Callable[[str], None] | None = None,
    stop: Stop | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RunReport:
    """Extract what a request asks for, and record the run so that ``store verify --repair`` can repeat it.

    Entries that the store already has are kept, unless ``execution`` says ``overwrite``.

    Args:
        request: what is made.
        network: the request's backbone; opened here if it is None and needed, which it is unless workers do the work
            or photographs are stored.
        dataset: the request's photographs, if they are loaded already.
        advance: called with the photograph's name for each view that is done.
        stop: checked between views; views that are under way are finished.
        say: called with notes for the user during the run.

    Raises:
        DatasetError: no image could be used, or the store has other photographs under the data set's name.
        StoreFull: no room left; run again to continue.
        ClusterError: the cluster cannot be reached, or its workers cannot do the work.
    """
    execution, spec, started = execution or Execution(), request.spec, time.perf_counter()
    dataset = dataset or request.selection.load()
    extractor = None if execution.spread else extractor_for(request, execution, network)
    record = RunRecord(spec=spec.digest, dataset=dataset.name, options=request.options(), device=execution.device)
    with Claims(store.objects) as claims, claims.acquired(f"{COLLECTIONS}/{dataset.name}"):  # one run after the other
        if (former := require_own_name(store, request.selection, dataset.name)) is not None:
            say(f"the data set {dataset.name} has had the photographs of {former}; these replace them")
        store.records.write(record)
    if extractor is None:
        from extractor.cluster import ExtractionJob, connected, extract_on_cluster  # Dask takes a second to import

        job = ExtractionJob(request.with_absolute_paths(), absolute_store(store.location), execution)
        with connected(execution.scheduler, execution.workers, gpu=execution.device != "cpu") as client:
            say(f"dashboard: {client.dashboard_link}")
            report = extract_on_cluster(dataset, job, client, advance=advance, stop=stop)
    else:
        report = extract_dataset(
            dataset,
            store,
            extractor,
            backbone=request.made_by,
            views=request.views,
            batch=execution.batch_for(spec),
            overwrite=execution.overwrite,
            advance=advance,
            stop=stop,
            say=say,
        )
    report.seconds = {"all": time.perf_counter() - started} | report.seconds
    store.records.write(record.done(report.counts(), {stage: round(s, 3) for stage, s in report.seconds.items()}))
    return report


def extractor_for(request: Request, execution: Execution, network: Backbone | None = None) -> AnyExtractor:
    """What makes the entries of a request on the execution's device.

    Args:
        network: the request's backbone, if it is open already.

    Raises:
        BackboneError: the backbone is not there, or another one than that of the spec.
        MissingEntry: the compact encoding's codebook is not there.
    """
    if holds_pixels(request.spec):
        return PixelExtractor(request.spec)
    if network is None:
        network = open_backbone(request.backbone, request.spec.precision, execution.device, request.class_label)
    if execution.compiled:
        network.compile()
    return Extractor(network, request.spec, codebook_for(request.spec, request.backbone, request.codebook))
