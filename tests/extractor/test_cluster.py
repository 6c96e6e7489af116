"""A Dask cluster of processes: the same store as one process makes, whatever dies meanwhile."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import dask
import numpy as np
import pytest
import torch
from distributed import Client

from extractor.backbone import Backbone
from extractor.backbone_folder import save_backbone
from extractor.backbones import open_backbone
from extractor.cluster import ExtractionJob, ExtractionPlugin, connected, extract_on_cluster
from extractor.datasets import Selection, load_dataset
from extractor.errors import BackboneError, ClusterError
from extractor.execution import Execution
from extractor.extraction import Extractor
from extractor.request import Request
from extractor.run_report import RunReport
from extractor.runs import extract_dataset, work_of
from store import FeatureSpec, FeatureStore, parse_views
from store.errors import StoreFull, StoreUnavailable
from store.interrupts import Stop
from tests.conftest import changed


@pytest.fixture(scope="module")
def saved(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(backbone, folder, half=False)
    return folder


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with connected(None, 2) as found:
        found.wait_for_workers(2)
        yield found


def job_in(
    folder: Path, spec: FeatureSpec, saved: Path, views: tuple[str, ...] = ("identity",), device: str = "cpu"
) -> ExtractionJob:
    request = Request(Selection("folder:of no account"), spec, str(saved), views)
    return ExtractionJob(request, str(folder / "features.zarr"), Execution(device, workers=2))


def test_two_workers_make_what_one_process_makes(
    client: Client,
    spec: FeatureSpec,
    saved: Path,
    dataset_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset, views = load_dataset(f"folder:{dataset_folder}", "eyes"), parse_views("identity,flips")
    job = job_in(tmp_path, spec, saved, views)
    seen: list[str] = []
    report = extract_on_cluster(dataset, job, client, advance=seen.append)
    assert (report.extracted, report.present, report.failed, report.interrupted) == (24, 0, [], False)
    assert sorted(seen) == sorted(p.name for p in dataset.photographs for _ in views)
    alone, store = FeatureStore("memory://"), FeatureStore(job.store)
    extract_dataset(dataset, alone, Extractor(open_backbone(str(saved)), spec), views=views)
    assert store.collections.read("eyes") == alone.collections.read("eyes")
    assert set(store.keys(spec)) == set(alone.keys(spec))
    for key in alone.keys(spec):
        expected = alone.entry(spec, key).read("block_2")  # by two threads, whose sums are rounded in another order
        np.testing.assert_allclose(store.entry(spec, key).read("block_2"), expected, atol=1e-3 * np.abs(expected).max())
    with monkeypatch.context() as patched:
        submitted = MagicMock(wraps=client.submit)
        patched.setattr(client, "submit", submitted)
        again = extract_on_cluster(dataset, job, client)
    assert (again.extracted, again.present, again.forwards) == (0, 24, 0)
    assert submitted.call_count == 5  # two for each worker, and the rest together, since the first had nothing to do


def test_two_runs_on_one_cluster_keep_apart(
    client: Client, spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    other_spec = changed(spec, timesteps=(1, 10), grid=(1, 10))
    jobs = {"one": job_in(tmp_path / "one", spec, saved), "other": job_in(tmp_path / "other", other_spec, saved)}
    second: list[RunReport] = []

    def start_another(_name: str) -> None:
        if not second:
            second.append(extract_on_cluster(dataset, jobs["other"], client))

    first = extract_on_cluster(dataset, jobs["one"], client, advance=start_another)
    assert (first.extracted, second[0].extracted) == (6, 6)
    for name, made in (("one", spec), ("other", other_spec)):
        store = FeatureStore(jobs[name].store)
        assert store.specs() == [made]
        assert len(list(store.keys(made))) == 6
    assert not plugins(client)  # nothing stays in their memory


def plugins(client: Client) -> list[str]:
    """Ours, of all workers."""
    found = client.run(lambda dask_worker: [name for name in dask_worker.plugins if name.startswith("diffdgss")])
    return [name for names in found.values() for name in names]


def test_a_cluster_without_gpus_is_told(
    client: Client, spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    job = job_in(tmp_path, spec, saved, device="cuda")
    with pytest.raises(ClusterError, match="no worker of the Dask cluster offers a GPU"):
        extract_on_cluster(load_dataset(f"folder:{dataset_folder}"), job, client)


def test_what_cannot_be_used_is_listed(
    client: Client, spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "eye.png").write_bytes((dataset_folder / "images" / "eye0.png").read_bytes())
    (tmp_path / "broken.png").write_bytes(b"rubbish")
    report = extract_on_cluster(load_dataset(f"folder:{tmp_path}"), job_in(tmp_path, spec, saved), client)
    assert report.extracted == 1
    assert [Path(name).name for name, _ in report.failed] == ["broken.png"]


def test_a_stop_leaves_a_clean_store(
    client: Client, spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    dataset, views = load_dataset(f"folder:{dataset_folder}", "eyes"), parse_views("identity,photometric:4")
    job, stop = job_in(tmp_path, spec, saved, views), Stop()
    report = extract_on_cluster(dataset, job, client, stop=stop, advance=lambda _: stop.request())
    store = FeatureStore(job.store)
    assert report.interrupted
    assert 0 < report.extracted < 30
    assert len(list(store.keys(spec))) == report.extracted
    assert store.objects.keys("claims") == []
    assert extract_on_cluster(dataset, job, client).present == report.extracted


def test_a_worker_that_is_killed_loses_nothing(
    spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    dataset, views = load_dataset(f"folder:{dataset_folder}", "eyes"), parse_views("identity,flips,photometric:4")
    job = job_in(tmp_path, spec, saved, views)
    killed: list[int] = []
    with connected(None, 2) as client:
        client.wait_for_workers(2)
        processes = list(client.run(os.getpid).values())

        def kill(_name: str) -> None:
            if not killed:
                killed.append(processes[0])
                os.kill(processes[0], signal.SIGKILL)

        report = extract_on_cluster(dataset, job, client, advance=kill)
        assert killed
        client.wait_for_workers(2)  # another one took its place
        assert processes[0] not in client.run(os.getpid).values()
    store = FeatureStore(job.store)
    assert report.extracted + report.present == 6 * len(views)
    assert len(list(store.keys(spec))) == 6 * len(views)
    assert all(store.verify(spec, key) == [] for key in store.keys(spec))


class Deadly(type(Path())):  # type: ignore[misc]
    """A path that ends every other process which receives it, as a photograph does that needs too much memory."""

    def __reduce__(self) -> tuple[object, ...]:
        here = f"__import__('sys').modules[{__name__!r}].Deadly({str(self)!r})"
        return eval, (f"{here} if __import__('os').getpid() == {os.getpid()} else __import__('os')._exit(137)",)


def test_a_photograph_that_kills_its_workers_is_left_out_and_all_others_are_made(
    spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    whole, job = load_dataset(f"folder:{dataset_folder}", "eyes"), job_in(tmp_path, spec, saved)
    first = dataclasses.replace(whole.photographs[0], image=Deadly(whole.photographs[0].image))
    dataset = dataclasses.replace(whole, photographs=(first, *whole.photographs[1:]))
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), connected(None, 2) as client:
        client.wait_for_workers(2)
        report = extract_on_cluster(dataset, job, client)
    assert (report.extracted + report.present, report.interrupted) == (5, False)
    assert [(image, "died one after the other" in reason) for image, reason in report.failed] == [
        (str(first.image), True)
    ]
    recorded = FeatureStore(job.store).collections.read("eyes")
    assert [sample.name for sample in recorded.samples] == [one.name for one in whole.photographs[1:]]


def test_workers_that_die_with_every_photograph_end_the_run(
    spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extractor.cluster.MOST_LOST", 2)
    whole = load_dataset(f"folder:{dataset_folder}", "eyes")
    deadly = tuple(dataclasses.replace(one, image=Deadly(one.image)) for one in whole.photographs)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), connected(None, 1) as client:
        client.wait_for_workers(1)
        with pytest.raises(ClusterError, match="as those of the 3 tasks before"):
            extract_on_cluster(dataclasses.replace(whole, photographs=deadly), job_in(tmp_path, spec, saved), client)


def test_an_error_that_another_attempt_would_meet_again_is_returned(
    spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise StoreFull("no room left")

    def away(*_: object) -> int:
        raise StoreUnavailable("away")

    plugin = ExtractionPlugin(job_in(tmp_path, spec, saved), "run")
    worker = SimpleNamespace(name="0", state=SimpleNamespace(nthreads=torch.get_num_threads()))
    with ThreadPoolExecutor(1) as pool:  # as a worker does; it leaves the signals of the main thread alone
        pool.submit(plugin.setup, worker).result()  # type: ignore[arg-type]
    work = work_of(load_dataset(f"folder:{dataset_folder}", "eyes").photographs[:1], ("identity",))
    monkeypatch.setattr(plugin.store, "write", full)
    assert isinstance(plugin.run(work).failure, StoreFull)
    monkeypatch.setattr(plugin.store, "write", away)  # which another attempt may find back
    with pytest.raises(StoreUnavailable):
        plugin.run(work)


def test_no_scheduler_and_another_backbone_are_told(
    client: Client, spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    with (
        pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 "),
        connected("tcp://127.0.0.1:1", None),
    ):
        pass
    other = job_in(tmp_path, changed(spec, backbone="0" * 64), saved)
    with pytest.raises(BackboneError, match="the spec was made with backbone 00000"):
        extract_on_cluster(load_dataset(f"folder:{dataset_folder}"), other, client)
    assert not plugins(client)


def test_a_store_that_only_the_workers_see_is_told(
    client: Client, spec: FeatureSpec, saved: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    job = dataclasses.replace(job_in(tmp_path, spec, saved), store="memory://")
    with pytest.raises(ClusterError, match="the store has to be one place that every machine reaches"):
        extract_on_cluster(load_dataset(f"folder:{dataset_folder}"), job, client)
