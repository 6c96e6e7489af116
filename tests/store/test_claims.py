"""Of several processes one makes an entry; what a dead one has claimed is free."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from store import FeatureStore, StoreError
from store.claims import Claims
from store.objects import Objects, open_objects


class Clock:
    """The time that claims are told, moved by hand."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("store.claims.time", clock)
    return clock


def test_one_of_many_gets_the_claim(store: FeatureStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        several = [Claims(store.objects) for _ in range(8)]
        assert sum(pool.map(lambda claims: claims.acquire("a/b"), several)) == 1


def test_a_claim_is_held_until_it_is_released(store: FeatureStore) -> None:
    with Claims(store.objects) as mine, Claims(store.objects) as theirs:
        assert mine.acquire("a")
        assert not mine.acquire("a")
        assert not theirs.acquire("a")
        assert theirs.acquire("b")
        mine.release("a")
        assert theirs.acquire("a")
    assert store.objects.keys("claims") == []


def test_the_claim_of_a_process_that_died_here_is_free_at_once(store: FeatureStore) -> None:
    gone = multiprocessing.get_context("spawn").Process()
    gone.start()
    gone.join()
    abandoned(store.objects, "a", process=gone.pid or 0)
    with ThreadPoolExecutor(4) as pool:
        several = [Claims(store.objects) for _ in range(4)]
        assert sum(pool.map(lambda claims: claims.acquire("a"), several)) == 1
    winner = next(claims for claims in several if claims._held)
    winner.release("a")
    assert store.objects.keys("claims") == []


def test_the_claim_of_another_machine_is_free_when_its_lease_is_over(store: FeatureStore, clock: Clock) -> None:
    abandoned(store.objects, "a", machine="elsewhere")
    claims = Claims(store.objects, lease=30.0)
    clock.now += 29.0
    assert not claims.acquire("a")
    clock.now += 2.0
    assert claims.acquire("a")


def test_a_claim_is_renewed_while_its_owner_lives(store: FeatureStore) -> None:
    def renewed() -> float:
        return float(json.loads(store.objects.get("claims/a"))["renewed"])

    with Claims(store.objects, lease=0.4) as mine:
        assert mine.acquire("a")
        claimed = renewed()
        for _ in range(600):
            if renewed() > claimed:
                break
            time.sleep(0.1)
        assert renewed() > claimed
        assert not Claims(store.objects).acquire("a")


def test_a_claim_that_cannot_be_read_is_dead_after_a_lease(store: FeatureStore, clock: Clock) -> None:
    for name, data in (("a", b""), ("b", b"{}")):  # what a lost power supply leaves
        store.objects.put(f"claims/{name}", data)
        claims = Claims(store.objects, lease=30.0)
        assert not claims.acquire(name)
        clock.now += 29.0
        assert not claims.acquire(name)
        clock.now += 2.0
        assert claims.acquire(name)


def test_whoever_slept_too_long_has_lost_the_claim(store: FeatureStore, clock: Clock) -> None:
    slept, awake = Claims(store.objects, lease=30.0), Claims(store.objects, lease=30.0)
    assert slept.acquire("a")
    assert slept.is_ours("a")
    clock.now += 31.0
    assert awake.acquire("a")
    assert not slept.is_ours("a")
    assert awake.is_ours("a")
    assert awake.is_held("a")
    slept.release("a")
    assert awake.is_ours("a")  # who slept frees nothing of whom it lost it to
    assert not Claims(store.objects).acquire("a")
    awake.release("a")
    assert not awake.is_held("a")
    assert store.objects.keys("claims") == []


def test_a_dead_claim_that_somebody_took_over_and_gave_up_meanwhile_is_not_followed(
    store: FeatureStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick, third = (Claims(store.objects) for _ in range(3))
    create = type(store.objects).create
    store.objects.put("claims/a", json.dumps({"token": "dead", "machine": "m", "process": 1, "renewed": 0}).encode())

    def overtaken(objects: Objects, key: str, data: bytes) -> bool:
        if key == "claims/a@dead" and not seen:
            seen.append(key)
            assert quick.acquire("a")  # creates the same successor first,
            quick.release("a")  # and is done with it
            assert third.acquire("a")
        return create(objects, key, data)

    seen: list[str] = []
    monkeypatch.setattr(type(store.objects), "create", overtaken)
    assert not slow.acquire("a")
    assert third.is_ours("a")
    third.release("a")
    assert slow.acquire("a")
    assert sorted(store.objects.keys("claims")) == ["claims/a"]


def test_a_claim_can_be_waited_for(store: FeatureStore) -> None:
    mine, theirs = Claims(store.objects), Claims(store.objects)
    assert mine.acquire("a")
    with pytest.raises(StoreError, match="another process has held a"), theirs.acquired("a", seconds=0.1):
        pass
    mine.release("a")
    with theirs.acquired("a"):
        assert not mine.acquire("a")
    assert mine.acquire("a")


def test_an_object_is_created_once(store: FeatureStore) -> None:
    assert store.objects.create("a", b"1")
    assert not store.objects.create("a", b"2")
    assert store.objects.get("a") == b"1"


def test_an_object_is_created_once_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    objects = open_objects(tmp_path)
    assert [objects.create("a/b", data) for data in (b"1", b"2")] == [True, False]
    assert objects.get("a/b") == b"1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_empty_folders_do_not_stay(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    for key in ("a/b/c", "a/d/e", "f/g/h"):
        objects.put(key, b"1")
    objects.remove("a/b/c")
    objects.delete("f/g")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["a", "a/d", "a/d/e"]
    objects.remove("a/d/e")
    assert list(tmp_path.iterdir()) == []


def test_what_others_are_removing_from_is_removed_whole(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)
    for _ in range(20):
        keys = [f"a/{i}/b" for i in range(40)]
        for key in keys:
            objects.put(key, b"1")
        with ThreadPoolExecutor(2) as pool:
            others = pool.submit(lambda keys=keys: [objects.remove(key) for key in keys[10:30]])
            objects.delete("a")
            others.result()
        assert list(tmp_path.iterdir()) == []


def test_an_object_may_be_written_while_its_folder_is_removed(tmp_path: Path) -> None:
    objects = open_objects(tmp_path)

    def write_and_remove(name: str) -> None:
        for _ in range(300):
            objects.put(f"a/b/{name}", b"1")
            assert objects.get(f"a/b/{name}") == b"1"
            objects.remove(f"a/b/{name}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_remove, "wxyz"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_opened_for_reading_is_not_changed(tmp_path: Path) -> None:
    open_objects(tmp_path).put("a", b"1")
    objects = open_objects(tmp_path, read_only=True)
    for change in (objects.remove, objects.delete, partial(objects.put, "b"), lambda key: objects.create(key, b"2")):
        with pytest.raises(ValueError, match="opened for reading only"):
            change("a")
    assert objects.keys("") == ["a"]
    objects.writable().put("b", b"2")
    assert objects.keys("") == ["a", "b"]


@pytest.mark.parametrize("key", ["a", "a/b/c"])
def test_objects_do_what_they_say(store: FeatureStore, key: str) -> None:
    objects = store.objects
    assert not objects.exists(key)
    objects.put(key, b"0123456789")
    assert objects.exists(key)
    assert objects.size(key) == 10
    assert objects.get_range(key, 2, 3).tobytes() == b"234"
    assert objects.get_range(key, 8, 5).tobytes() == b"89"
    assert objects.get_range(key, 10, 5).tobytes() == b""
    assert objects.get_range(key, 99, 5).tobytes() == b""
    assert objects.keys("") == [key]
    assert objects.names("") == ["a"]
    objects.remove(key)
    objects.remove(key)
    objects.delete("a")
    assert objects.keys("") == []


def abandoned(objects: Objects, name: str, machine: str | None = None, process: int = 1) -> None:
    """A claim whose owner is not here to renew it."""
    mine = Claims(objects)
    assert mine.acquire(name)
    claim = json.loads(objects.get(f"claims/{name}")) | {"process": process}
    objects.put(f"claims/{name}", json.dumps(claim | ({"machine": machine} if machine else {})).encode())


def test_claims_do_not_wait_for_each_other(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(store.objects, lease=0.2) as claims:
        assert claims.acquire("slow")
        assert claims.acquire("other")
        renewing, go = threading.Event(), threading.Event()
        put = store.objects.put

        def slowly(key: str, *data: bytes) -> None:
            if key == "claims/slow":
                renewing.set()
                assert go.wait(60)
            put(key, *data)

        monkeypatch.setattr(store.objects, "put", slowly)
        assert renewing.wait(60)
        claims.release("other")  # while the other's renewal is under way
        assert claims.is_ours("slow")
        with ThreadPoolExecutor(1) as pool:
            released = pool.submit(claims.release, "slow")
            time.sleep(0.05)
            assert not released.done()  # the renewal would bring the claim back
            go.set()
            released.result(60)
    assert store.objects.keys("claims") == []


def test_a_claim_that_can_neither_be_made_nor_read_is_an_error(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.objects, "create", lambda *_: False)
    with pytest.raises(StoreError, match="can neither be made nor read"):
        Claims(store.objects).acquire("a")


def test_a_claim_without_a_usable_time_counts_from_when_it_was_written(store: FeatureStore, location: str) -> None:
    future = {"token": "x", "machine": "another", "process": 1, "renewed": time.time() + 1e9}
    for data in (b"", json.dumps(future).encode()):
        name = uuid.uuid4().hex  # the process remembers when it saw it first
        store.objects.put(f"claims/{name}", data)
        assert Claims(store.objects).is_held(name)
        assert not Claims(store.objects).acquire(name)
        if "://" in location:
            time.sleep(0.6)
            assert Claims(store.objects, lease=0.5).acquire(name)  # known from the first time, by another object
        else:
            os.utime(Path(location) / "claims" / name, (1e9, 1e9))
            assert Claims(store.objects).acquire(name)


def test_a_claim_that_another_has_now_is_not_renewed(store: FeatureStore) -> None:
    with Claims(store.objects, lease=0.4) as slept:
        assert slept.acquire("a")
        anothers = json.dumps({"token": "x", "machine": "another", "process": 1, "renewed": time.time()}).encode()
        store.objects.put("claims/a", anothers)
        time.sleep(0.5)
        assert store.objects.get("claims/a") == anothers
        assert not slept.is_ours("a")
