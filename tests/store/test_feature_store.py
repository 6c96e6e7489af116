"""One contract for every place a store can be in; what is damaged is named, never read as zeros."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from store import (
    DamagedEntry,
    Features,
    FeatureSpec,
    FeatureStore,
    FormatError,
    Geometry,
    Key,
    MissingEntry,
    NonFiniteFeatures,
    SpecError,
    SpecMismatch,
)
from tests.conftest import changed

KEY = Key("a" * 64)


def some_features(spec: FeatureSpec, seed: int = 0) -> Features:
    random = np.random.default_rng(seed)
    maps = {b.name: random.normal(size=(len(spec.timesteps), b.channels, b.height, b.width)) for b in spec.blocks}
    fov = random.random((spec.resolution, spec.resolution)) < 0.5
    return Features(maps, fov, Geometry.whole(40, 50, spec.resolution))


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store" if request.param == "folder" else "memory://")


def test_what_is_written_is_read(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    assert not store.has(spec, KEY)
    written = store.write(spec, KEY, features)
    assert store.has(spec, KEY)
    assert list(store.keys(spec)) == [KEY]
    assert [s.digest for s in store.specs()] == [spec.digest]
    back = store.entry(spec, KEY).features()
    assert back.geometry == features.geometry
    assert (back.fov == features.fov).all()
    for name, maps in features.maps.items():
        assert back.maps[name].dtype == np.float16
        np.testing.assert_array_equal(back.maps[name], maps.astype(np.float16))
    assert 0 < store.entry(spec, KEY).bytes < written


def test_one_timestep_is_read_alone(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    store.write(spec, KEY, features)
    at_10 = store.entry(spec, KEY).read("block_2", [10])
    np.testing.assert_array_equal(at_10, features.maps["block_2"][1:2].astype(np.float16))
    with pytest.raises(SpecError, match=r"timesteps \[7\] are not kept"):
        store.entry(spec, KEY).read("block_2", [7])


def test_writing_again_replaces(store: FeatureStore, spec: FeatureSpec) -> None:
    store.write(spec, KEY, some_features(spec, 0))
    store.write(spec, KEY, some_features(spec, 1))
    expected = some_features(spec, 1).maps["block_0"].astype(np.float16)
    np.testing.assert_array_equal(store.entry(spec, KEY).read("block_0"), expected)
    assert store.verify(spec, KEY) == []


def test_zeros_are_stored_like_other_numbers(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    zeros = Features({n: np.zeros_like(m) for n, m in features.maps.items()}, features.fov & False, features.geometry)
    store.write(spec, KEY, zeros)
    assert store.verify(spec, KEY) == []
    assert not store.entry(spec, KEY).features().fov.any()


def test_a_deleted_entry_is_gone(store: FeatureStore, spec: FeatureSpec) -> None:
    store.write(spec, KEY, some_features(spec))
    store.delete(spec, KEY)
    assert not store.has(spec, KEY)
    with pytest.raises(MissingEntry, match="`extractor run` makes them"):
        store.entry(spec, KEY)


def test_another_spec_is_refused_with_the_difference(store: FeatureStore, spec: FeatureSpec) -> None:
    other = changed(spec, clip=True)
    store.write(other, KEY, some_features(other))
    with pytest.raises(SpecMismatch, match="clip: False here, True there"):
        store.entry(spec, KEY)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_numbers_that_do_not_fit_are_refused(store: FeatureStore, spec: FeatureSpec, bad: float) -> None:
    features = some_features(spec)
    features.maps["block_2"][0, 0, 0, 0] = bad
    with pytest.raises(NonFiniteFeatures, match="block_2"):
        store.write(spec, KEY, features)
    assert not store.has(spec, KEY)


def test_maps_of_another_shape_are_refused(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    cut = {name: maps[:2] for name, maps in features.maps.items()}
    with pytest.raises(SpecError, match="expected maps of shape"):
        store.write(spec, KEY, Features(cut, features.fov, features.geometry))
    with pytest.raises(SpecError, match="expected blocks"):
        store.write(spec, KEY, Features({}, features.fov, features.geometry))


@pytest.fixture
def on_disk(tmp_path: Path, spec: FeatureSpec) -> tuple[FeatureStore, Path]:
    """A store with one entry, and the folder of that entry."""
    store = FeatureStore(tmp_path / "store")
    store.write(spec, KEY, some_features(spec))
    return store, tmp_path / "store" / spec.digest / KEY.image_id / KEY.view


def shard(folder: Path, block: str) -> Path:
    return next(path for path in (folder / block).rglob("*") if path.is_file() and path.name != "zarr.json")


def flip_byte(folder: Path) -> None:
    path = shard(folder, "block_2")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(bytes(data))


def truncate(folder: Path) -> None:
    path = shard(folder, "block_2")
    path.write_bytes(path.read_bytes()[:-10])


def delete_chunk(folder: Path) -> None:
    shard(folder, "block_2").unlink()


@pytest.mark.parametrize("damage", [flip_byte, truncate, delete_chunk])
def test_damage_is_named_on_read_and_by_verify(
    on_disk: tuple[FeatureStore, Path], spec: FeatureSpec, damage: object
) -> None:
    store, folder = on_disk
    damage(folder)  # type: ignore[operator]
    problems = store.verify(spec, KEY)
    assert len(problems) == 1
    assert "block_2" in problems[0]
    assert KEY.image_id in problems[0]
    with pytest.raises(DamagedEntry, match=f"{KEY.image_id}/identity/block_2"):
        store.entry(spec, KEY).read("block_2")
    store.entry(spec, KEY).read("block_0")  # the others are whole


def test_without_its_marker_an_entry_does_not_exist(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    (folder / "zarr.json").unlink()
    assert not store.has(spec, KEY)
    assert "never finished" in store.verify(spec, KEY)[0]


def test_a_damaged_marker_is_told(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    (folder / "zarr.json").write_text("{")
    assert not store.has(spec, KEY)
    assert "damaged" in store.verify(spec, KEY)[0]


def test_a_newer_format_is_refused(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    marker = json.loads((folder / "zarr.json").read_text())
    marker["attributes"]["diffdgss"]["format"] = 99
    (folder / "zarr.json").write_text(json.dumps(marker))
    with pytest.raises(FormatError, match="upgrade diffdgss"):
        store.entry(spec, KEY)


def test_a_damaged_spec_is_told(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    path = folder.parents[1] / "zarr.json"
    path.write_text(path.read_text().replace('"clip": false', '"clip": true'))
    with pytest.raises(DamagedEntry, match="has the digest"):
        store.specs()


def test_plain_zarr_reads_it(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    _, folder = on_disk
    array = zarr.open_array(folder / "block_2", mode="r")
    assert array.metadata.dimension_names == ("t", "c", "h", "w")  # type: ignore[union-attr]
    expected = some_features(spec).maps["block_2"].astype(np.float16)
    np.testing.assert_array_equal(np.asarray(array[...]), expected)
    objects = [path for path in (folder / "block_2").rglob("*") if path.is_file()]
    assert len(objects) == 2  # one shard and the metadata


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingEntry, match="no such store"):
        FeatureStore(tmp_path / "nowhere", read_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(FormatError, match="is a file"):
        FeatureStore(tmp_path / "file")
    with pytest.raises(FormatError, match="expected a folder"):
        FeatureStore("gopher://somewhere")


def test_specs_are_found_by_the_first_digits(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, _ = on_disk
    assert store.spec(spec.digest[:6]) == spec
    with pytest.raises(MissingEntry, match="no specs begin with"):
        store.spec("zz")
