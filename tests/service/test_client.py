"""The Python client against a service of its own process, which is killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from interpreter.rendering import encode_labels
from service.client import Client, Refused, Unreachable
from service.engine import Engine
from service.schemas import JobStatus
from store import FeatureStore, console
from tests.service.conftest import png

MakeEngine = Callable[..., Engine]


@contextmanager
def service(model: Path, folder: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service in a process of its own, ready; and where it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"DIFFDGSS_JOBS": str(folder / "jobs"), "OMP_NUM_THREADS": "1"} | settings
    call = [sys.executable, "-m", "service.cli", "--model", str(model), "--store", str(folder / "features.zarr")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([*call, "--port", str(port)], env=os.environ | given, stderr=log, stdout=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(4000):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                if httpx.get(f"{url}/readyz", timeout=60).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        else:
            raise AssertionError((folder / "log").read_text())
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            assert process.wait(240) in (0, -signal.SIGTERM)  # uvicorn passes the signal on when it is done


@pytest.mark.slow
def test_it_is_killed_and_goes_on(model_folder: Path, make_engine: MakeEngine, tmp_path: Path) -> None:
    images = [png(seed) for seed in range(200, 224)]
    with service(model_folder, tmp_path) as (process, url), Client(url, retries=0) as client:
        job = client.start_job(images, output="png")
        while client.job(job.id).done < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)  # in the middle of an image
        process.wait(10)
        with pytest.raises(Unreachable):
            client.ready()
    store = FeatureStore(tmp_path / "features.zarr")
    spec = store.specs()[0]
    complete = [key for key in store.keys(spec) if store.has(spec, key)]
    assert all(store.verify(spec, key) == [] for key in complete)  # what has a marker is whole
    with service(model_folder, tmp_path) as (_, url), Client(url) as client:
        seen: list[float] = []
        status = client.wait_for_job(job.id, 0.05, lambda now: seen.append(now.progress))
        assert (status.state, status.done, status.failed) == ("done", 24, 0)
        assert seen[0] > 0  # it did not begin anew
        assert seen == sorted(seen)
        assert client.job_results(job.id)[:2] == b"PK"
        expected = make_engine().segment(images[0])
        assert client.segment_as(images[0], "png") == encode_labels(expected.labels, expected.colours)
        assert client.ready().status == "ready"


def test_it_says_who_may_ask_and_that_its_port_is_taken(model_folder: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "service.cli", "--model", str(model_folder), "--store", str(tmp_path / "store.zarr")]
    given = {"DIFFDGSS_KEEP_NOTHING": "1", "OMP_NUM_THREADS": "1"}
    with socket.create_server(("0.0.0.0", 0)) as taken:
        call += ["--host", "0.0.0.0", "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(call, env=os.environ | given, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == console.Exit.FAILED, ended.stderr
    assert "no API keys: anyone who can reach this address may use the service" in ended.stderr
    assert "address already in use" in ended.stderr.lower()
    assert "choose another --port or --host" in ended.stderr
    assert '"event": "ready"' not in ended.stderr  # nothing was loaded for it


def test_everything_a_client_can_ask(model_folder: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "eye.png"
    photograph.write_bytes(png(9))
    keys = '{"clinic": "secret"}'
    with service(model_folder, tmp_path, DIFFDGSS_API_KEYS=keys) as (_, url):
        with Client(url) as stranger, pytest.raises(Refused, match="401: expected an API key"):
            stranger.models()
        with Client(url, "secret") as client:
            answer = client.segment(photograph, timesteps=[1, 10], by_timestep=True)
            assert answer.timesteps == [1, 10]
            assert set(answer.by_timestep or ()) == {"1", "10"}
            mask = client.mask(photograph)
            assert mask.shape == (answer.height, answer.width)
            features = client.features(photograph)
            assert features.key == answer.key
            np.testing.assert_array_equal(client.mask(key=features.key), mask)
            assert client.stored_features(features.key).blocks == features.blocks
            job = client.wait_for_job(client.start_job([photograph]).id, 0.05)
            assert [one.id for one in client.jobs()] == [job.id]
            with pytest.raises(Refused, match="403: only the keys named in admins"):
                client.reload()
            block = features.blocks[0]
            assert list(client.block(features.key, block.name).shape) == block.shape
            assert client.block(features.key, block.name, timestep=1).shape[0] == 1
            assert [model.name for model in client.models()] == ["vessels"]
            with pytest.raises(Refused) as refused:
                client.segment(b"rubbish")
            assert (refused.value.status, refused.value.retry_after) == (415, None)
            assert "not an image" in refused.value.detail


def test_a_busy_service_is_asked_again_when_it_says() -> None:
    answers = iter([httpx.Response(503, json={"detail": "busy"}, headers={"Retry-After": "0"})] * 2)

    def answer(_request: httpx.Request) -> httpx.Response:
        return next(answers, httpx.Response(200, json=[]))

    with Client(transport=httpx.MockTransport(answer)) as client:
        assert client.models() == []
    for date in ("Wed, 21 Oct 2015 07:28:00 GMT", "soon"):  # of a proxy
        dated = httpx.Response(503, json={"detail": "busy"}, headers={"Retry-After": date})
        with Client(transport=httpx.MockTransport(lambda _, dated=dated: dated)) as client, pytest.raises(Refused):
            client.models()
    refusal = httpx.Response(503, text="no JSON", headers={"Retry-After": "0"})
    with Client(transport=httpx.MockTransport(lambda _: refusal), retries=1) as client, pytest.raises(Refused) as told:
        client.models()
    assert (told.value.status, told.value.detail) == (503, "no JSON")


def test_a_service_that_is_restarted_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, waited = list[str](), list[float]()
    monkeypatch.setattr("service.client.time.sleep", waited.append)

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if len(asked) < 3:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=[])

    with Client(transport=httpx.MockTransport(answer)) as client:
        assert client.jobs() == []
        assert (asked, waited) == (["GET"] * 3, [1.0, 2.0])
        asked.clear()
        with pytest.raises(Unreachable, match="does not answer"):  # it may have been begun
            client.segment(b"a")
        assert asked == ["POST"]
    with Client(transport=httpx.MockTransport(answer), retries=1) as hasty, pytest.raises(Unreachable):
        asked.clear()
        hasty.jobs()


def test_what_is_no_photograph_is_not_sent() -> None:
    silent = httpx.MockTransport(lambda _: httpx.Response(200))
    with Client(transport=silent) as client, pytest.raises(TypeError, match="expected a Path or the bytes"):
        client.segment("eye.jpg")  # type: ignore[arg-type]


def test_keys_in_any_script_are_sent() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert dict(request.headers.raw)[b"Authorization"] == "Bearer \u043a\u043b\u044e\u0447".encode()
        return httpx.Response(200, json=[])

    with Client(api_key="\u043a\u043b\u044e\u0447", transport=httpx.MockTransport(answer)) as client:
        assert client.models() == []


def test_waiting_for_a_job_has_an_end() -> None:
    (status,) = JobStatus.model_json_schema()["examples"]
    running = httpx.MockTransport(lambda _: httpx.Response(200, json=status))
    with Client(transport=running) as client, pytest.raises(TimeoutError, match=r"is running after 0\.02 s"):
        client.wait_for_job("0" * 32, poll_seconds=0.01, timeout=0.02)


def test_results_are_written_to_a_file_as_a_whole(tmp_path: Path) -> None:
    answers = [httpx.Response(200, content=b"a zip"), httpx.Response(409, json={"detail": "the job is running"})]
    with Client(transport=httpx.MockTransport(lambda _: answers.pop(0))) as client:
        client.save_job_results("0" * 32, tmp_path / "results.zip")
        assert (tmp_path / "results.zip").read_bytes() == b"a zip"
        with pytest.raises(Refused, match="the job is running"):
            client.save_job_results("0" * 32, tmp_path / "other.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["results.zip"]


def test_folders_have_names_in_any_language() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(404, json={"detail": "no such folder"})

    with Client(transport=httpx.MockTransport(answer)) as client, pytest.raises(Refused):
        client.start_job(folder="Grüße", model=None)
    assert "Grüße".encode() in asked[0].content
    assert "model" not in asked[0].url.params


@pytest.mark.slow
def test_a_client_that_goes_away_leaves_the_queue(model_folder: Path, tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(60, 255, (3000, 3000, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.ppm")
    with service(model_folder, tmp_path) as (_, url):
        with pytest.raises(Unreachable, match="timed out"), Client(url, timeout=0.2) as hasty:
            hasty.segment(tmp_path / "large.ppm")
        for _ in range(4000):
            text = httpx.get(f"{url}/metrics", timeout=60).text
            if "diffdgss_queue_length 0.0" in text and "diffdgss_requests_in_flight 1.0" in text:
                break
            time.sleep(0.05)
        assert "diffdgss_queue_length 0.0" in text
        assert 'status="500"' not in text
