"""Making room, copying, exporting and repairing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from store import Collection, FeatureSpec, FeatureStore, FormatError, Key, MissingEntry, Sample, StoreError, to_xarray
from store.claims import Claims
from store.copying import copy_store
from store.errors import DamagedEntry, StoreBusy
from store.exporting import authors_levels, export_npy, export_zarr
from store.features import entry_path
from store.pruning import incomplete_masks, prune, remove_masks, stored_entries, to_prune
from store.records import RunRecord
from store.repairing import check, command_of, markers_removed, missing_specs, runs_to_repeat
from store.spec import Block
from store.uses import GRACE
from tests.conftest import Run, changed
from tests.store.conftest import ENCODINGS, coded, some_features

KEYS = [Key(f"{i:064x}") for i in range(4)]


def fill(store: FeatureStore, spec: FeatureSpec, encoding: str = "float16") -> FeatureSpec:
    """Four entries, the first of which was used longest ago; a data set and a mask."""
    spec, codebook = coded(spec, encoding)
    store.register(spec, "tiny", codebook)
    mask = store.collections.write_mask(np.eye(8, dtype=bool))
    for i, key in enumerate(KEYS):
        store.write(spec, key, some_features(spec, i, codebook))
        used_ago(store, spec, key, GRACE + 1000 - i)
    samples = tuple(Sample(image_id=k.image_id, name=f"eye{i}", masks={"mask": mask}) for i, k in enumerate(KEYS))
    store.collections.write(Collection(name="eyes", samples=samples))
    return spec


def used_ago(store: FeatureStore, spec: FeatureSpec, key: Key, seconds: float) -> None:
    path = entry_path(spec, key)
    store.objects.put(f"used/{path}", repr(time.time() - seconds).encode())
    store.uses._stamped.pop(path, None)


def test_the_least_recently_used_go_first(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    store.entry(spec, KEYS[0])  # now the most recent one
    entries = stored_entries(store, [spec])
    assert [entry.key for entry in entries] == [KEYS[1], KEYS[2], KEYS[3], KEYS[0]]
    chosen = to_prune(entries, max_bytes=2 * max(entry.bytes for entry in entries))
    assert [entry.key for entry in chosen] == [KEYS[1], KEYS[2]]
    assert to_prune(entries, max_bytes=sum(entry.bytes for entry in entries)) == []  # as many may stay
    assert prune(store, chosen) == chosen
    assert list(store.all_keys(spec)) == [KEYS[0], KEYS[3]]
    assert all(store.verify(spec, key) == [] for key in store.all_keys(spec))
    assert store.objects.keys(f"used/{entry_path(spec, KEYS[1])}") == []


def test_age_counts_from_the_last_use(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    used_ago(store, spec, KEYS[2], 86400)
    assert [entry.key for entry in to_prune(stored_entries(store, [spec]), older_than=3600)] == [KEYS[2]]


def test_what_is_being_read_stays(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    for key in KEYS[:3]:
        store.entry(spec, key)
    assert [entry.key for entry in to_prune(stored_entries(store, [spec]), max_bytes=0)] == [KEYS[3]]


def test_a_reader_that_comes_in_between_keeps_its_entry(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    chosen = to_prune(stored_entries(store, [spec]), max_bytes=0)
    features = store.entry(spec, KEYS[1]).features()  # after the list was made
    removed = prune(store, chosen)
    assert [entry.key for entry in removed] == [KEYS[0], KEYS[2], KEYS[3]]
    again = store.entry(spec, KEYS[1]).features()
    np.testing.assert_array_equal(again.maps["block_2"].values, features.maps["block_2"].values)


def test_incomplete_entries_go_but_not_those_being_written(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    for key in KEYS[:2]:
        store.objects.remove(f"{entry_path(spec, key)}/zarr.json")
    used_ago(store, spec, KEYS[1], 1)
    chosen = to_prune(stored_entries(store, [spec]))
    assert [entry.key for entry in chosen] == [KEYS[0]]
    prune(store, chosen)
    assert list(store.all_keys(spec)) == KEYS[1:]


def test_a_damaged_record_and_a_stray_file_block_nothing(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    record = RunRecord(spec=spec.digest, dataset="eyes")
    store.records.write(record)
    store.objects.put("runs/damaged/zarr.json", b"{")
    store.objects.put("labels/.DS_Store", b"left by a file browser")
    assert store.records.all() == [record]
    (problem,) = [one for one in check(store, store.specs()) if one.problems]
    assert problem.path == "runs/damaged"
    assert "may be removed" in problem.problems[0]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_copy_is_the_same_and_can_be_gone_on_with(
    store: FeatureStore, spec: FeatureSpec, tmp_path: Path, encoding: str
) -> None:
    spec = fill(store, spec, encoding)
    store.records.write(RunRecord(spec=spec.digest, dataset="eyes"))
    target = FeatureStore(tmp_path / "copy")
    assert copy_store(store, target, [spec]).copied == 4
    target.delete(spec, KEYS[2])
    again = copy_store(store, target, store.specs())
    assert (again.copied, again.present, again.problems) == (1, 3, [])
    assert target.specs() == [spec]
    assert target.backbone_of(spec) == "tiny"
    assert target.records.all() == store.records.all()
    collection = target.collections.read("eyes")
    assert collection == store.collections.read("eyes")
    assert target.collections.mask(collection.samples[0].masks["mask"]).sum() == 8
    for key in KEYS:
        np.testing.assert_array_equal(target.entry(spec, key).read("block_2"), store.entry(spec, key).read("block_2"))
    assert not any(one.problems for one in check(target, [spec]))


def test_damage_is_not_copied(spec: FeatureSpec, tmp_path: Path) -> None:
    store = FeatureStore("memory://")
    fill(store, spec)
    damage(store, f"{entry_path(spec, KEYS[1])}/block_2/c/0/0/0/0")
    store.objects.remove(f"{entry_path(spec, KEYS[2])}/zarr.json")
    target = FeatureStore(tmp_path / "copy")
    report = copy_store(store, target, [spec])
    assert report.copied == 2
    assert len(report.problems) == 2
    assert [target.has(spec, key) for key in KEYS] == [True, False, False, True]


def test_a_copy_tells_all_that_it_leaves_out(spec: FeatureSpec, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")
    fill(store, spec)
    for name in ("whole", "renamed", "damaged"):
        store.records.write(RunRecord(name=name, spec=spec.digest, dataset="eyes"))
    damage(store, "runs/damaged/zarr.json")
    store.objects.put(
        "runs/renamed/zarr.json", store.objects.get("runs/whole/zarr.json").replace(b'"whole"', b'"../../../out"')
    )
    (mask,) = store.collections.masks()
    store.objects.delete(f"labels/{mask}")
    foreign = store.objects.get("datasets/eyes/zarr.json").replace(mask.encode(), b"../../../../out")
    plain = json.loads(foreign)
    del plain["attributes"]["seal"]
    store.objects.put("datasets/eyes/zarr.json", json.dumps(plain).encode())
    lost = changed(spec, clip=not spec.clip)
    store.register(lost)
    store.write(lost, KEYS[0], some_features(lost))
    damage(store, f"{lost.digest}/zarr.json")
    target = FeatureStore(tmp_path / "deep" / "er" / "copy")
    report = copy_store(store, target)
    told = sorted(report.problems)
    assert len(told) == 4, told
    for part in ("runs/damaged", "runs/renamed", "labels/'../../../../out'", lost.digest):
        assert any(part.removeprefix("runs/") in line for line in told), part
    assert (report.copied, [record.name for record in target.records.all()]) == (len(KEYS), ["whole"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "store"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


def test_damage_is_told_whatever_claim_lies_on_it(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    with Claims(store.objects) as claims:
        assert claims.acquire(entry_path(spec, KEYS[0]))
        assert claims.acquire(entry_path(spec, KEYS[1]))
        damage(store, f"{entry_path(spec, KEYS[0])}/block_2/c/0/0/0/0")
        store.objects.remove(f"{entry_path(spec, KEYS[1])}/zarr.json")  # being made
        assert [one.key for one in check(store, [spec]) if one.problems] == [KEYS[0]]


def test_masks_that_were_never_finished_can_be_removed(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    whole, half = *store.collections.masks(), "f" * 64
    store.objects.put(f"labels/{half}/mask/zarr.json", b"{}")
    assert incomplete_masks(store) == [half]
    with Claims(store.objects) as claims:
        assert claims.acquire(f"labels/{half}")  # being written
        assert remove_masks(store, [half, whole]) == []
    damage(store, f"labels/{whole}/zarr.json")  # which is no reason to remove it
    assert remove_masks(store, [half, whole]) == [half]
    assert store.collections.masks() == [whole]


def test_a_stamp_of_the_future_does_not_keep_an_entry_for_ever(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    used_ago(store, spec, KEYS[0], -1e9)
    assert store.uses.last(entry_path(spec, KEYS[0])) <= time.time()
    later = time.time() + GRACE + 100
    assert KEYS[0] in [entry.key for entry in to_prune(stored_entries(store, [spec]), older_than=1.0, now=later)]


def test_a_codebook_that_is_gone_is_told_and_all_else_is_copied(spec: FeatureSpec, tmp_path: Path) -> None:
    store = FeatureStore("memory://")
    compact = fill(store, spec, "compact")
    store.objects.remove(f"{compact.digest}/codebook/zarr.json")
    with pytest.raises(DamagedEntry, match=r"the codebook of spec .* is gone"):
        store.entry(compact, KEYS[0])
    other = fill(store, spec)
    target = FeatureStore(tmp_path / "copy")
    report = copy_store(store, target, [compact, other])
    assert (report.copied, len(report.problems)) == (len(KEYS), 1)
    assert "codebook" in report.problems[0]


def test_the_authors_files_are_written(store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    fill(store, spec)
    export_npy(store, spec, KEYS, tmp_path / "npy")
    (tmp_path / "npy" / "X_10_block_2_3.npy").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "npy").glob(f"X_*_{len(KEYS) - 2}.npy")}
    export_npy(store, spec, KEYS, tmp_path / "npy")  # gone on with
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    maps = np.load(tmp_path / "npy" / "X_10_block_2_3.npy")
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, store.entry(spec, KEYS[3]).read("block_2", [10])[0])
    index_file = tmp_path / "npy" / "index.json"
    index = json.loads(index_file.read_text())
    assert index["rows"][3]["image_id"] == KEYS[3].image_id
    with pytest.raises(FormatError, match="holds an export of other features"):
        export_npy(store, spec, KEYS[:2], tmp_path / "npy")
    index_file.write_text("")
    with pytest.raises(FormatError, match=r"index\.json: damaged"):
        export_npy(store, spec, KEYS, tmp_path / "npy")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(FormatError, match="is not empty"):
        export_npy(store, spec, KEYS, tmp_path / "full")


def test_the_authors_levels_of_the_paper(spec: FeatureSpec) -> None:
    sizes = {11: 128, 12: 128, 13: 128, 14: 256, 15: 256, 16: 256, 17: 512, 18: 512, 19: 512, 20: 512}
    blocks = tuple(Block(name=f"block_{k}", channels=8, height=s, width=s) for k, s in sizes.items())
    levels = authors_levels(changed(spec, blocks=blocks))
    assert {name: len(members) for name, members in levels.items()} == {"low": 3, "mid": 3, "high": 4}


def test_xarray_reads_what_is_exported(store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    spec = fill(store, spec, "int8")
    export_zarr(store, spec, KEYS, tmp_path / "exported")
    export_zarr(store, spec, KEYS, tmp_path / "exported")
    expected = store.entry(spec, KEYS[2]).read("block_2", [100])[0]
    with xarray.open_zarr(tmp_path / "exported", consolidated=False) as dataset:
        np.testing.assert_array_equal(dataset["block_2"].sel(t=100)[2], expected)
        assert dataset.attrs["image_id"][2] == KEYS[2].image_id
        assert dataset.attrs["complete"]
    array = zarr.open_group(str(tmp_path / "exported"), mode="r")["block_2"]
    np.testing.assert_array_equal(array[2, 2], expected)  # type: ignore[index]


def test_an_export_that_ended_early_says_so(store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    spec, seen = fill(store, spec, "int8"), list[int]()

    def ended() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise StoreError("as if an entry were damaged")

    for form, index in ((export_zarr, "zarr.json"), (export_npy, "index.json")):
        seen.clear()
        with pytest.raises(StoreError, match="as if"):
            form(store, spec, KEYS, tmp_path / form.__name__, ended)
        for finished in (False, True):
            written = json.loads((tmp_path / form.__name__ / index).read_text())
            assert (written.get("attributes") or written)["complete"] is finished
            form(store, spec, KEYS, tmp_path / form.__name__)


def test_a_lazy_dataset(store: FeatureStore, spec: FeatureSpec) -> None:
    spec = fill(store, spec, "compact")
    dataset = to_xarray(store, spec)
    assert list(dataset["image_id"].values) == [key.image_id for key in KEYS]
    assert dataset["block_2"].dims == ("image", "t", "c_block_2", "y_32", "x_32")
    one = dataset["block_2"].isel(image=1).sel(t=10)
    np.testing.assert_array_equal(one.values, store.entry(spec, KEYS[1]).read("block_2", [10])[0])
    with pytest.raises(MissingEntry, match="no complete entry"):
        to_xarray(FeatureStore("memory://"), spec)


def damage(store: FeatureStore, key: str) -> None:
    data = bytearray(store.objects.get(key))
    data[len(data) // 2] ^= 0xFF
    store.objects.put(key, bytes(data))


def test_every_part_is_checked(store: FeatureStore, spec: FeatureSpec) -> None:
    spec = fill(store, spec, "compact")
    label = store.objects.names("labels")[0]
    damage(store, f"{spec.digest}/codebook/block_0.basis/c/0/0")
    damage(store, f"{entry_path(spec, KEYS[0])}/fov/c/0/0")
    damage(store, f"labels/{label}/mask/c/0/0")
    store.objects.put("datasets/eyes/zarr.json", b"{}")
    damaged = [one for one in check(store, [spec]) if one.problems]
    assert [one.path.split("/")[-1] for one in damaged] == ["codebook", "identity", "eyes", label]
    store.records.write(RunRecord(spec=spec.digest, dataset="eyes", options={"dataset": "folder:/photos"}))
    records, made, orphans = runs_to_repeat(store, damaged)
    assert [record.options["dataset"] for record in records] == ["folder:/photos"]
    assert (made, orphans) == (damaged, [])


def test_what_is_set_aside_is_put_back_unless_it_was_made_anew(store: FeatureStore, spec: FeatureSpec) -> None:
    spec = fill(store, spec)
    for key in KEYS[:2]:
        damage(store, f"{entry_path(spec, key)}/fov/c/0/0")
    damaged = [one for one in check(store, [spec]) if one.problems]
    with markers_removed(store, damaged):
        assert not store.has(spec, KEYS[0])
        store.write(spec, KEYS[0], some_features(spec, 0))
    assert [one.path for one in check(store, [spec]) if one.problems] == [entry_path(spec, KEYS[1])]


def test_a_repair_that_is_killed_loses_nothing(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    path = entry_path(spec, KEYS[0])
    before = store.entry(spec, KEYS[0]).read("block_0")
    damage(store, f"{path}/block_2/c/0/0/0/0")
    killed = markers_removed(store, [one for one in check(store, [spec]) if one.problems])
    killed.__enter__()
    (found,) = (one for one in check(store, [spec]) if one.problems)
    assert (found.path, "its repair was interrupted" in found.problems[0]) == (path, True)
    with markers_removed(store, [found]):
        assert not store.has(spec, KEYS[0])
    np.testing.assert_array_equal(store.entry(spec, KEYS[0]).read("block_0"), before)
    assert store.verify(spec, KEYS[0])
    assert not [key for key in store.objects.keys(path) if "marker-of" in key]


def test_what_is_being_made_is_no_damage_and_is_not_pruned(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    path = entry_path(spec, KEYS[0])
    store.objects.remove(f"{path}/zarr.json")
    with Claims(store.objects) as claims:
        assert claims.acquire(path)
        assert not any(one.problems for one in check(store, [spec]))
        chosen = to_prune(stored_entries(store, [spec]))
        assert [entry.key for entry in chosen] == [KEYS[0]]
        assert prune(store, chosen) == []
    assert [one.path for one in check(store, [spec]) if one.problems] == [path]


def test_what_another_process_makes_is_not_copied_over_it(
    store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    fill(store, spec)
    target = FeatureStore(tmp_path / "copy")
    with Claims(target.objects) as claims:
        assert claims.acquire(entry_path(spec, KEYS[0]))
        report = copy_store(store, target, [spec])
    assert report.copied == 3
    (problem,) = report.problems
    assert "another process is making it at the destination" in problem
    assert copy_store(store, target, [spec]).copied == 1
    assert target.objects.keys("claims") == []


def test_a_stray_file_is_no_entry(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    store.objects.put(f"{spec.digest}/{KEYS[0].image_id}/.DS_Store", b"left by a file manager")
    assert list(store.all_keys(spec)) == KEYS


def test_a_copy_is_not_old(store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    fill(store, spec)
    target = FeatureStore(tmp_path / "copy")
    copy_store(store, target, [spec])
    for key in target.objects.keys("used"):
        target.objects.remove(key)  # as in a store of an earlier version
    assert to_prune(stored_entries(target, [spec]), older_than=1, max_bytes=0) == []


def test_a_copy_joins_what_is_there(store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    fill(store, spec)
    target = FeatureStore(tmp_path / "copy")
    target.collections.write(Collection(name="eyes", samples=(Sample(image_id="f" * 64, name="another"),)))
    copy_store(store, target, [spec])
    names = [sample.name for sample in target.collections.read("eyes").samples]
    assert names == ["another", "eye0", "eye1", "eye2", "eye3"]


def test_a_spec_that_is_lost_is_told(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    for break_it in (
        lambda: store.objects.put(f"{spec.digest}/zarr.json", b"{"),
        lambda: store.objects.remove(f"{spec.digest}/zarr.json"),
    ):
        break_it()
        assert store.specs() == []
        assert missing_specs(store)[0].startswith(spec.digest)
    store.register(spec)
    assert missing_specs(store) == []
    assert store.has(spec, KEYS[0])


def test_a_mask_that_is_gone_is_told(store: FeatureStore, spec: FeatureSpec) -> None:
    fill(store, spec)
    store.objects.delete("labels")
    assert len([one for one in check(store, [spec]) if one.problems]) == 1


def test_only_options_of_a_run_are_run_again() -> None:
    record = RunRecord(spec="0" * 64, dataset="eyes", options={"dataset": "folder:/a b", "clip": True})
    assert command_of(record, "s").arguments[2:] == [
        "extractor.cli",
        "run",
        "--store=s",
        "--dataset=folder:/a b",
        "--clip",
        f"--expect-spec={'0' * 64}",
    ]
    assert "--expect-spec" not in str(command_of(record, "s", same_spec=False))
    for name in ("store", "scheduler", "workers", "overwrite", "x; rm", "-c"):
        with pytest.raises(StoreError, match="it was not written here"):
            command_of(RunRecord(spec="0" * 64, dataset="eyes", options={name: "y"}), "s")


def test_the_commands(run: Run, spec: FeatureSpec, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")
    fill(store, spec)
    one = store.stored_bytes(spec, KEYS[0]) or 0
    planned = json.loads(run("store", "prune", store.location, "--max-bytes", f"{one}B", "--dry-run", "--json").stdout)
    assert [entry["image_id"] for entry in planned["removed"]] == [key.image_id for key in KEYS[:3]]
    assert list(store.all_keys(spec)) == KEYS
    pruned = run("store", "prune", store.location, "--max-bytes", f"{one / 1e6}MB")
    assert "removed 3 entries" in pruned.stdout
    assert list(store.all_keys(spec)) == KEYS[3:]
    assert run("store", "prune", store.location, "--older-than", "soon").returncode == 2
    copied = json.loads(run("store", "copy", store.location, tmp_path / "copy", "--json").stdout)
    assert (copied["copied"], copied["problems"]) == (1, [])
    exported = run("store", "export", store.location, tmp_path / "npy", "--format", "npy", "--dataset", "eyes")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "npy" / "X_1_block_0_0.npy").is_file()
    assert run("store", "export", tmp_path / "copy", tmp_path / "zarr", "--json").returncode == 0
    assert run("store", "export", store.location, tmp_path / "x", "--dataset", "ears").returncode == 1
    assert json.loads(run("store", "verify", store.location, "--json").stdout)["checked"] == 3


def test_a_damaged_data_set_hides_no_other_from_a_copy(store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    fill(store, spec)
    eyes = store.collections.read("eyes")
    for name in ("a-first", "z-last"):
        store.collections.write(Collection(name=name, samples=eyes.samples))
    store.objects.put("datasets/a-first/zarr.json", b"{")
    copy = FeatureStore(tmp_path / "copy")
    report = copy_store(store, copy, store.specs())
    assert "a-first" in " ".join(report.problems)
    assert copy.collections.names() == ["eyes", "z-last"]


def test_what_is_being_made_is_not_deleted(store: FeatureStore, spec: FeatureSpec) -> None:
    spec, key = fill(store, spec), KEYS[0]
    with Claims(store.objects) as claims:
        assert claims.acquire(entry_path(spec, key))
        with pytest.raises(StoreBusy, match="another process has held"):
            store.delete_image(spec, key.image_id, timeout=0.1)
        assert store.verify(spec, key) == []
    assert store.delete_image(spec, key.image_id) == 1
    assert not store.has(spec, key)


def test_a_store_has_a_folder_of_its_own(tmp_path: Path, spec: FeatureSpec) -> None:
    for name in (".DS_Store", "@eaDir", "Thumbs.db", "zarr.0123.partial"):
        (tmp_path / name).touch()
    with pytest.raises(MissingEntry, match="no store here"):
        FeatureStore(tmp_path, read_only=True)
    FeatureStore(tmp_path).objects.require_writable()  # as the service asks before the first photograph
    FeatureStore(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "photographs").mkdir()
    with pytest.raises(FormatError, match="holds other things, such as photographs"):
        FeatureStore(tmp_path)
    with pytest.raises(MissingEntry, match="no store here"):
        FeatureStore(tmp_path, read_only=True)
    (tmp_path / spec.digest).mkdir()  # a store of the first format has nothing else
    FeatureStore(tmp_path)
