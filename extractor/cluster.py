"""A batch run on many workers of a Dask cluster, on one machine or on many.

Each worker opens the backbone and the store once. A task is a few views of photographs: the worker decodes,
inverts and writes them itself, as ``extractor run`` on one machine does, and returns names, counts and the
checksums of what it wrote. No image and no feature map is sent over the network. A task whose worker dies is
given to another worker, which takes over the claims of the dead one.
"""

from __future__ import annotations

import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import torch
from distributed import Client, Future, KilledWorker, LocalCluster, Scheduler, Worker, WorkerPlugin, get_worker, wait
from distributed.comm import CommClosedError

from extractor.backbones import codebook_for
from extractor.datasets import DataSet, Photograph
from extractor.errors import ClusterError, DeviceFull, ExtractorError
from extractor.execution import Execution, extractor_for
from extractor.pipeline import Pipeline, ViewTask
from extractor.request import Request
from extractor.run_report import RunReport
from extractor.runs import collection_recorded, work_of
from store.claims import Claims
from store.collection import Sample
from store.entries import find_entry
from store.errors import StoreFull
from store.feature_store import FeatureStore
from store.features import entry_path
from store.interrupts import Stop
from store.memory import keep_freed_memory
from store.parallel import in_parallel

TASKS_PER_WORKER = 2
"""Tasks submitted per worker at any time: enough that no worker waits, few enough that a run stops soon."""
MOST_PRESENT = 4
"""Photographs in a task while the store has them all: asking it takes a millisecond each, and a task takes ten. More
would leave what is missing to few workers, since nobody knows where it begins."""
RETRIES = 3
MOST_LOST = 5
"""If the workers of so many tasks in a row die, beside those under way, they are at fault and not the photographs."""
_KEPT = "What was done is kept; run again to continue"
CONNECT_TIMEOUT = 10
"""Seconds to wait for the scheduler to answer."""


@dataclass(frozen=True)
class ExtractionJob:
    """Everything that a worker needs to know about a run; small, and the same for every task.

    Attributes:
        request: what is extracted; every worker must be able to find its backbone, of the spec's fingerprint.
        store: where features are written; every worker must be able to reach it.
        execution: the device ``cuda`` gives each worker the GPU of its number, and a worker without a number the first
            GPU that it sees (CUDA_VISIBLE_DEVICES).
    """

    request: Request
    store: str
    execution: Execution

    @property
    def batch(self) -> int:
        """Batch size, in views."""
        return self.execution.batch_for(self.request.spec)

    @property
    def task_size(self) -> int:
        """Views in one task, as far as whole photographs fit: on a GPU two batches, the first of which is written while
        the second is made."""
        return 2 * self.batch if self.on_gpus else self.batch

    @property
    def on_gpus(self) -> bool:
        return self.execution.device != "cpu"


@dataclass(frozen=True)
class TaskResult:
    """The result of one task.

    Attributes:
        report: counts, failures and times, as in the report of a run on one machine.
        samples: {name: sample} of the task's photographs.
        checksums: {entry: {object: sha256}} of the entries that it wrote, as they are in the store now.
        failure: what ended the task. It is returned, because Dask would repeat a task that raises it.
    """

    report: RunReport
    samples: dict[str, Sample] = field(default_factory=dict)
    checksums: dict[str, dict[str, str]] = field(default_factory=dict)
    failure: Exception | None = None


class ExtractionPlugin(WorkerPlugin):
    """The backbone and the store of a worker, opened before its first task.

    Args:
        job: the run's job.
        name: unique to the run, so that two runs on one cluster do not mix.
    """

    def __init__(self, job: ExtractionJob, name: str) -> None:
        self.job, self.name = job, name
        self.failure: Exception | None = None

    def setup(self, worker: Worker) -> None:
        try:
            self._open(worker)
        except Exception as error:  # Dask hides it if the worker joined during the run, so its tasks raise it again
            self.failure = error
            raise

    def _open(self, worker: Worker) -> None:
        torch.set_num_threads(max(1, worker.state.nthreads))
        with suppress(ValueError):  # not the main thread of its process, so Ctrl-C does not reach it either
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that submits the tasks decides when they end
        job = self.job
        if not job.on_gpus:
            keep_freed_memory()
        execution = replace(job.execution, device=_device(job.execution.device, worker))
        self.extractor = extractor_for(job.request, execution)
        self.store = FeatureStore(job.store)
        self.one_at_a_time = threading.Lock()  # the threads of a worker share one network

    def run(self, work: Sequence[ViewTask]) -> TaskResult:
        """Extract some views into the store."""
        if self.failure is not None:
            raise self.failure
        with self.one_at_a_time:
            overwrite = self.job.execution.overwrite
            pipeline = Pipeline(self.store, self.extractor, batch=self.job.batch, overwrite=overwrite)
            failure = None
            try:
                pipeline.run(work)
            except DeviceFull:  # another worker, or another attempt, may have room
                raise
            except (StoreFull, ExtractorError) as error:
                failure = error
        return TaskResult(pipeline.report, pipeline.samples, self._checksums(pipeline), failure)

    def _checksums(self, pipeline: Pipeline) -> dict[str, dict[str, str]]:
        paths = [entry_path(self.job.request.spec, key) for key in pipeline.made]
        found = zip(paths, in_parallel(lambda path: _checksums(self.store, path), paths), strict=True)
        return {path: written for path, written in found if written}  # others are being rewritten right now


def _device(device: str, worker: Worker) -> str:
    """The device of a worker: for ``cuda`` the GPU with the worker's number, modulo the number of GPUs.

    The number is the worker's name, as ``LocalCluster`` gives it, or the end of the name, as with ``dask worker --name
    x --nworkers 4``. A worker without a number uses the first GPU that it sees.
    """
    number = re.fullmatch(r"(?:.*-)?(\d+)", str(worker.name))
    if device != "cuda" or number is None:
        return device
    return f"cuda:{int(number[1]) % max(1, torch.cuda.device_count())}"


def extract_task(run: str, work: Sequence[ViewTask]) -> TaskResult:
    """Run one task on the worker that calls this; ``run`` is the name of the run's ``ExtractionPlugin``."""
    plugin: ExtractionPlugin = get_worker().plugins[run]
    return plugin.run(work)


@contextmanager
def connected(scheduler: str | None, workers: int | None, *, gpu: bool = False) -> Iterator[Client]:
    """Yield a client of a running cluster, or of a cluster of processes that is started on this machine.

    Args:
        scheduler: address of a running scheduler, such as ``tcp://scheduler:8786``.
        workers: number of local processes if there is no scheduler; each has one thread.
        gpu: each local worker offers one GPU, and has its share of this process's threads instead of one.

    Raises:
        ClusterError: no scheduler answers at the address.
    """
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_TIMEOUT)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {scheduler} ({error}); start one: dask scheduler"
            ) from error
        with client:
            yield client
        return
    offers = {"GPU": 1} if gpu else None
    threads = max(1, torch.get_num_threads() // (workers or 1)) if gpu else 1
    with (
        LocalCluster(  # no memory limit: a pipeline bounds its own memory, and Dask would pause a worker at the limit
            n_workers=workers,
            threads_per_worker=threads,
            memory_limit=0,
            resources=offers,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def extract_on_cluster(
    dataset: DataSet,
    job: ExtractionJob,
    client: Client,
    *,
    advance: Callable[[str], None] | None = None,
    stop: Stop | None = None,
) -> RunReport:
    """Extract every photograph of a data set on the workers of a cluster.

    Entries that the store already has are kept, unless the job says ``overwrite``.

    Args:
        dataset: the request's photographs, loaded.
        advance: called with the photograph's name for each view that is done.
        stop: checked between tasks; tasks that are under way are finished.

    Raises:
        ClusterError: there are no workers, a task's workers died repeatedly, or a worker's store is not this one.
        StoreFull: no room left; run again to continue.
        DatasetError: no image could be used.
    """
    stop, store = stop or Stop(), FeatureStore(job.store)
    request = job.request
    store.register(request.spec, request.made_by, codebook_for(request.spec, request.backbone, request.codebook))
    _require_workers(client, job)
    report, samples = RunReport(), dict[str, Sample]()
    per_task = max(1, job.task_size // len(request.views))  # whole photographs, each of which is decoded once
    tasks = _Tasks(dataset.photographs, request.views, per_task)
    done = 0
    with collection_recorded(store, dataset, report, samples), _registered(client, job, stop) as run:
        for task, result in _results(client, run, tasks, job, stop):
            report.add(result.report)
            tasks.resize(result.report)
            samples.update(result.samples)
            if result.failure is not None:
                raise result.failure
            _require_same_store(store, result)
            done += len(task)
            for work in task:
                if advance is not None:
                    advance(work.photograph.name)
        report.interrupted = done < len(dataset.photographs) * len(request.views)
    return report


class _Tasks:
    """The tasks of a run in the order of its photographs, each made when it is asked for.

    Args:
        size: photographs in a task; more while the store turns out to have all that is asked for, as when a run goes on
            after an interrupt.
    """

    def __init__(self, photographs: Iterable[Photograph], views: Sequence[str], size: int) -> None:
        self._left, self._views = iter(photographs), views
        self._size = self._smallest = size

    def __iter__(self) -> Iterator[list[ViewTask]]:
        while photographs := list(islice(self._left, self._size)):
            yield work_of(photographs, self._views)

    def resize(self, latest: RunReport) -> None:
        """Choose the size of the tasks to come by what the latest one did."""
        only_present = latest.present > 0 and latest.extracted == 0
        self._size = max(self._smallest, min(2 * self._size, MOST_PRESENT)) if only_present else self._smallest


def _require_workers(client: Client, job: ExtractionJob) -> None:
    """Raise ClusterError unless the cluster has workers that can take the job's tasks."""
    if not client.nthreads():
        raise ClusterError("the Dask cluster has no workers; start some: dask worker ADDRESS --nthreads 1")
    if job.on_gpus and not any(offered.get("GPU") for offered in _resources(client)):
        raise ClusterError(
            "no worker of the Dask cluster offers a GPU, and tasks would wait for one forever; start workers with "
            "dask worker ADDRESS --nthreads 1 --resources GPU=1"
        )


def _resources(client: Client) -> list[dict[str, float]]:
    """The resources that each worker offers. In some versions ``Client.scheduler_info`` lists only five workers."""

    def offered(dask_scheduler: Scheduler) -> list[dict[str, float]]:  # nested, as the scheduler may lack this package
        return [dict(worker.resources) for worker in dask_scheduler.workers.values()]

    found: list[dict[str, float]] = client.run_on_scheduler(offered)
    return found


@contextmanager
def _registered(client: Client, job: ExtractionJob, stop: Stop) -> Iterator[str]:
    """Have every worker, including those that join later, open the job in this context; yields the plugin's name.

    Raises:
        ClusterError: the cluster ended meanwhile.
        KeyboardInterrupt: so it did, and a stop was requested, as when a signal is sent to all processes of a run.
    """
    run = f"diffdgss-{uuid.uuid4().hex}"
    try:
        try:
            client.register_plugin(ExtractionPlugin(job, run), run)  # may fail on one worker after others opened it
        except CommClosedError as error:
            if stop.requested:
                raise KeyboardInterrupt from error
            raise ClusterError("the cluster ended while its workers opened the backbone; run again") from error
        yield run
    finally:
        # A scheduler that is gone, or was restarted, has lost the plugin as well.
        with suppress(OSError, TimeoutError, CancelledError, ValueError, KeyError):
            client.unregister_worker_plugin(run)


def _results(
    client: Client, run: str, tasks: Iterable[list[ViewTask]], job: ExtractionJob, stop: Stop
) -> Iterator[tuple[list[ViewTask], TaskResult]]:
    """Yield each task with its result, in order of completion.

    A task whose workers died comes once more, after all others and in parts of one photograph, each alone: the others
    that its workers had at the time are not to blame. A photograph that kills its workers again is left out.

    Raises:
        ClusterError: the scheduler is gone, or too many tasks in a row lost their workers.
    """
    lost, in_a_row = list[list[ViewTask]](), 0
    most = MOST_LOST + TASKS_PER_WORKER * max(1, len(client.nthreads()))  # neighbours of a deadly one are lost with it
    for task, result in _each(client, run, tasks, job, stop):
        in_a_row = in_a_row + 1 if result is None else 0
        if result is not None:
            yield task, result
        elif in_a_row < most:
            lost.append(task)
        else:
            raise ClusterError(f"{_died(task[0].photograph)}, as those of the {in_a_row - 1} tasks before. {_KEPT}")
    parts = [list(views) for task in lost for _, views in groupby(task, key=lambda view: view.photograph)]
    for part, result in _each(client, run, parts, job, stop, alone=True):
        if result is None:
            result, photograph = TaskResult(RunReport()), part[0].photograph
            result.report.leave_out(str(photograph.image), f"{photograph.image}: {_died(photograph)}")
        yield part, result


def _died(photograph: Photograph) -> str:
    return (
        f"the workers that had {photograph.image.name} died one after the other; their logs say why (often: too little "
        "memory)"
    )


def _each(
    client: Client, run: str, tasks: Iterable[list[ViewTask]], job: ExtractionJob, stop: Stop, *, alone: bool = False
) -> Iterator[tuple[list[ViewTask], TaskResult | None]]:
    """Yield each task with its result, in order of completion; None if its workers died.

    Args:
        alone: submit each task once the one before has ended; else ``TASKS_PER_WORKER`` for each worker there is.
    """
    needs = {"GPU": 1} if job.on_gpus else None
    left, under_way = iter(tasks), dict[Future, list[ViewTask]]()
    while True:
        at_once = 1 if alone else TASKS_PER_WORKER * max(1, len(client.nthreads()))  # workers may join and leave
        for task in islice(left, 0 if stop.requested else max(0, at_once - len(under_way))):
            under_way[client.submit(extract_task, run, task, pure=False, retries=RETRIES, resources=needs)] = task
        if not under_way:
            return
        try:
            done = wait(list(under_way), return_when="FIRST_COMPLETED").done
        except CancelledError as error:
            raise ClusterError(f"the Dask scheduler is gone. {_KEPT}") from error
        for future in done:
            task = under_way.pop(future)
            try:
                yield task, future.result()
            except KilledWorker:
                yield task, None


def _require_same_store(store: FeatureStore, result: TaskResult) -> None:
    """Raise ClusterError if a worker's entries are missing from the store as seen from here, or differ."""
    claims = Claims(store.objects)
    seen = in_parallel(lambda path: _checksums(store, path), result.checksums)
    for (path, written), here in zip(result.checksums.items(), seen, strict=True):
        while here != written and claims.is_held(path):  # another task is rewriting it (--overwrite, equal files)
            time.sleep(0.1)
            here = _checksums(store, path)
        if here != written:  # it may have been finished after the checksums and before the claim were read
            here = _checksums(store, path)
        if here != written:
            raise ClusterError(
                f"a worker wrote {path}, which is not in {store.location} as seen from here; "
                "the store has to be one place that every machine reaches, such as s3://bucket/prefix"
            )


def _checksums(store: FeatureStore, path: str) -> dict[str, str]:
    """{object: sha256} of an entry as seen from here; empty if it is missing or damaged."""
    found = find_entry(store.objects, path)
    return {} if found is None else {name: str(one["sha256"]) for name, one in found.checksums.items()}
