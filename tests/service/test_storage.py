"""A store in trouble costs a warning, and is said in /readyz."""

from __future__ import annotations

import errno
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.engine import Engine
from service.metrics import Metrics
from service.storage import GuardedStore
from store import Features, FeatureSpec, FeatureStore, Key, StoreFull, StoreUnavailable
from store.console import Exit
from store.errors import FormatError
from tests.service.conftest import png, post, serving, with_store

MakeEngine = Callable[..., Engine]


class FullStore(FeatureStore):
    """A store on a disk without room."""

    def write(self, *_: object) -> int:
        raise StoreFull("no room")


class OtherStore(FeatureStore):
    """A store that another release has written."""

    def register(self, *_: object, **__: object) -> None:
        raise FormatError("the codebook is of format 99")


class ReadOnlyStore(FeatureStore):
    """A store that may be read and not written."""

    def register(self, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only file system", "/store/1f4e")


def away() -> FeatureStore:
    raise StoreUnavailable("the object storage refuses access or does not answer")


def ready_of(engine: Engine) -> dict[str, object]:
    with serving(engine) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        assert post(client, png(90)).status_code == 200
        answer = client.get("/readyz")
        assert answer.status_code == 200
        ready: dict[str, object] = answer.json()
        return ready


def test_each_trouble_is_said_and_answered_all_the_same(make_engine: MakeEngine) -> None:
    engine = make_engine()
    expected = engine.segment(png(90)).labels
    for open_store, said in [
        (lambda: ReadOnlyStore("memory://"), "read-only"),
        (lambda: OtherStore("memory://"), "another kind or version"),
        (away, "does not answer"),
    ]:
        troubled = with_store(engine, open_store)
        answer = troubled.segment(png(90))
        np.testing.assert_array_equal(answer.labels, expected)
        assert any("store" in warning for warning in answer.warnings)
        assert said in str(troubled.storage.troubles)
        troubled.close()


def test_readiness_is_degraded_while_the_store_is_away(make_engine: MakeEngine) -> None:
    ready = ready_of(with_store(make_engine(), away))
    assert ready["status"] == "degraded"
    assert "does not answer" in str(ready["store"])
    assert ready_of(make_engine())["status"] == "ready"


def test_object_storage_that_is_away(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        models, metrics = make_engine().models, Metrics()
        monkeypatch.setattr("service.storage.COOL_DOWN", 600.0)
        opened = list[None]()

        def away() -> FeatureStore:
            opened.append(None)
            return FeatureStore("s3://bucket/prefix")

        engine = Engine(models, GuardedStore(away, metrics, timeout=0.5), metrics=metrics)
        for seed in (90, 91, 92):
            assert engine.segment(png(seed)).forwards == 3
        assert len(opened) == 1  # it is not asked, and waited for, each time
        ready = ready_of(engine)
    assert ready["status"] == "degraded"
    assert ready["store"]


def test_where_the_store_is_is_told_to_nobody(make_engine: MakeEngine, tmp_path: Path) -> None:
    place = tmp_path / "private.zarr"
    engine = with_store(make_engine(), lambda: FeatureStore(place))
    with serving(engine) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        made = client.post("/v1/features", files={"image": ("a.png", png(97))}).json()
        path = f"/v1/features/{made['key']}?block=block_0"
        assert client.get(path).status_code == 200
        shard = next(path for path in place.glob("*/*/*/block_0/c/**/*") if path.is_file())
        shard.write_bytes(shard.read_bytes()[:-40])
        damaged = client.get(path)
        shutil.rmtree(place)
        gone = client.get(path)
        for answer, words in ((damaged, "features are damaged"), (gone, "no such features")):
            assert answer.status_code == 404
            assert words in answer.json()["detail"]
            assert "private" not in answer.text


def test_a_full_store_keeps_answering(make_engine: MakeEngine) -> None:
    full = with_store(make_engine(), lambda: FullStore("memory://"))
    assert "could not be stored" in full.segment(png(91)).warnings[-1]
    assert "no room" in full.storage.troubles["write"]
    assert full.segment(png(91)).forwards == 3  # inverted again
    full.close()
    remembered = with_store(make_engine(), lambda: FullStore("memory://"), answers_bytes=10_000_000)
    assert "could not be stored" in remembered.segment(png(91)).warnings[-1]
    again = remembered.segment(png(91))
    assert (again.forwards, "stored" in str(again.warnings)) == (0, False)  # nothing was to be stored
    assert "small" in str(again.warnings)
    remembered.close()


def test_a_store_that_was_deleted_is_made_anew(make_engine: MakeEngine, tmp_path: Path) -> None:
    place = tmp_path / "features.zarr"
    engine = with_store(make_engine(), lambda: FeatureStore(place))
    assert engine.segment(png(60)).bytes_stored
    shutil.rmtree(place)
    answer = engine.segment(png(61))
    assert answer.bytes_stored
    assert FeatureStore(place).has(engine.card.spec, Key(answer.image_id))  # a new one has been made, spec and all
    assert len(FeatureStore(place).specs()) == 1
    engine.close()


def test_a_store_that_hangs_is_left_alone(spec: FeatureSpec) -> None:
    released, asked = threading.Event(), list[Key]()

    class HangingStore(FeatureStore):
        def find(self, spec: FeatureSpec, key: Key) -> None:
            asked.append(key)
            released.wait(120)

    hanging, metrics = HangingStore("memory://"), Metrics()
    storage = GuardedStore(lambda: hanging, metrics, timeout=60.0)
    storage.store()
    storage._timeout = 0.2
    for _ in range(5):
        assert storage.read(spec, Key("0" * 64)) == (None, "the feature store cannot be read")
    assert len(asked) == 1
    assert "no answer within" in storage.troubles["read"]
    assert 'diffdgss_store_failures_total{doing="read"} 1.0' in metrics.text().decode()
    released.set()
    storage.close()


def test_memory_stays_bounded_where_nothing_is_kept(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    model = engine.models.default
    spec = model.card.spec
    engine.segment(png(92))
    size = engine.storage.stored_bytes(spec, Key(engine.question(png(92)).image_id)) or 0
    assert size > 0
    metrics = Metrics()
    storage = GuardedStore(lambda: FeatureStore("memory://"), metrics, memory_bytes=int(2.5 * size))
    small = Engine(engine.models, storage, metrics=metrics)
    for seed in range(93, 97):
        small.segment(png(seed))
    kept = list(storage.store().keys(spec))
    assert len(kept) == 2
    assert small.segment(png(96)).cached
    assert not small.segment(png(93)).cached
    small.segment(png(97), mirrored=True)
    assert small.segment(png(97)).cached  # of a photograph and its mirror images it is forgotten last

    def away(*_of: object) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(storage.store(), "delete", away)
    assert small.segment(png(98)).bytes_stored
    assert storage.troubles == {"write": "it refuses access or does not answer"}
    monkeypatch.undo()
    storage._blocked_until = 0.0
    small.segment(png(99))
    assert len(list(storage.store().keys(spec))) == 2  # what could not be deleted before is gone, too
    small.close()


def test_another_process_at_the_same_entry_is_no_trouble(make_engine: MakeEngine) -> None:
    from store.claims import Claims
    from store.features import entry_path

    engine = make_engine()
    spec, question = engine.card.spec, engine.question(png(97))
    claims = Claims(engine.storage.store().objects)
    assert claims.acquire(entry_path(spec, Key(question.image_id)))
    answer = engine.segment(png(97))
    assert (answer.bytes_stored, answer.warnings) == (0, make_engine().segment(png(97)).warnings)
    assert engine.storage.troubles == {}


def test_what_a_killed_writer_left_is_cleared_and_made_anew(make_engine: MakeEngine, spec: FeatureSpec) -> None:
    engine = make_engine()
    question = engine.question(png(98))
    expected = engine.segment(png(98))
    objects = engine.storage.store().objects
    entry = f"{spec.digest}/{question.image_id}/identity"
    objects.remove(f"{entry}/zarr.json")  # the marker, which is written last
    objects.put(f"{entry}/block_99/zarr.json", b"half written")
    again = engine.segment(png(98))
    assert not again.cached
    np.testing.assert_array_equal(again.labels, expected.labels)
    assert not objects.exists(f"{entry}/block_99/zarr.json")
    stored, _ = engine.storage.read(spec, Key(question.image_id))
    assert isinstance(stored, Features)


def test_a_disk_that_is_full_for_entries_is_not_ready_for_a_few_bytes(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_store(make_engine(), lambda: FeatureStore("memory://"))
    store = engine.storage.store()
    free = {"bytes": 10}
    monkeypatch.setattr(store.objects, "free_bytes", lambda: free["bytes"])
    write = store.write

    def full(*given: Any) -> int:
        if free["bytes"] < 10**6:
            raise StoreFull("no room left")
        return write(*given)

    monkeypatch.setattr(store, "write", full)
    engine.segment(png(91))
    assert engine.storage.probe(every=0) == {"write": "no room left"}
    free["bytes"] = 10**9
    assert engine.storage.probe(every=0) == {}
    engine.segment(png(92))
    assert engine.storage.probe(every=0) == {}
    engine.close()


def test_a_process_ends_although_a_store_does_not_answer() -> None:
    script = (
        "import time\n"
        "from service.cli import _leave_what_hangs\n"
        "from service.metrics import Metrics\n"
        "from service.storage import GuardedStore\n"
        "storage = GuardedStore(lambda: time.sleep(1000), Metrics(), timeout=0.1)\n"
        "storage.close()\n"
        "_leave_what_hangs()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], timeout=120, check=False, capture_output=True, text=True)
    assert ended.returncode == Exit.INTERRUPTED
    assert "does not answer" in ended.stdout + ended.stderr


def test_a_large_entry_has_more_time(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    storage = GuardedStore(lambda: FeatureStore("memory://"), Metrics(), timeout=0.05)
    store = storage.store()
    write = store.write

    def slowly(*given: Any) -> int:
        time.sleep(0.3)
        return write(*given)

    monkeypatch.setattr(store, "write", slowly)
    slow = Engine(engine.models, storage)
    spec = slow.card.spec
    monkeypatch.setattr("service.storage.LEAST_RATE", spec.entry_bytes() / 60)
    assert slow.segment(png(93)).bytes_stored > 0
    monkeypatch.setattr("service.storage.LEAST_RATE", 1e12)
    told = slow.segment(png(94))
    assert told.bytes_stored == 0
    assert any("could not be stored" in warning for warning in told.warnings)
    slow.close()
