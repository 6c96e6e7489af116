"""Jobs: done behind the requests, cancelled, resumed, fetched as ZIP, and nobody else's business."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from interpreter.domain import DomainScore
from interpreter.rendering import encode_labels
from service.archive import archived
from service.engine import Engine
from service.errors import BodyTooLarge, Busy, Conflict, DeviceLost, Unavailable
from service.flights import Flight, Ticket
from service.job_record import AnswerSummary, JobRecord, as_report, as_table
from service.job_runner import JobRunner
from service.jobs import JobLimits, Jobs, Submitted
from service.models import Models
from service.options import Options
from service.outputs import OUTPUTS, SourcePhotograph
from service.question import Question
from service.settings import Settings
from service.sources import Sources
from store.errors import StoreFull, StoreUnavailable
from store.objects import open_objects
from tests.service.conftest import png, serving

MakeEngine = Callable[..., Engine]
LIMITS = JobLimits(max_unfinished=10, hours=24, bytes=10**9)


def finished(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    for _ in range(1200):
        status: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").json()
        if status["finished"] is not None:
            return status
        time.sleep(0.05)
    raise AssertionError("the job did not end")


def archive_of(jobs: Jobs, record: JobRecord) -> zipfile.ZipFile:
    async def result(number: int) -> bytes:
        return jobs.result(record, number)

    async def pieces() -> list[bytes]:
        return [piece async for piece in archived(record, result)]

    return zipfile.ZipFile(io.BytesIO(b"".join(asyncio.run(pieces()))))


def photographs(*data: bytes) -> list[Submitted]:
    """Uploads called a.png, b.png, ..."""
    return [Submitted(f"{name}.png", one) for name, one in zip("abcdef", data, strict=False)]


def uploads(*data: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"eye {i}.png", one)) for i, one in enumerate(data)]


def test_a_job_from_upload_to_zip(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with serving(engine) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        started = client.post("/v1/jobs", files=uploads(png(1), b"rubbish", png(2)))
        assert started.status_code == 202
        assert started.headers["location"] == f"/v1/jobs/{started.json()['id']}"
        status = finished(client, started.json())
        assert (status["state"], status["done"], status["failed"], status["progress"]) == ("done", 2, 1, 1.0)
        assert status["problems"][0]["name"] == "eye 1.png"
        assert "not an image" in status["problems"][0]["detail"]
        archive = zipfile.ZipFile(io.BytesIO(client.get(status["results"]).content))
        assert archive.testzip() is None
        assert archive.namelist() == ["00000_eye 0.png", "00002_eye 2.png", "images.csv", "job.json"]
        for name, seed in (("00000_eye 0.png", 1), ("00002_eye 2.png", 2)):
            answer = engine.segment(png(seed))
            assert archive.read(name) == encode_labels(answer.labels, answer.colours)
        assert [job["id"] for job in client.get("/v1/jobs").json()] == [status["id"]]
        status = finished(client, client.post("/v1/jobs?mirrored=true", files=uploads(png(1))).json())
        archive = zipfile.ZipFile(io.BytesIO(client.get(status["results"]).content))
        answer = engine.segment(png(1), mirrored=True)
        assert archive.read("00000_eye 0.png") == encode_labels(answer.labels, answer.colours)
        assert not np.array_equal(answer.labels, engine.segment(png(1)).labels)
        assert client.delete(f"/v1/jobs/{status['id']}").status_code == 409


def test_a_job_of_a_folder_that_is_allowed(make_engine: MakeEngine, tmp_path: Path) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed / "ward", secret):
        folder.mkdir(parents=True)
        (folder / "eye.png").write_bytes(png(3))
    (allowed / "ward" / "notes.txt").write_text("no photograph")
    (allowed / "ward" / "link.png").symlink_to(secret / "eye.png")
    with serving(make_engine(), folders={"clinic": allowed}) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        started = client.post("/v1/jobs", headers={"X-Folder": "clinic/ward"}, params={"output": "json", "mask": "rle"})
        assert started.status_code == 202, started.text
        status = finished(client, started.json())
        assert (status["total"], status["done"]) == (1, 1)  # the link leads out and is not followed
        assert str(tmp_path) not in client.get(status["results"]).text
        for folder, expected in [
            ("clinic/../secret", 403),
            ("secret", 403),
            (str(secret), 403),
            ("clinic/nothing", 404),
            ("clinic//etc", 403),
            ("clinic/./ward", 403),
        ]:
            assert client.post("/v1/jobs", headers={"X-Folder": folder}).status_code == expected, folder


def test_a_job_waits_while_its_folder_is_away_and_others_go_on(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes" / "eye.png").write_bytes(png(3))
    jobs, sources = Jobs(open_objects(tmp_path / "jobs"), LIMITS), Sources({"clinic": tmp_path / "eyes"})
    waits = jobs.create("anybody", Options(output="png"), [Submitted("eye.png", source="clinic/eye.png")])
    (tmp_path / "eyes").rename(tmp_path / "elsewhere")
    (tmp_path / "eyes").mkdir()  # as the place where a network share was mounted
    goes_on = jobs.create("anybody", Options(output="png"), [Submitted("b.png", png(4))])
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True), sources)
    runner.start()
    assert ended(jobs, goes_on.id).count("done") == 1
    now = jobs.read(waits.id)
    assert now is not None
    assert (now.state, now.count("waiting"), now.trouble) == (
        "running", 1, "the folder clinic cannot be read now (the folder is empty or not mounted); ask later"
    )  # fmt: skip
    (tmp_path / "eyes").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "eyes")
    runner.wake()
    assert ended(jobs, waits.id).count("done") == 1
    runner.stop()


def ended(jobs: Jobs, job_id: str) -> JobRecord:
    for _ in range(1200):
        record = jobs.read(job_id)
        if record is not None and record.state == "done":
            return record
        time.sleep(0.05)
    raise AssertionError("the job did not end")


def test_what_cannot_be_meant_is_told_at_once(make_engine: MakeEngine) -> None:
    with serving(make_engine(), job_images=2, job_bytes=100_000) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        assert client.post("/v1/jobs").status_code == 400
        assert client.post("/v1/jobs", files=uploads(png(1)), params={"output": "docx"}).status_code == 406
        assert client.post("/v1/jobs", files=uploads(png(1)), params={"labels": "disc"}).status_code == 404
        assert client.post("/v1/jobs", files=uploads(png(1)), params={"fov_only": True}).status_code == 400
        assert client.post("/v1/jobs", files=uploads(*[png(1)] * 3)).status_code == 400
        assert client.post("/v1/jobs", files=uploads(b"0" * 200_000)).status_code == 413
        for missing in ("0" * 32, "f" * 32):
            assert client.get(f"/v1/jobs/{missing}").status_code == 404
        assert client.get("/v1/jobs/../../etc/passwd").status_code == 404
        assert client.get("/v1/jobs/xyz").status_code == 422


def test_a_job_is_cancelled_behind_the_image_it_is_at(make_engine: MakeEngine) -> None:
    engine, gate, begun = make_engine(), threading.Event(), threading.Event()
    with serving(engine) as client, ThreadPoolExecutor(1) as pool:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        busy = pool.submit(engine.device.run, lambda: begun.set() or gate.wait(120), lambda: True)  # type: ignore[func-returns-value]
        assert begun.wait(60)
        job = client.post("/v1/jobs", files=uploads(*[png(seed) for seed in range(10, 16)])).json()
        assert client.get(f"/v1/jobs/{job['id']}/results").status_code == 409
        assert client.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
        gate.set()
        assert busy.result(60)[0]
        after = client.post("/v1/jobs", files=uploads(png(16))).json()
        assert finished(client, after)["done"] == 1  # one thread does all jobs: it has left the cancelled one
        status = client.get(f"/v1/jobs/{job['id']}").json()
        assert status["state"] == "cancelled"
        assert status["done"] <= 3
        assert client.get(status["results"]).status_code == 200


def test_a_finished_job_is_deleted_with_its_answers(make_engine: MakeEngine) -> None:
    with serving(make_engine()) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        job = client.post("/v1/jobs", files=uploads(png(17))).json()
        path, jobs = f"/v1/jobs/{job['id']}", client.app.state.context.jobs.jobs  # type: ignore[attr-defined]
        finished(client, job)
        with jobs.reading(job["id"]):
            assert client.delete(f"{path}/results").status_code == 409
        assert client.delete(f"{path}/results").status_code == 204
        for gone in (path, f"{path}/results"):
            assert client.get(gone).status_code == 404
        assert client.delete(f"{path}/results").status_code == 404
        assert jobs.all() == []


def test_an_unfinished_job_is_not_deleted(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(), photographs(b"a"))
    with pytest.raises(Conflict, match="the job is queued; cancel it first"):
        jobs.remove(record)
    jobs.remove(jobs.cancel(record))
    assert jobs.read(record.id) is None


def test_a_job_goes_on_where_a_killed_service_left_it(make_engine: MakeEngine, tmp_path: Path) -> None:
    settings = Settings(jobs=tmp_path, keep_nothing=False)
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(output="png"), photographs(png(4), png(5)))
    record.state, record.items[0].state = "running", "done"  # killed between the first and the second
    jobs.put_result(record, 0, b"the first answer")
    jobs.save(record)
    (tmp_path / "0123456789abcdef0123456789abcdef" / "inputs").mkdir(parents=True)  # killed while it was uploaded
    engine = make_engine()
    runner = JobRunner(Jobs(open_objects(tmp_path), LIMITS), engine, settings, Sources({}))
    runner.start()
    for _ in range(1200):
        now = jobs.read(record.id)
        assert now is not None
        if now.state == "done":
            break
        time.sleep(0.05)
    runner.stop()
    assert not (tmp_path / "0123456789abcdef0123456789abcdef").exists()
    assert not list((tmp_path / record.id / "inputs").glob("*"))  # no longer than they are needed
    assert now.bytes == len(b"the first answer") + (tmp_path / record.id / "results" / "00001").stat().st_size
    assert now.count("done") == 2
    assert engine.models.default.extractor.forwards == 3  # the first was not done again
    archive = archive_of(jobs, now)
    assert archive.read("00000_a.png") == b"the first answer"
    assert np.asarray(Image.open(io.BytesIO(archive.read("00001_b.png")))).shape == (80, 96)


def test_old_jobs_are_deleted_and_new_ones_are_bounded(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), JobLimits(1, 1, 10**9))
    record = jobs.create("anybody", Options(), photographs(b"a"))
    with pytest.raises(Exception, match="1 jobs are unfinished"):
        jobs.create("anybody", Options(), photographs(b"a"))
    record.state, record.finished = "done", time.time() - 3601
    jobs.save(record)
    jobs.create("anybody", Options(), photographs(b"a"))
    assert jobs.read(record.id) is None
    assert not (tmp_path / record.id / "inputs" / "00000").exists()


def test_finished_jobs_make_room_and_unfinished_ones_do_not(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), JobLimits(10, 24, bytes=100))

    def create(size: int) -> JobRecord:
        return jobs.create("anybody", Options(), photographs(bytes(size)))

    empty, old, new = create(0), create(40), create(40)
    for record in (empty, old):
        record.state, record.finished = "done", time.time()
        jobs.save(record)
    with pytest.raises(Busy, match="unfinished jobs take all the room"):
        create(61)
    assert jobs.read(old.id) is not None  # it would not have been enough
    create(60)
    assert jobs.read(old.id) is None
    assert jobs.read(empty.id) is not None  # it takes no room
    jobs.put_result(new, 0, bytes(40))  # takes the photograph's place
    jobs.save(new)
    with pytest.raises(Busy, match="unfinished jobs take all the room"):
        jobs.put_result(new, 0, bytes(1))


def test_what_is_being_read_stays_until_it_is_read(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), JobLimits(10, 24, bytes=100))
    record = jobs.create("anybody", Options(), photographs(bytes(40)))
    jobs.put_result(record, 0, bytes(60))
    record.state, record.finished, record.items[0].state = "done", 0.0, "done"  # long ago
    jobs.save(record)
    with jobs.reading(record.id):
        assert [kept.id for kept in jobs.delete_old()] == [record.id]
        with pytest.raises(Busy, match="take all the room"):
            jobs.create("anybody", Options(), photographs(bytes(60)))
        assert archive_of(jobs, record).testzip() is None
    jobs.create("anybody", Options(), photographs(bytes(60)))
    assert jobs.read(record.id) is None


def test_uploads_at_once_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = open_objects(tmp_path)
    jobs, put = Jobs(objects, JobLimits(1, 24, bytes=100)), objects.put
    begun, go = threading.Event(), threading.Event()

    def slowly(key: str, data: bytes) -> None:
        begun.set()
        assert go.wait(60)
        put(key, data)

    monkeypatch.setattr(objects, "put", slowly)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(jobs.create, "anybody", Options(), photographs(bytes(60)))
        assert begun.wait(60)
        with pytest.raises(Busy, match="1 jobs are unfinished"):
            jobs.create("anybody", Options(), photographs(bytes(10)))
        jobs.limits = JobLimits(10, 24, bytes=100)
        with pytest.raises(Busy, match="take all the room"):
            jobs.create("anybody", Options(), photographs(bytes(60)))
        go.set()
        assert first.result(60).count("waiting") == 1


def test_a_job_that_was_deleted_does_not_come_back(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), JobLimits(10, 0.0, 10**6))
    record = jobs.create("anybody", Options(), photographs(b"a"))
    jobs.cancel(record)
    jobs.delete_old()
    assert jobs.read(record.id) is None
    jobs.save(record)  # by whoever was at it
    assert jobs.read(record.id) is None


def test_jobs_that_were_taken_are_done_however_full_it_is(make_engine: MakeEngine, tmp_path: Path) -> None:
    data = [png(4), png(5)]
    jobs = Jobs(open_objects(tmp_path), JobLimits(10, 24, bytes=sum(map(len, data))))
    record = jobs.create("anybody", Options(output="png"), photographs(*data))
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True), Sources({}))
    runner.start()
    assert ended(jobs, record.id).count("done") == 2
    runner.stop()


def test_a_folder_that_stays_away_is_given_up(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "eyes").mkdir()
    jobs = Jobs(open_objects(tmp_path / "jobs"), LIMITS)
    record = jobs.create("anybody", Options(output="png"), [Submitted("eye.png", source="clinic/eye.png")])
    sources = Sources({"clinic": tmp_path / "eyes"})
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True, job_hours=1e-9), sources)
    runner.start()
    (item,) = ended(jobs, record.id).items
    runner.stop()
    assert (item.state, "(the folder is empty or not mounted)" in str(item.problem)) == ("failed", True)


def test_a_photograph_that_fails_in_an_unexpected_way_ends_no_job(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, engine = Jobs(open_objects(tmp_path), LIMITS), make_engine()
    record = jobs.create("anybody", Options(output="png"), photographs(png(4), png(5)))
    rendered, names = list[str](), {png(4): "a.png", png(5): "b.png"}

    def render(_answer: object, _options: object, source: SourcePhotograph) -> bytes:
        name = names[source.data]  # type: ignore[index]
        rendered.append(name)
        if name == "a.png" or rendered.count(name) == 1:
            raise UnicodeDecodeError("utf-8", b"x", 0, 1, "of a class that does not take a message alone")
        return b"an answer"

    monkeypatch.setitem(OUTPUTS, "png", OUTPUTS["png"]._replace(render=render))
    runner = JobRunner(jobs, engine, Settings(keep_nothing=True), Sources({}))
    runner.start()
    failed, done = ended(jobs, record.id).items
    runner.stop()
    assert (failed.state, failed.problem) == ("failed", "internal error; the log of the service has more")
    assert done.state == "done"
    assert rendered == ["a.png", "b.png", "a.png", "b.png", "a.png"]


def test_a_photograph_that_stops_the_service_is_tried_alone_and_not_for_ever(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, engine = Jobs(open_objects(tmp_path), LIMITS), make_engine()
    record = jobs.create("anybody", Options(output="png"), photographs(png(4), png(5), png(6)))
    attempts: list[tuple[int, ...]] = []

    def killed_by_the_first(_answer: object, _options: object, source: SourcePhotograph) -> bytes:
        if source.data == png(4):
            on_disk = jobs.read(record.id)
            assert on_disk is not None
            attempts.append(tuple(len(item.begun_by) for item in on_disk.items if item.state == "waiting"))
            raise SystemExit  # as if the process were gone: nothing is written any more
        return b"an answer"

    monkeypatch.setitem(OUTPUTS, "png", OUTPUTS["png"]._replace(render=killed_by_the_first))
    for _ in range(4):  # it is started anew each time
        runner = JobRunner(jobs, engine, Settings(keep_nothing=True), Sources({}))
        with suppress(SystemExit):
            runner.run_once()
    poison, *others = ended(jobs, record.id).items
    assert attempts == [(1, 1, 0), (2, 1), (3,)]  # beside others, which it costs an attempt, then alone
    assert poison.problem == "3 runs of the service were stopped while processing this photograph"
    assert [item.state for item in others] == ["done", "done"]


def test_a_photograph_that_is_gone_is_its_own_trouble(make_engine: MakeEngine, tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(output="png"), photographs(png(4), png(5)))
    (tmp_path / record.id / "inputs" / "00000").unlink()
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True), Sources({}))
    runner.start()
    gone, done = ended(jobs, record.id).items
    runner.stop()
    assert (gone.state, done.state) == ("failed", "done")


def test_a_storage_that_keeps_no_records_makes_no_photograph_guilty(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_objects(tmp_path)
    jobs, put = Jobs(objects, LIMITS), objects.put
    record = jobs.create("anybody", Options(output="png"), photographs(png(4)))
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True), Sources({}))

    def refuses_the_end(key: str, data: bytes) -> None:
        if key.endswith("job.json") and b'"state":"done"' in data:
            raise StoreUnavailable("away")
        put(key, data)

    monkeypatch.setattr(objects, "put", refuses_the_end)
    assert [runner.run_once() for _ in range(5)] == [False] * 5
    monkeypatch.setattr(objects, "put", put)
    assert runner.run_once()
    (item,) = ended(jobs, record.id).items
    assert item.state == "done"


def test_a_photograph_that_loses_the_device_is_counted_and_others_are_not(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, engine = Jobs(open_objects(tmp_path), LIMITS), make_engine()
    record = jobs.create("anybody", Options(output="png"), photographs(png(4), png(5)))

    def lost(question: Question, ticket: Ticket, **_: object) -> Flight[Any]:
        flight: Flight[Any] = Flight("", ticket)
        flight.future.set_exception(DeviceLost(by_this=question.data == png(4)))
        return flight

    monkeypatch.setattr(engine, "ask", lost)
    assert not JobRunner(jobs, engine, Settings(keep_nothing=True), Sources({})).run_once()
    kept = jobs.read(record.id)
    assert kept is not None
    assert [len(item.begun_by) for item in kept.items] == [1, 0]


def test_what_answers_say_about_themselves_is_in_the_zip(make_engine: MakeEngine, tmp_path: Path) -> None:
    for ward in ("p1", "p2"):
        (tmp_path / ward).mkdir()
        (tmp_path / ward / "left.png").write_bytes(png(1 if ward == "p1" else 2))
    (tmp_path / "p2" / "right.png").write_bytes(b"rubbish")
    engine = make_engine()
    with serving(engine, folders={"clinic": tmp_path}) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        status = finished(client, client.post("/v1/jobs", headers={"X-Folder": "clinic"}).json())
        assert status["abstained"] == 0
        archive = zipfile.ZipFile(io.BytesIO(client.get(status["results"]).content))
        answer = engine.segment(png(1))
    report = json.loads(archive.read("job.json"))
    first, second, failed = report["images"]
    assert [image["source"] for image in report["images"]] == [
        "clinic/p1/left.png", "clinic/p2/left.png", "clinic/p2/right.png",
    ]  # fmt: skip
    assert (first["file"], second["file"], failed["file"]) == ("00000_left.png", "00001_left.png", None)
    assert (first["image_id"], first["model"], first["version"], first["spec"]) == (
        answer.image_id, answer.model, answer.version, answer.spec,
    )  # fmt: skip
    assert first["warnings"] == list(answer.warnings) != []
    assert first["expected_dice"] == answer.expected_dice == {"mask": pytest.approx(answer.expected_dice["mask"])}
    assert "not an image" in failed["problem"]
    assert (report["options"]["model"], report["options"]["output"]) == ("vessels", "png")
    rows = list(csv.DictReader(io.StringIO(archive.read("images.csv").decode())))
    assert [row["file"] for row in rows] == ["00000_left.png", "00001_left.png", ""]
    assert rows[0]["warnings"] == "; ".join(answer.warnings)
    assert (rows[0]["expected_dice_mask"], rows[2]["expected_dice_mask"]) == (str(answer.expected_dice["mask"]), "")
    assert rows[2]["problem"] == failed["problem"]
    assert (rows[0]["share_mask"], rows[2]["share_mask"]) == (str(answer.areas["mask"].share), "")
    assert (rows[0]["unusual"], first["unusual"]) == ("", [])


def test_an_answer_that_should_not_be_relied_on_is_counted(tmp_path: Path, make_engine: MakeEngine) -> None:
    jobs, engine = Jobs(open_objects(tmp_path), LIMITS), make_engine()
    record = jobs.create("anybody", Options(output="png"), photographs(png(4)))
    score = DomainScore(distance=9.0, threshold=2.0, residual=None, residual_range=None)
    record.items[0].state, record.items[0].answer = (
        "done",
        AnswerSummary.of(replace(engine.segment(png(4)), domain=score)),
    )
    jobs.save(record)
    kept = jobs.read(record.id)
    assert kept is not None
    former = JobRecord.model_validate_json(record.model_dump_json().replace('"answer":', '"told":'))  # as it was called
    assert former.items[0].answer == kept.items[0].answer is not None
    assert as_report(kept)["images"][0]["abstain"] is True
    row = next(csv.DictReader(io.StringIO(as_table(kept))))
    assert (row["distance"], row["unusual"]) == ("9.0", "distance")
    with serving(engine) as client:
        client.app.state.context.jobs.jobs = jobs  # type: ignore[attr-defined]
        assert client.get(f"/v1/jobs/{record.id}").json()["abstained"] == 1


def test_a_cancelled_job_stays_so_whoever_is_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = open_objects(tmp_path)
    one, other, put = Jobs(objects, LIMITS), Jobs(open_objects(tmp_path), LIMITS), objects.put
    record = one.create("anybody", Options(), photographs(b"a"))
    at_it = one.read(record.id)
    assert at_it is not None
    at_it.state = "running"

    def cancelled_meanwhile(key: str, data: bytes) -> None:
        other.cancel(record)
        put(key, data)

    monkeypatch.setattr(objects, "put", cancelled_meanwhile)
    one.save(at_it)
    kept = one.read(record.id)
    assert kept is not None
    assert (kept.state, kept.finished is not None, kept.bytes) == ("cancelled", True, 0)


def test_no_more_jobs_are_deleted_than_make_room(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), JobLimits(10, 24, bytes=100))
    older, newer = (jobs.create("anybody", Options(), photographs(bytes(40))) for _ in range(2))
    for record in (older, newer):
        record.state, record.finished = "done", time.time()
        jobs.save(record)
    jobs.create("anybody", Options(), photographs(bytes(60)))
    assert (jobs.read(older.id), jobs.read(newer.id) is not None) == (None, True)


def test_a_job_that_another_service_has_finished_stays_so(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(), photographs(b"a"))
    late = record.model_copy(deep=True)
    record.state, record.finished = "done", time.time()
    jobs.save(record)
    jobs.save(late)
    kept = jobs.read(record.id)
    assert kept is not None
    assert kept.state == "done"


def test_an_answer_to_a_deleted_job_is_not_kept(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), JobLimits(10, 0.0, 10**6))
    record = jobs.create("anybody", Options(), photographs(b"a"))
    jobs.cancel(record)
    jobs.delete_old()
    jobs.put_result(record, 0, b"too late")
    assert not (tmp_path / record.id / "results").exists()


def test_jobs_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    jobs = Jobs(open_objects(tmp_path / "file" / "jobs"), LIMITS)
    with pytest.raises(Unavailable, match="cannot be stored"):
        jobs.create("anybody", Options(), photographs(b"a"))


def test_a_record_that_is_damaged_is_nobodys_end(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(), photographs(b"a"))
    (tmp_path / record.id / "job.json").write_text("{")
    assert jobs.all() == []


def test_a_job_is_its_owners_alone(make_engine: MakeEngine) -> None:
    with serving(make_engine(), api_keys={"one": "1", "two": "2"}) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        mine, theirs = {"X-API-Key": "1"}, {"X-API-Key": "2"}
        job = client.post("/v1/jobs", files=uploads(png(6)), headers=mine).json()
        for method, path in [("GET", ""), ("GET", "/results"), ("DELETE", ""), ("DELETE", "/results")]:
            assert client.request(method, f"/v1/jobs/{job['id']}{path}", headers=theirs).status_code == 404
        assert client.get("/v1/jobs", headers=theirs).json() == []
        assert client.get(f"/v1/jobs/{job['id']}", headers=mine).status_code == 200


def test_services_at_one_place_leave_each_other_their_jobs(make_engine: MakeEngine, tmp_path: Path) -> None:
    mine, theirs = Jobs(open_objects(tmp_path), LIMITS), Jobs(open_objects(tmp_path), LIMITS)
    busy, other, own = (
        theirs.create("anybody", Options(output="png", model=model), photographs(png(4)))
        for model in ("vessels", "disc_cup", "vessels")
    )
    assert theirs.claims.acquire(busy.id)
    assert theirs.claims.acquire("0123456789abcdef0123456789abcdef")  # is being uploaded
    (tmp_path / "0123456789abcdef0123456789abcdef" / "inputs").mkdir(parents=True)
    runner = JobRunner(mine, make_engine(), Settings(keep_nothing=True), Sources({}))
    runner.start()
    assert ended(mine, own.id).count("done") == 1
    runner.stop()
    found = mine.read(busy.id), mine.read(other.id)
    assert [(one.state, one.trouble) for one in found if one is not None] == [
        ("queued", None),
        ("queued", "the model disc_cup is not loaded"),
    ]
    assert (tmp_path / "0123456789abcdef0123456789abcdef").exists()


def test_a_job_keeps_the_model_it_was_given(make_engine: MakeEngine) -> None:
    with serving(make_engine()) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        job = client.post("/v1/jobs", files=uploads(png(6))).json()
        record = client.app.state.context.jobs.jobs.read(job["id"])  # type: ignore[attr-defined]
        assert record.options.model == "vessels"


def test_an_output_that_cannot_be_written_costs_no_work(make_engine: MakeEngine, tmp_path: Path) -> None:
    jobs, engine = Jobs(open_objects(tmp_path), LIMITS), make_engine()
    record = jobs.create("anybody", Options(output="dicom-seg"), photographs(png(4)))
    runner = JobRunner(jobs, engine, Settings(keep_nothing=True), Sources({}))
    runner.start()
    (item,) = ended(jobs, record.id).items
    runner.stop()
    assert item.state == "failed"
    assert engine.models.default.extractor.forwards == 0


def test_a_full_disk_is_a_jobs_trouble_and_not_its_end(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = open_objects(tmp_path)
    jobs, put = Jobs(objects, LIMITS), objects.put
    record = jobs.create("anybody", Options(output="png"), photographs(png(4)))

    def full(key: str, data: bytes) -> None:
        if "/results/" in key:
            raise StoreFull("no room left")
        put(key, data)

    monkeypatch.setattr(objects, "put", full)
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True), Sources({}))
    runner.start()
    for _ in range(1200):
        now = jobs.read(record.id)
        assert now is not None
        if now.trouble is not None:
            break
        time.sleep(0.05)
    assert (now.state, now.trouble) == ("running", "the answers of the job cannot be stored now")
    monkeypatch.setattr(objects, "put", put)
    runner.wake()
    assert ended(jobs, record.id).count("done") == 1
    runner.stop()


def test_jobs_in_memory_are_bounded_by_it(make_engine: MakeEngine) -> None:
    with serving(make_engine(), memory_bytes=2_000_000_000) as client:
        assert client.app.state.context.jobs.jobs.limits.bytes == 2_000_000_000  # type: ignore[attr-defined]


def test_a_photograph_that_cannot_be_asked_for_ends_no_job(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(source: SourcePhotograph) -> None:
        if source.data == png(4):
            raise TypeError("of a library that nobody expected it of")

    monkeypatch.setitem(OUTPUTS, "png", OUTPUTS["png"]._replace(check=check))
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(output="png"), photographs(png(4), png(5)))
    JobRunner(jobs, make_engine(), Settings(keep_nothing=True), Sources({})).run_once()
    bad, good = ended(jobs, record.id).items
    assert (bad.state, bad.failures, good.state) == ("failed", 3, "done")


def test_who_slept_longer_than_its_claim_leaves_the_job_to_whoever_took_over(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    mine, others = (Jobs(open_objects(tmp_path), LIMITS) for _ in "ab")
    record = mine.create("anybody", Options(output="png"), photographs(*map(png, range(4))))
    sleeper, other = (JobRunner(jobs, engine, Settings(keep_nothing=True), Sources({})) for jobs in (mine, others))
    read, slept = mine.read, list[int]()

    def sleeping(job_id: str) -> JobRecord | None:  # asked before each photograph
        current = read(job_id)
        if current is not None and current.count("done") and not slept:
            slept.append(current.count("waiting"))
            claim = tmp_path / "claims" / record.id
            claim.write_text(json.dumps(json.loads(claim.read_text()) | {"renewed": time.time() - 200}))
            assert other.run_once()
        return current

    monkeypatch.setattr(mine, "read", sleeping)
    sleeper.run_once()
    assert slept == [3]
    done = others.read(record.id)
    assert done is not None
    assert (done.state, [item.state for item in done.items]) == ("done", ["done"] * 4)
    archive = archive_of(mine, done)
    assert len([name for name in archive.namelist() if name.endswith(".png")]) == 4


def test_a_job_waits_for_its_model_where_a_reload_takes_it_away(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, jobs = make_engine(), Jobs(open_objects(tmp_path), LIMITS)
    before, name = engine.models, engine.models.default.name
    record = jobs.create("anybody", Options(output="png", model=name), photographs(png(1), png(2), png(3)))
    runner = JobRunner(jobs, engine, Settings(keep_nothing=True), Sources({}))

    def reloading(*_: object) -> bytes:
        engine.models = Models([replace(before.default, name="another")])
        return b"an answer"

    monkeypatch.setitem(OUTPUTS, "png", OUTPUTS["png"]._replace(render=reloading))
    runner.run_once()
    waiting = jobs.read(record.id)
    assert waiting is not None
    assert [item.state for item in waiting.items] == ["done", "done", "waiting"]  # two are in flight at a time
    assert waiting.trouble == f"the model {name} is not loaded"
    waiting.trouble = "the answers of the job cannot be stored now"  # an older reason
    jobs.save(waiting)
    runner.run_once()
    known = jobs.read(record.id)
    assert known is not None
    assert known.trouble == f"the model {name} is not loaded"
    monkeypatch.undo()
    engine.models = before
    runner.run_once()
    assert ended(jobs, record.id).count("done") == 3


def test_trouble_with_the_storage_of_jobs_is_seen_in_readyz(make_engine: MakeEngine) -> None:
    with serving(make_engine()) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        assert (client.get("/readyz").json()["status"], client.get("/readyz").json()["jobs"]) == ("ready", None)
        storage = client.app.state.context.jobs  # type: ignore[attr-defined]

        def full() -> None:
            raise StoreFull("no room left")

        storage.jobs.require_writable, storage.cool_down = full, 0.0
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["jobs"]) == (200, "degraded", "no room left")
        released, probes = threading.Event(), list[int]()
        storage.jobs.require_writable = lambda: probes.append(1) or released.wait(120)
        for _ in range(2):
            assert client.get("/readyz").json()["jobs"] == "the storage of jobs does not answer"
        assert probes == [1]
        released.set()


def test_a_disk_without_room_for_answers_is_seen_in_readyz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = open_objects(tmp_path)
    jobs, put, free = Jobs(objects, LIMITS), objects.put, [10]
    record = jobs.create("anybody", Options(), photographs(bytes(5)))

    def full(key: str, *parts: bytes) -> None:
        if sum(map(len, parts)) > free[0] and "/results/" in key:
            raise StoreFull("no room left")
        put(key, *parts)

    monkeypatch.setattr(objects, "put", full)
    monkeypatch.setattr(objects, "free_bytes", lambda: free[0])
    jobs.require_writable()
    with pytest.raises(StoreFull):
        jobs.put_result(record, 0, bytes(50))
    with pytest.raises(StoreFull, match="50 bytes"):
        jobs.require_writable()
    free[0] = 60
    jobs.require_writable()
    jobs.put_result(record, 0, bytes(50))
    free[0] = 0
    jobs.require_writable()


def test_photographs_that_can_never_fit_are_too_large(tmp_path: Path) -> None:
    with pytest.raises(BodyTooLarge, match="have 101 bytes, all jobs together may have 100"):
        Jobs(open_objects(tmp_path), JobLimits(10, 24, bytes=100)).create("anybody", Options(), photographs(bytes(101)))


def test_the_photographs_of_a_cancelled_job_say_why_they_have_no_answer(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.cancel(jobs.create("anybody", Options(), photographs(b"a", b"b")))
    rows = list(csv.DictReader(io.StringIO(as_table(record))))
    assert [row["number"] + row["problem"] for row in rows] == [f"{i}the job was cancelled before" for i in (0, 1)]


def test_a_runner_whose_storage_hangs_is_left_behind(make_engine: MakeEngine, tmp_path: Path) -> None:
    jobs, asked, released = Jobs(open_objects(tmp_path), LIMITS), threading.Event(), threading.Event()
    before = threading.enumerate()

    def hanging() -> list[JobRecord]:
        asked.set()
        released.wait(120)
        return []

    jobs.delete_old = hanging  # type: ignore[method-assign]
    runner = JobRunner(jobs, make_engine(), Settings(keep_nothing=True, deadline=0.1), Sources({}))
    runner.start()
    assert asked.wait(60)
    runner.stop()
    (left_behind,) = (thread for thread in threading.enumerate() if thread.name == "jobs" and thread not in before)
    released.set()
    left_behind.join(60)
    assert not left_behind.is_alive()


def test_a_cancellation_that_a_lost_power_has_emptied_is_one(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(), photographs(png(1)))
    (tmp_path / record.id / "cancelled").write_bytes(b"")
    (found,) = jobs.all()
    assert found.state == "cancelled"


def test_a_storage_of_jobs_that_hangs_costs_other_requests_nothing(make_engine: MakeEngine) -> None:
    released = threading.Event()
    with serving(make_engine(), store_timeout=0.5) as client, ThreadPoolExecutor(50) as pool:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        client.app.state.context.jobs.jobs.read = lambda _: released.wait(120)  # type: ignore[attr-defined]
        polls = [pool.submit(client.get, f"/v1/jobs/{'0' * 32}") for _ in range(45)]
        time.sleep(0.2)
        assert client.post("/v1/segment", files={"image": ("a.png", png(3))}).status_code == 200
        assert {poll.result().status_code for poll in polls} == {503}
        released.set()


def test_answers_that_cannot_be_read_cost_other_requests_nothing(make_engine: MakeEngine) -> None:
    released = threading.Event()
    with serving(make_engine(), store_timeout=0.5) as client, ThreadPoolExecutor(50) as pool:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        job = client.post("/v1/jobs", files=uploads(png(9))).json()
        finished(client, job)
        client.app.state.context.jobs.jobs.result = lambda *_: released.wait(120)  # type: ignore[attr-defined]
        downloads = [pool.submit(client.get, f"/v1/jobs/{job['id']}/results") for _ in range(45)]
        time.sleep(0.2)
        assert client.post("/v1/segment", files={"image": ("a.png", png(3))}).status_code == 200
        assert {download.result(60).status_code for download in downloads} == {503}
        released.set()


def test_a_storage_that_is_away_for_a_moment_fails_no_photograph(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    record = jobs.create("anybody", Options(output="png"), photographs(png(4)))
    runner, is_ours = JobRunner(jobs, make_engine(), Settings(keep_nothing=True), Sources({})), jobs.claims.is_ours
    for moment in range(1, 6):
        asked = iter(range(1, 100))

        def away_once(name: str, asked: Iterator[int] = asked, moment: int = moment) -> bool:
            if next(asked) == moment:
                raise StoreUnavailable("away")
            return is_ours(name)

        monkeypatch.setattr(jobs.claims, "is_ours", away_once)
        runner.run_once()
        found = jobs.read(record.id)
        assert found is not None
        assert found.items[0].state in ("waiting", "done"), found.items[0].problem
    monkeypatch.undo()
    runner.run_once()
    assert ended(jobs, record.id).items[0].state == "done"


def test_a_job_that_nobody_waits_for_any_more_is_not_made(tmp_path: Path) -> None:
    jobs = Jobs(open_objects(tmp_path), LIMITS)
    with pytest.raises(Unavailable):
        jobs.create("anybody", Options(), photographs(png(1)), given_up=lambda: True)
    assert jobs.all() == []
    assert not list(tmp_path.iterdir())


def test_a_record_that_takes_long_to_be_written_stops_no_download(tmp_path: Path) -> None:
    jobs, begun, released = Jobs(open_objects(tmp_path), LIMITS), threading.Event(), threading.Event()
    record = jobs.create("anybody", Options(), photographs(png(1)))
    put = jobs._objects.put

    def hanging(key: str, data: bytes) -> None:
        begun.set()
        assert released.wait(60)
        put(key, data)

    jobs._objects.put = hanging  # type: ignore[method-assign]

    def read() -> None:
        with jobs.reading(record.id):
            pass

    with ThreadPoolExecutor(2) as pool:
        saving = pool.submit(jobs.save, record)
        assert begun.wait(60)
        try:
            pool.submit(read).result(20)
        finally:
            released.set()
        saving.result(60)
