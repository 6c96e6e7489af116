"""One contract for every place a store can be in; what is damaged is named, never read as zeros."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import xarray
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore

from store import (
    DamagedEntry,
    Encoded,
    Features,
    FeatureSpec,
    FeatureStore,
    FormatError,
    MissingEntry,
    SpecError,
    SpecMismatch,
    StoreFull,
    StoreUnavailable,
)
from store.arrays import ArrayToWrite, Compressor, packed
from store.copying import copy_store
from store.entries import _seal
from store.features import Key, entry_path
from store.objects import open_objects
from tests.conftest import changed
from tests.store.conftest import ENCODINGS, KEY, coded, some_features, some_maps

COMPRESSORS = {
    "lz4": BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"),
    "lz4-bits": BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
    "zstd-bits": BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", blocksize=1 << 20),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_written_is_read(store: FeatureStore, location: str, spec: FeatureSpec, encoding: str) -> None:
    spec, codebook = coded(spec, encoding)
    features = some_features(spec, codebook=codebook)
    store.register(spec, "tiny", codebook)
    assert not store.has(spec, KEY)
    written = store.write(spec, KEY, features)
    assert store.has(spec, KEY)
    assert list(store.all_keys(spec)) == [KEY]
    assert [s.digest for s in store.specs()] == [spec.digest]
    assert store.backbone_of(spec) == "tiny"
    reader = store if location == "memory://" else FeatureStore(location, read_only=True)
    back = reader.entry(spec, KEY).features()
    assert back.geometry == features.geometry
    assert (back.fov == features.fov).all()
    for name, maps in features.maps.items():
        assert back.maps[name].values.dtype == maps.values.dtype
        np.testing.assert_array_equal(back.maps[name].values, maps.values)
        for mine, theirs in ((maps.scale, back.maps[name].scale), (maps.offset, back.maps[name].offset)):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                np.testing.assert_array_equal(mine, theirs)
    assert 0 < reader.entry(spec, KEY).bytes < written
    assert store.verify(spec, KEY) == []


def test_residuals_are_kept_exactly_and_entries_without_are_read(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    store.write(spec, KEY, features)
    assert store.entry(spec, KEY).features().residuals == {}
    store.write(spec, KEY, replace(features, residuals={1: 1 / 3, 10: 2.5e-7}))
    assert store.entry(spec, KEY).residuals == {1: 1 / 3, 10: 2.5e-7}
    assert store.entry(spec, KEY).features().residuals == {1: 1 / 3, 10: 2.5e-7}
    assert store.verify(spec, KEY) == []


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_one_timestep_is_read_alone(store: FeatureStore, spec: FeatureSpec, encoding: str) -> None:
    spec, codebook = coded(spec, encoding)
    store.register(spec, codebook=codebook)
    store.write(spec, KEY, some_features(spec, codebook=codebook))
    entry = store.entry(spec, KEY)
    whole, at = entry.read("block_2"), entry.read("block_2", [100, 10])
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(at, whole[[2, 1]])
    worst = {"float32": 0.0, "float16": 1e-3, "int8": 1e-2, "compact": 0.2}[encoding]
    maps = some_maps(spec)["block_2"].numpy()
    assert np.square(whole - maps).mean() <= (worst**2) * maps.var()
    with pytest.raises(SpecError, match=r"timesteps \[7\] are not kept"):
        entry.read("block_2", [7])


def test_writing_again_replaces(store: FeatureStore, spec: FeatureSpec) -> None:
    store.write(spec, KEY, some_features(spec, 0))
    store.write(spec, KEY, some_features(spec, 1))
    expected = some_features(spec, 1).maps["block_0"].values
    np.testing.assert_array_equal(store.entry(spec, KEY).read("block_0"), expected)
    assert store.verify(spec, KEY) == []


def test_zeros_are_stored_like_other_numbers(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    maps = {name: Encoded(np.zeros_like(m.values)) for name, m in features.maps.items()}
    store.write(spec, KEY, Features(maps, features.fov & False, features.geometry))
    assert store.verify(spec, KEY) == []
    assert not store.entry(spec, KEY).features().fov.any()
    assert not store.entry(spec, KEY).read("block_2").any()


def test_a_compact_spec_wants_its_codebook(store: FeatureStore, spec: FeatureSpec) -> None:
    spec, codebook = coded(spec, "compact")
    with pytest.raises(SpecError, match="register it too"):
        store.register(spec)
    store.register(spec, codebook=codebook)
    assert store.codebook(spec).digest == codebook.digest  # type: ignore[union-attr]


def test_a_deleted_entry_is_gone(store: FeatureStore, spec: FeatureSpec) -> None:
    store.write(spec, KEY, some_features(spec))
    store.delete(spec, KEY)
    assert not store.has(spec, KEY)
    with pytest.raises(MissingEntry, match="`extractor run` makes them"):
        store.entry(spec, KEY)
    assert not store.objects.exists(f"used/{entry_path(spec, KEY)}")  # a miss is no use


def test_keys_are_those_of_complete_entries(store: FeatureStore, spec: FeatureSpec) -> None:
    begun = Key("0" * 64, KEY.view)  # first in order
    for key in (KEY, begun):
        store.write(spec, key, some_features(spec))
    store.objects.remove(f"{entry_path(spec, begun)}/zarr.json")
    assert list(store.keys(spec)) == [KEY]
    assert list(store.all_keys(spec)) == [begun, KEY]


def test_another_spec_is_refused_with_the_difference(store: FeatureStore, spec: FeatureSpec) -> None:
    other = changed(spec, clip=True)
    store.write(other, KEY, some_features(other))
    with pytest.raises(SpecMismatch, match=f"view {KEY.view}, has no features.*\n  clip: False expected, True found$"):
        store.entry(spec, KEY)
    further = changed(spec, clip=True, backbone="0" * 64)
    store.write(further, KEY, some_features(further))
    assert store.nearest_spec(spec, KEY) == other
    assert store.nearest_spec(spec, KEY._replace(view="negative")) is None


def test_features_of_another_shape_or_type_are_refused(store: FeatureStore, spec: FeatureSpec) -> None:
    features = some_features(spec)
    cut = {name: maps[:2] for name, maps in features.maps.items()}
    with pytest.raises(SpecError, match=r"expected float16 \(3, "):
        store.write(spec, KEY, Features(cut, features.fov, features.geometry))
    other = some_features(coded(spec, "float32").spec)
    with pytest.raises(SpecError, match=r"expected float16 .* got float32"):
        store.write(spec, KEY, other)
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


def flip_byte(folder: Path, name: str = "block_2") -> None:
    path = shard(folder, name)
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
    for rows in (None, [1, 10, 100]):
        with pytest.raises(DamagedEntry, match="block_2"):
            for t in rows or [None]:
                store.entry(spec, KEY).read("block_2", None if t is None else [t])
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


def test_a_changed_marker_is_told(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    marker = (folder / "zarr.json").read_text()
    (folder / "zarr.json").write_text(marker.replace('"width": 50', '"width": 51'))
    assert not store.has(spec, KEY)
    with pytest.raises(DamagedEntry, match="differs from what was written"):
        store.entry(spec, KEY)


@pytest.mark.parametrize("encoding", ["int8", "compact"])
def test_changed_parameters_are_told(tmp_path: Path, spec: FeatureSpec, encoding: str) -> None:
    spec, codebook = coded(spec, encoding)
    store = FeatureStore(tmp_path / "store")
    store.register(spec, codebook=codebook)
    store.write(spec, KEY, some_features(spec, codebook=codebook))
    folder = tmp_path / "store" / spec.digest / KEY.image_id / KEY.view
    if encoding == "int8":
        path = folder / "block_2" / "zarr.json"
        path.write_text(path.read_text().replace('"scale": [', '"scale": [ '))
    else:
        flip_byte(tmp_path / "store" / spec.digest / "codebook", "block_2.basis")
    with pytest.raises(DamagedEntry, match="block_2"):
        FeatureStore(tmp_path / "store").entry(spec, KEY).read("block_2")


def test_a_store_of_a_newer_version_is_refused(on_disk: tuple[FeatureStore, Path]) -> None:
    store, _ = on_disk
    root = Path(store.location) / "zarr.json"
    root.write_text(root.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(FormatError, match="has format 99, this version reads up to 2; upgrade"):
        FeatureStore(store.location)


def test_the_first_format_is_still_read(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    marker = json.loads((folder / "zarr.json").read_text())
    marker["attributes"]["diffdgss"]["format"] = 1
    del marker["attributes"]["diffdgss"]["seal"]
    (folder / "zarr.json").write_text(json.dumps(marker))
    assert store.verify(spec, KEY) == []
    store.entry(spec, KEY).features()


def test_a_newer_format_is_refused(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    written = json.loads((folder / "zarr.json").read_text())
    marker = written["attributes"].pop("diffdgss")
    seal, newer = marker.pop("seal"), marker | {"format": 99}
    for sealed, error in ((_seal(written["attributes"], newer), FormatError), (seal, DamagedEntry)):
        attributes = written["attributes"] | {"diffdgss": newer | {"seal": sealed}}
        (folder / "zarr.json").write_text(json.dumps(written | {"attributes": attributes}))
        with pytest.raises(error, match=r"upgrade diffdgss|differs from what was written"):
            store.entry(spec, KEY)
    assert not store.has(spec, KEY)  # of the flipped bit, which stops no command


def test_a_damaged_spec_is_told(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    path = folder.parents[1] / "zarr.json"
    path.write_text(path.read_text().replace('"clip": false', '"clip": true'))
    with pytest.raises(DamagedEntry, match="has the digest"):
        store.spec(spec.digest)
    assert store.specs() == []
    assert store.digests_without_spec() == [spec.digest]


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("compressor", get_args(Compressor))
@pytest.mark.parametrize("dtype", ["int8", "uint8", "float16", "float32", "bool"])
def test_arrays_are_those_that_zarr_writes(dtype: str, compressor: Compressor, by_row: bool) -> None:
    values = (20 * np.random.default_rng(0).normal(size=(2, 4, 400, 300))).astype(dtype).swapaxes(2, 3)
    array = ArrayToWrite(values, ("t", "c", "h", "w"), by_row, compressor, {"scale": [1, 2]})
    mine = {name: b"".join(parts) for name, parts in packed(array).items()}
    theirs: dict[str, Buffer] = {}
    written = zarr.create_array(
        MemoryStore(theirs),
        data=values,
        shards=values.shape,
        chunks=(1, *values.shape[1:]) if by_row else values.shape,
        compressors=[COMPRESSORS[compressor], Crc32cCodec()],
        dimension_names=array.axes,
        attributes={"scale": [1, 2]},
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    assert written.attrs["scale"] == [1, 2]
    assert theirs["c/0/0/0/0"].to_bytes() == mine["c/0/0/0/0"]
    assert json.loads(theirs["zarr.json"].to_bytes()) == json.loads(mine["zarr.json"])


def test_numbers_of_another_byte_order_are_the_same_numbers() -> None:
    values = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    memory = MemoryStore()
    objects = open_objects(memory)
    for below, parts in packed(ArrayToWrite(values, ("t", "h", "w"), by_row=True)).items():
        objects.put(f"array/{below}", *parts)
    back = zarr.open_array(memory, path="array", mode="r")
    np.testing.assert_array_equal(np.asarray(back[...]), values)


def test_plain_zarr_reads_it(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    _, folder = on_disk
    array = zarr.open_array(folder / "block_2", mode="r")
    assert array.metadata.dimension_names == ("t", "c_block_2", "y_32", "x_32")  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.asarray(array[...]), some_features(spec).maps["block_2"].values)
    objects = [path for path in (folder / "block_2").rglob("*") if path.is_file()]
    assert len(objects) == 2  # one shard and the metadata
    with xarray.open_zarr(folder, consolidated=False) as entry:  # axes of different lengths have different names
        shapes = {name: array.shape for name, array in entry.data_vars.items()}
    assert shapes == {"block_0": (3, 16, 16, 16), "block_2": (3, 8, 32, 32), "fov": (32, 32)}


@pytest.mark.parametrize("location", ["s3://", "s3:///x"])
def test_a_url_without_a_bucket_is_told(location: str) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(FormatError, match="expected s3://bucket/prefix"):
        FeatureStore(location)


def test_what_is_pruned_while_it_is_found_is_not_there(
    filled_store: FeatureStore, spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, uses = next(iter(filled_store.keys(spec))), filled_store.uses
    found = filled_store.find(spec, key)
    assert found is not None
    assert found.geometry == filled_store.entry(spec, key).geometry
    stamp = uses.stamp

    def pruned_meanwhile(path: str) -> bool:
        filled_store.objects.delete(path)
        return stamp(path)

    monkeypatch.setattr(uses, "stamp", pruned_meanwhile)
    other = list(filled_store.keys(spec))[1]
    assert filled_store.find(spec, other) is None
    assert not filled_store.objects.exists(f"used/{entry_path(spec, other)}")


def test_a_zarr_store_that_has_no_view_for_reading_is_told_unless_it_is_one() -> None:
    class Plain(MemoryStore):  # as ZipStore
        def with_read_only(self, read_only: bool = False) -> MemoryStore:
            raise NotImplementedError

    written = Plain()
    FeatureStore(written).objects.put("zarr.json", b'{"attributes": {}}')
    with pytest.raises(FormatError, match="open it with read_only=True yourself"):
        FeatureStore(written, read_only=True)
    assert FeatureStore(Plain(written._store_dict, read_only=True), read_only=True).specs() == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingEntry, match="no such store"):
        FeatureStore(tmp_path / "nowhere", read_only=True)


def test_a_zarr_store_is_only_read_if_asked_to(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    folder = LocalStore(filled_store.location)
    memory = MemoryStore()
    copy_store(filled_store, FeatureStore(memory))
    for reader in (
        FeatureStore(folder, read_only=True),
        FeatureStore(LocalStore(folder.root, read_only=True)),
        FeatureStore(memory, read_only=True),
    ):
        key = next(iter(reader.keys(spec)))
        with pytest.raises((OSError, ValueError), match=r"reading only|read-only"):
            reader.delete(spec, key)
        assert reader.has(spec, key)
    assert FeatureStore(folder).location == filled_store.location  # a folder as any other, which commands can be given
    with pytest.raises(FormatError, match="holds other things"):
        FeatureStore(LocalStore(tmp_path))
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


@pytest.mark.parametrize(
    "marker", [{"fprmat": 2, "objects": {}}, {"format": "2", "objects": {}}, {"format": 1, "objects": {"a": 1}}, [2], 2]
)
def test_a_marker_that_makes_no_sense_is_damage_and_no_crash(
    on_disk: tuple[FeatureStore, Path], spec: FeatureSpec, marker: object
) -> None:
    store, folder = on_disk
    path = folder / "zarr.json"
    group = json.loads(path.read_text())
    path.write_text(json.dumps(group | {"attributes": group["attributes"] | {"diffdgss": marker}}))
    assert not store.has(spec, KEY)
    assert len(store.verify(spec, KEY)) == 1
    with pytest.raises(DamagedEntry):
        store.entry(spec, KEY)


def test_a_stamp_that_is_refused_is_not_tried_with_every_read(
    store: FeatureStore, spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def refuse(key: str, *_: bytes) -> None:
        refused.append(key)
        raise PermissionError("read-only credentials")

    put = store.uses._objects.put
    monkeypatch.setattr(store.uses._objects, "put", refuse)
    for _ in range(5):
        store.uses.stamp(entry_path(spec, KEY))
    assert len(refused) == 1

    def busy(key: str, *_: bytes) -> None:
        refused.append(key)
        raise StoreUnavailable("503, slow down")

    now = time.time()
    monkeypatch.setattr(store.uses._objects, "put", busy)
    for later in (0, 1, 20):
        monkeypatch.setattr("store.uses.time.time", lambda later=later: now + later)
        store.uses.stamp("another")
    assert len(refused) == 3
    monkeypatch.setattr(store.uses._objects, "put", put)
    monkeypatch.setattr("store.uses.time.time", lambda: now + 40)
    store.uses.stamp("another")
    assert store.uses.last("another") == now + 40


def test_a_backbone_that_was_not_named_can_be_named_later(store: FeatureStore, spec: FeatureSpec) -> None:
    store.register(spec)
    store.register(spec, "runs/mine")
    store.register(spec, "runs/another")
    assert store.backbone_of(spec) == "runs/mine"


def test_what_a_full_disk_cuts_off_takes_no_room(
    spec: FeatureSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, key = FeatureStore(tmp_path), Key("a" * 64)
    store.register(spec)
    put, written = store.objects.put, list[str]()

    def full(name: str, *parts: bytes) -> None:
        if len(written) == 2:
            raise StoreFull("no room left")
        written.append(name)
        put(name, *parts)

    monkeypatch.setattr(store.objects, "put", full)
    with pytest.raises(StoreFull):
        store.write(spec, key, some_features(spec))
    assert len(written) == 2
    assert store.objects.keys(spec.digest) == [f"{spec.digest}/zarr.json"]


def test_what_could_not_be_read_is_not_written(spec: FeatureSpec) -> None:
    store, features = FeatureStore("memory://"), some_features(spec)
    for key in (Key("a" * 64, "rotated"), Key("A" * 64), Key("../../../x")):
        with pytest.raises(SpecError, match="expected the sha256 of an image"):
            store.write(spec, key, features)
    with pytest.raises(SpecError, match="field of view"):
        store.write(spec, KEY, replace(features, fov=np.ones((3, 3), np.bool_)))
    stepped = coded(spec, "int8").spec
    whole = some_features(stepped)
    for scale in (None, np.ones((1, 8), np.float32)):
        maps = {name: replace(one, scale=scale) for name, one in whole.maps.items()}
        with pytest.raises(SpecError, match="expected a scale of shape"):
            store.write(stepped, KEY, replace(whole, maps=maps))
    assert not store.objects.keys("")


def test_an_entry_that_cannot_be_replaced_stays(
    on_disk: tuple[FeatureStore, Path], spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = on_disk
    before = store.entry(spec, KEY).read("block_2")
    features = some_features(spec, 5)
    largest = max(maps.values.nbytes for maps in features.maps.values())
    monkeypatch.setattr(store.objects, "free_bytes", lambda: largest // 4)
    with pytest.raises(StoreFull, match="which stays as it was"):
        store.write(spec, KEY, features)
    np.testing.assert_array_equal(store.entry(spec, KEY).read("block_2"), before)
    monkeypatch.setattr(store.objects, "free_bytes", lambda: largest + 5000)  # objects are replaced one by one
    assert store.write(spec, KEY, features) > largest + 5000


def test_all_of_an_image_is_deleted_whatever_lies_beside_it(
    on_disk: tuple[FeatureStore, Path], spec: FeatureSpec
) -> None:
    store, folder = on_disk
    (folder.parent / ".DS_Store").write_text("x")
    (folder.parent / "@eaDir").mkdir()
    (folder.parent / "@eaDir" / "thumbnail").write_text("x")
    assert store.delete_image(spec, KEY.image_id) == 1
    assert not folder.parent.exists()


def test_a_file_that_the_disk_cannot_read_hides_no_other_damage(
    on_disk: tuple[FeatureStore, Path], spec: FeatureSpec
) -> None:
    store, folder = on_disk
    other = Key("b" * 64)
    store.write(spec, other, some_features(spec, 1))
    shard = next(path for path in (folder / "block_2" / "c").rglob("*") if path.is_file())
    shard.unlink()
    shard.symlink_to(shard.name)
    assert ["cannot be read" in line for line in store.verify(spec, KEY)] == [True]
    assert store.verify(spec, other) == []
    report = copy_store(store, FeatureStore("memory://"))
    assert (report.copied, ["cannot be copied" in line for line in report.problems]) == (1, [True])


def test_a_damaged_root_is_told_with_the_way_out(on_disk: tuple[FeatureStore, Path], spec: FeatureSpec) -> None:
    store, folder = on_disk
    root = folder.parents[2] / "zarr.json"
    root.write_text("{}")
    with pytest.raises(DamagedEntry, match="remove that file"):
        FeatureStore(store.location)
    root.unlink()
    FeatureStore(store.location).register(spec)
    assert root.is_file()
