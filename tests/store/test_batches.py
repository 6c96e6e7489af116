"""Batches through Dask: the planned maps, in the planned order, read as they are needed."""

from __future__ import annotations

import shutil
import threading
from unittest.mock import MagicMock

import numpy as np
import pytest
from distributed import Client

from store import (
    FeatureSpec,
    FeatureStore,
    Key,
    MissingEntry,
    SpecError,
    lazy_maps,
    plan_epoch,
    stream,
)
from store.features import FeatureEntry
from tests.store.conftest import ENCODINGS, coded, some_features


@pytest.fixture
def keys(filled_store: FeatureStore, spec: FeatureSpec) -> list[Key]:
    return list(filled_store.all_keys(spec))


def test_batches_hold_what_the_store_holds(filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key]) -> None:
    plans = plan_epoch(spec, keys, 4, seed=3)
    batches = list(stream(filled_store, spec, plans))
    assert [len(batch.keys) for batch in batches] == [4, 2]
    assert sorted(key for batch in batches for key in batch.keys) == sorted(keys)
    for batch in batches:
        for name, maps in batch.maps.items():
            expected = np.stack([filled_store.entry(spec, key).read(name) for key in batch.keys])
            np.testing.assert_array_equal(maps.values, expected)


def test_one_timestep_is_drawn_for_each_image(filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key]) -> None:
    plans = [plan for e in range(8) for plan in plan_epoch(spec, keys, 3, seed=1, epoch=e, one_timestep=True)]
    assert {int(t) for plan in plans for t in plan.timesteps[:, 0]} == set(spec.timesteps)
    batch = next(stream(filled_store, spec, plans, ["block_2"]))
    for row, key, timesteps in zip(batch.maps["block_2"].values, batch.keys, batch.timesteps, strict=True):
        expected = filled_store.entry(spec, key).read("block_2", [int(timesteps[0])])
        np.testing.assert_array_equal(row, expected)


def test_an_epoch_can_be_entered_in_the_middle(filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key]) -> None:
    plans = plan_epoch(spec, keys, 2, seed=5, epoch=2)
    whole = list(stream(filled_store, spec, plans))
    rest = list(stream(filled_store, spec, plan_epoch(spec, keys, 2, seed=5, epoch=2), start=1))
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[1:]]
    assert [batch.position for batch in rest] == [1, 2]


def test_epochs_differ_and_seeds_repeat(spec: FeatureSpec) -> None:
    keys = [Key(f"{i:064x}") for i in range(20)]
    order = [plan.keys for plan in plan_epoch(spec, keys, 5, seed=0, epoch=0)]
    assert order == [plan.keys for plan in plan_epoch(spec, keys, 5, seed=0, epoch=0)]
    assert order != [plan.keys for plan in plan_epoch(spec, keys, 5, seed=0, epoch=1)]
    assert [key for plan in plan_epoch(spec, keys, 5) for key in plan.keys] == keys


def test_lazy_maps_read_nothing_before_they_are_computed(
    filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key]
) -> None:
    lazy = lazy_maps(filled_store, spec, plan_epoch(spec, keys, 2)[0])
    block = spec.block("block_2")
    assert lazy["block_2"].shape == (2, 3, block.channels, block.height, block.width)
    shutil.rmtree(f"{filled_store.location}/{spec.digest}")
    with pytest.raises(MissingEntry, match="no features of image"):
        lazy["block_2"].compute()


def test_lazy_maps_are_sliced_as_arrays_are(filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key]) -> None:
    lazy = lazy_maps(filled_store, spec, plan_epoch(spec, keys, 6)[0], ["block_2"])["block_2"]
    whole = np.stack([filled_store.entry(spec, key).read("block_2") for key in keys])
    for index in (
        np.s_[1],
        np.s_[1, 2],
        np.s_[2:5, 1],
        np.s_[::-2, ::2, 3:1:-1],
        np.s_[:, [2, 0], 4:, ::3],
        np.s_[..., 0],
    ):
        np.testing.assert_array_equal(lazy[index].compute(), whole[index])
    again = lazy_maps(filled_store, spec, plan_epoch(spec, keys, 6)[0], ["block_2"])["block_2"]
    assert again.name == lazy.name


def test_an_array_of_many_images_is_made_at_once(spec: FeatureSpec) -> None:
    """As an array of arrays, a hundred thousand images took minutes to open and a minute for each access."""
    store = MagicMock(spec=FeatureStore, location="nowhere")
    keys = [Key(f"{i:064x}") for i in range(20_000)]
    lazy = lazy_maps(store, spec, plan_epoch(spec, keys, len(keys))[0], ["block_2"])["block_2"]
    assert lazy.shape[:2] == (20_000, 3)
    assert len(lazy[7, 1].dask.layers) < 5
    store.entry.assert_not_called()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_streams_alike(spec: FeatureSpec, encoding: str) -> None:
    spec, codebook = coded(spec, encoding)
    store = FeatureStore("memory://")
    store.register(spec, codebook=codebook)
    keys = [Key(f"{i:064x}") for i in range(3)]
    for i, key in enumerate(keys):
        store.write(spec, key, some_features(spec, i, codebook))
    plans = plan_epoch(spec, keys, 2, seed=1, one_timestep=True)
    codec = store.codec(spec)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        for batch, again in zip(stream(store, spec, plans), stream(store, spec, plans, client=client), strict=True):
            lazy = lazy_maps(store, spec, plans[batch.position])
            for name, encoded in batch.maps.items():
                decoded = codec.decode(name, encoded).numpy()
                wanted = zip(batch.keys, batch.timesteps, strict=True)
                expected = np.stack([store.entry(spec, key).read(name, [int(t[0])]) for key, t in wanted])
                np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-5)
                np.testing.assert_array_equal(lazy[name].compute(scheduler="threads"), expected)
                np.testing.assert_array_equal(again.maps[name].values, encoded.values)


def test_workers_in_other_processes_are_refused(filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key]) -> None:
    class Foreign:
        def nthreads(self) -> dict[str, int]:
            return {"tcp://10.0.0.1:4040": 1}

    with pytest.raises(SpecError, match=r"tcp://10.0.0.1:4040 are separate processes.*processes=False"):
        next(stream(filled_store, spec, plan_epoch(spec, keys, 2), client=Foreign()))  # type: ignore[arg-type]


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_while_the_caller_works_so_many_batches_are_read(
    filled_store: FeatureStore, spec: FeatureSpec, keys: list[Key], monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    begun: list[Key] = []
    entry, reached = filled_store.entry, threading.Semaphore(0)

    def noted(of: FeatureSpec, key: Key) -> FeatureEntry:
        begun.append(key)
        reached.release()
        return entry(of, key)

    monkeypatch.setattr(filled_store, "entry", noted)
    batches = stream(filled_store, spec, plan_epoch(spec, keys, 1), prefetch=prefetch)
    next(batches)
    for _ in range(1 + prefetch):
        assert reached.acquire(timeout=60)
    assert not reached.acquire(timeout=0.1)
    assert begun == keys[: 1 + prefetch]
    assert len(list(batches)) == len(keys) - 1


def test_a_missing_image_stops_the_stream(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    plans = plan_epoch(spec, [Key("f" * 64)], 1)
    with pytest.raises(MissingEntry, match="ffffffffffff"):
        list(stream(filled_store, spec, plans))
