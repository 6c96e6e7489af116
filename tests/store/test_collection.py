"""Data sets and masks beside the features."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from store import Collection, DamagedEntry, FeatureStore, MissingEntry, Sample, collection
from store.collection import COLLECTIONS, is_name
from store.entries import Entry
from store.objects import Objects


def test_masks_are_stored_once_and_come_back() -> None:
    collections = FeatureStore("memory://").collections
    mask = np.random.default_rng(0).random((31, 17)) < 0.3
    digest = collections.write_mask(mask)
    assert collections.write_mask(mask) == digest
    assert collections.write_mask(mask.T) != digest
    np.testing.assert_array_equal(collections.mask(digest), mask)


def test_a_collection_comes_back_and_an_unknown_one_lists_the_known() -> None:
    collections = FeatureStore("memory://").collections
    written = Collection(name="eyes", samples=(Sample(image_id="a" * 64, name="one", masks={"vessel": "b"}),))
    collections.write(written)
    assert collections.read("eyes") == written
    assert written.targets == ("vessel",)
    with pytest.raises(MissingEntry, match=r"no data set 'ears' here \(known: eyes\)"):
        collections.read("ears")


def test_two_samples_of_one_name_are_refused() -> None:
    sample = Sample(image_id="a" * 64, name="one")
    with pytest.raises(ValidationError, match="every sample name once"):
        Collection(name="eyes", samples=(sample, sample))


def test_a_damaged_collection_is_told() -> None:
    store = FeatureStore("memory://")
    store.objects.put("datasets/eyes/zarr.json", b'{"attributes": {"collection": {"name": "eyes"}}}')
    with pytest.raises(DamagedEntry, match="the data set eyes is damaged"):
        store.collections.read("eyes")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "a:b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValueError, match="bytes of letters"):
        FeatureStore("memory://").collections.update(Collection(name=name, samples=(Sample(image_id="a", name="a"),)))


@pytest.mark.parametrize("name", ["stare", "cm²", "augenärzte", "a.b-c_d", "2024"])
def test_what_is_a_name_is_one_everywhere(name: str) -> None:
    collections = FeatureStore("memory://").collections
    collections.update(Collection(name=name, samples=(Sample(image_id="a", name="a"),)))
    assert collections.names() == [name]


def test_a_flipped_bit_is_noticed(store: FeatureStore) -> None:
    sample = Sample(image_id="a" * 64, name="eye", split="test", group="p1")
    store.collections.write(Collection(name="eyes", samples=(sample,)))
    key = f"{COLLECTIONS}/eyes/zarr.json"
    written = store.objects.get(key)
    store.objects.put(key, written.replace(b'"p1"', b'"p0"'))
    with pytest.raises(DamagedEntry, match="differs from what was written"):
        store.collections.read("eyes")
    store.objects.put(key.replace("eyes", "ears"), written)
    with pytest.raises(DamagedEntry, match="its name is another"):
        store.collections.read("ears")
    plain = json.loads(written)
    del plain["attributes"]["seal"]  # as earlier versions wrote it
    store.objects.put(key, json.dumps(plain).encode())
    assert store.collections.read("eyes").samples == (sample,)


def test_a_mask_is_written_by_one_of_two(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    both, written, found = threading.Barrier(2), list[str](), collection.find_entry
    write, asked = collection.write_entry, threading.local()

    def seen(objects: Objects, path: str) -> Entry | None:
        here = found(objects, path)
        if not hasattr(asked, "once"):
            asked.once = both.wait(60)
        return here

    def noted(objects: Objects, path: str, *rest: Any) -> int:
        written.append(path)
        return write(objects, path, *rest)

    monkeypatch.setattr(collection, "find_entry", seen)
    monkeypatch.setattr(collection, "write_entry", noted)
    with ThreadPoolExecutor(2) as pool:
        digests = set(pool.map(lambda _: store.collections.write_mask(np.eye(8, dtype=np.bool_)), range(2)))
    assert len(digests) == len(written) == 1
