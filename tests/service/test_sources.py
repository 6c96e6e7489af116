"""What jobs may read: one contract for folders and object storage, and what is refused by both."""

from __future__ import annotations

import errno
import os
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.engine import Engine
from service.errors import BodyTooLarge, Forbidden, NotFound, Unavailable
from service.settings import Settings
from service.sources import FolderSource, Sources
from store.errors import StoreUnavailable
from store.objects import open_objects
from tests.service.conftest import png, serving
from tests.service.test_jobs import finished
from tests.store.conftest import s3_server  # noqa: F401  # a fixture

FILES = {
    "ward/b.png": png(3),
    "ward/a.JPG": b"a",
    "ward/deep/c.tif": b"cc",
    "ward/notes.txt": b"",
    "wards/other.png": b"o",
}
OUTSIDE = ["secret", "", "clinic/../secret", "clinic//ward", "clinic/ward/../../secret", "clinic/."]
MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place with photographs, and one beside it that is not allowed."""
    if request.param == "s3":
        request.getfixturevalue("s3_server")
    root = str(tmp_path) if request.param == "folder" else f"s3://bucket/{uuid.uuid4().hex}"
    for name, data in FILES.items():
        open_objects(f"{root}/allowed").put(name, data)
    open_objects(f"{root}/secret").put("eye.png", png(3))
    return f"{root}/allowed"


def test_photographs_are_found_by_prefix_and_read(place: str) -> None:
    sources = Sources({"clinic": place})
    assert sources.keys("clinic") == [
        "clinic/ward/a.JPG", "clinic/ward/b.png", "clinic/ward/deep/c.tif", "clinic/wards/other.png"
    ]  # fmt: skip
    assert sources.keys("clinic/ward/deep/") == ["clinic/ward/deep/c.tif"]
    assert len(sources.keys("clinic/ward")) == 3  # and not those of wards
    assert sources.read("clinic/ward/b.png", 100_000) == png(3)
    assert sources.read("clinic/ward/deep/c.tif", 2) == b"cc"
    assert sources.read("clinic/ward/notes.txt", 2) == b""


def test_a_place_that_hangs_is_its_own_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        open_objects(str(tmp_path / name)).put("eye.png", png(3))
    released = threading.Event()
    keys = FolderSource.keys

    def hanging(source: FolderSource, prefix: str, most: int | None) -> list[str]:
        if source._root.name == "a":
            released.wait(120)
        return keys(source, prefix, most)

    monkeypatch.setattr(FolderSource, "keys", hanging)
    sources = Sources({"a": tmp_path / "a", "b": tmp_path / "b"}, timeout=0.3)
    for _ in range(3):
        with pytest.raises(Unavailable):
            sources.keys("a")
    assert sources._pools["a"]._work_queue.qsize() <= 1  # what was not begun in time is not done later
    sources._timeout = 60.0  # less than "a" hangs: in one pool with it "b" would wait
    assert sources.keys("b") == ["b/eye.png"]
    released.set()
    sources.close()


@pytest.mark.parametrize("asked", OUTSIDE)
def test_nothing_leads_out(place: str, asked: str) -> None:
    sources = Sources({"clinic": place})
    with pytest.raises(Forbidden):
        sources.keys(asked)
    with pytest.raises(Forbidden):
        sources.read(f"{asked}/eye.png" if asked else "/eye.png", 100_000)


def test_what_is_gone_or_too_large_is_said_without_its_place(place: str) -> None:
    sources = Sources({"clinic": place})
    with pytest.raises(NotFound):
        sources.keys("clinic/nothing")
    for key, error in (("gone.png", NotFound), ("ward/deep/c.tif", BodyTooLarge)):
        with pytest.raises(error) as told:
            sources.read(f"clinic/{key}", 1)
        assert str(told.value).startswith(key.rpartition("/")[2])
        assert "allowed" not in str(told.value)


def test_a_job_of_a_prefix(place: str, make_engine: MakeEngine) -> None:
    with serving(make_engine(), folders={"clinic": place}) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        started = client.post("/v1/jobs", headers={"X-Folder": "clinic/ward"})
        assert started.status_code == 202, started.text
        status = finished(client, started.json())
        assert (status["total"], status["done"], status["failed"]) == (3, 1, 2)
        assert {problem["name"] for problem in status["problems"]} == {"a.JPG", "c.tif"}
        assert "allowed" not in client.get(status["results"]).text
        assert client.post("/v1/jobs", headers={"X-Folder": "clinic/../secret"}).status_code == 403


def test_names_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    for name in (b"eye.png", b"\xe9ye.png"):  # the second of an old archive, in Latin-1
        (tmp_path / os.fsdecode(name)).write_bytes(png(1))
    assert Sources({"clinic": tmp_path}).keys("clinic") == ["clinic/eye.png"]


def test_places_that_a_reload_has_closed_are_asked_again(tmp_path: Path) -> None:
    sources = Sources({"clinic": tmp_path})
    sources.close()
    with pytest.raises(Unavailable, match="being reloaded"):
        sources.keys("clinic")


def test_a_mount_that_went_stale_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> list[str]:
        raise OSError(errno.ESTALE, "stale file handle")

    monkeypatch.setattr(FolderSource, "keys", stale)
    with pytest.raises(Unavailable, match="cannot be read now"):
        Sources({"clinic": tmp_path}).keys("clinic")


def test_trouble_is_logged_without_names_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = StoreUnavailable("HEAD http://storage/Mueller_Hans.jpg: refused")
    away.__cause__ = TimeoutError()
    (tmp_path / "Mueller_Hans.jpg").write_bytes(b"a")
    for error in (away, OSError(errno.EIO, "input/output error", "/eyes/Mueller_Hans.jpg")):

        def failing(*_: object, error: Exception = error) -> bytes:
            raise error

        monkeypatch.setattr(FolderSource, "read", failing)
        with capture_logs() as lines, pytest.raises(Unavailable) as told:
            Sources({"clinic": tmp_path}).read("clinic/Mueller_Hans.jpg", 10)
        assert len(lines) == 1
        assert "Mueller" not in f"{lines} {told.value}"


def test_dicom_is_found_whatever_its_suffix(tmp_path: Path) -> None:
    dicom = bytes(128) + b"DICM"
    for name in ("IM0001", "1.2.840.7", "a.dcm", "b.dat", ".hidden", "DICOMDIR"):
        (tmp_path / name).write_bytes(dicom)
    (tmp_path / "README").write_bytes(b"no photograph")
    assert Sources({"clinic": tmp_path}).keys("clinic") == ["clinic/1.2.840.7", "clinic/IM0001", "clinic/a.dcm"]


def test_a_folder_that_is_not_mounted_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    for place in ("mount", "missing"):
        with pytest.raises(Unavailable, match="empty or not mounted"):
            Sources({"clinic": tmp_path / place}).keys("clinic")


def test_storage_that_is_away_is_told_in_time(monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with pytest.raises(Unavailable, match="the folder clinic cannot be read now"):
            Sources({"clinic": "s3://bucket/eyes"}, timeout=0.3).keys("clinic")
        with serving(make_engine(), folders={"clinic": "s3://bucket/eyes"}, store_timeout=0.3) as client:
            client.app.state.context.engine.result()  # type: ignore[attr-defined]
            answer = client.post("/v1/jobs", headers={"X-Folder": "clinic"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        assert "bucket" not in answer.text


def test_other_kinds_of_places_are_refused_by_the_settings() -> None:
    with pytest.raises(ValueError, match="expected a folder or s3://bucket/prefix for clinic"):
        Settings(folders={"clinic": "gs://bucket/eyes"})
    with pytest.raises(ValueError, match="names without a slash"):
        Settings(folders={"clinic/ward": "/data"})
    assert Settings(folders={"clinic": "s3://bucket/eyes"}).folders == {"clinic": "s3://bucket/eyes"}


def test_a_large_folder_is_not_walked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        (tmp_path / f"{i}.png").write_bytes(b"")
    looked: list[Path] = []
    is_file = Path.is_file

    def counting(path: Path) -> bool:
        looked.append(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", counting)
    assert len(FolderSource(tmp_path).keys("", 3)) == 3
    assert len(looked) == 3


def test_names_that_no_file_can_have_are_not_found(place: str) -> None:
    sources = Sources({"clinic": place})
    with pytest.raises(NotFound):
        sources.keys("clinic/a\0b")
    with pytest.raises(NotFound):
        sources.read("clinic/a\0b", 10)


def test_a_photograph_that_is_listed_can_be_read_whatever_its_name(tmp_path: Path) -> None:
    names = ["Screenshot 10.00.00\u202fAM.png", "Pat\xa01.png", "\u3000.png", "two\nlines.png", "weiß?.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"eye")
    sources = Sources({"clinic": tmp_path})
    found = sources.keys("clinic")
    assert found == sorted(f"clinic/{name}" for name in names)
    assert [sources.read(key, 10) for key in found] == [b"eye"] * len(names)
