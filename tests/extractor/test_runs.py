"""Batch runs: nothing twice, nothing lost, everything that fails named."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from extractor import backbones, opened
from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.backbone_folder import save_backbone
from extractor.backbones import encoding_of, open_backbone
from extractor.background import BEHIND, ONE_THREAD_OF_OPENCV
from extractor.datasets import DataSet, load_dataset
from extractor.diffusion import Diffusion
from extractor.errors import BackboneError, DatasetError, DeviceFull, NonFiniteActivation
from extractor.extraction import Extractor, Prepared, UnstackedFeatures
from extractor.images import image_id
from extractor.pipeline import Threads, default_batch, default_threads
from extractor.pixels import PixelExtractor
from extractor.runs import SizePlan, extract_dataset, plan_size, require_room
from extractor.unet import build_unet
from store import Features, FeatureSpec, FeatureStore, FloatEncoding, NonFiniteFeatures, SpecError, StoreFull
from store.claims import Claims
from store.features import FeatureEntry, Key
from store.interrupts import Stop
from store.pixels import spec_of_pixels
from store.spec import PREPROCESSINGS, Preprocessing, PreprocessingName
from tests.conftest import TINY, changed


def test_a_second_run_does_nothing(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, extractor = FeatureStore("memory://"), Extractor(backbone, spec)
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    with monkeypatch.context() as unreadable:
        unreadable.setattr("extractor.runs.read_bytes", None)  # no photograph is read where nothing is stored
        assert plan_size(dataset, store, spec).entries == 6
    seen: list[str] = []
    first = extract_dataset(dataset, store, extractor, advance=seen.append)
    assert (first.extracted, first.present, first.failed) == (6, 0, [])
    assert first.forwards == 6 * len(spec.grid)
    assert first.bytes_stored > 0
    assert seen == [photograph.name for photograph in dataset.photographs]
    with monkeypatch.context() as pruned:
        find = store.find

        def found_and_removed(spec: FeatureSpec, key: Key) -> FeatureEntry | None:
            found = find(spec, key)
            store.delete(spec, key)  # by another process, just after this one has seen it
            return found

        pruned.setattr(store, "find", found_and_removed)
        assert extract_dataset(dataset, store, extractor).present == 6
    assert extract_dataset(dataset, store, extractor).extracted == 6
    second = extract_dataset(dataset, store, extractor)
    assert (second.extracted, second.present, second.forwards, second.bytes_stored) == (0, 6, 0, 0)
    assert plan_size(dataset, store, spec).entries == 0
    third = extract_dataset(dataset, store, extractor, overwrite=True)
    assert third.extracted == 6


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux alone")
def test_helpers_give_way_and_take_no_threads_of_their_own(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine() -> tuple[int, int]:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), cv2.getNumThreads()

    before, store = mine(), FeatureStore("memory://")
    seen: dict[str, set[tuple[int, int]]] = {"decoding": set(), "network": set(), "writing": set()}

    def seeing(where: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def seen_there(*given: Any, **named: Any) -> Any:
            seen[where].add(mine())
            return usual(*given, **named)

        return seen_there

    monkeypatch.setattr(Extractor, "frame", seeing("decoding", Extractor.frame))
    monkeypatch.setattr(Extractor, "extract_unstacked", seeing("network", Extractor.extract_unstacked))
    monkeypatch.setattr(FeatureStore, "write", seeing("writing", FeatureStore.write))
    extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, Extractor(backbone, spec))
    nice, behind = before[0], min(before[0] + BEHIND, 19)
    assert seen == {"decoding": {(behind, 1)}, "network": {(nice, 1)}, "writing": {(behind, 1)}}
    assert mine() == before


def test_opencv_has_its_threads_back_when_the_last_run_ends() -> None:
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    one, other = ONE_THREAD_OF_OPENCV, ONE_THREAD_OF_OPENCV
    try:
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(one)
            second.enter_context(other)
            first.close()
            assert cv2.getNumThreads() == 1
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_features_masks_and_names_arrive(filled_store: FeatureStore, spec: FeatureSpec, dataset_folder: Path) -> None:
    collection = filled_store.collections.read("eyes")
    assert [sample.name for sample in collection.samples] == [f"eye{i}" for i in range(6)]
    photographs = load_dataset(f"folder:{dataset_folder}").photographs
    for sample, photograph in zip(collection.samples, photographs, strict=True):
        truth = photograph.read_mask("mask", (80, 96))
        np.testing.assert_array_equal(filled_store.collections.mask(sample.masks["mask"]), truth)
    assert all(filled_store.verify(spec, key) == [] for key in filled_store.keys(spec))


def test_unusable_images_are_listed_and_the_rest_is_done(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset_folder / "images", tmp_path / "mixed")
    (tmp_path / "mixed" / "broken.png").write_bytes(b"rubbish")
    store = FeatureStore("memory://")
    report = extract_dataset(load_dataset(f"folder:{tmp_path / 'mixed'}"), store, Extractor(backbone, spec))
    assert report.extracted == 6
    assert len(report.failed) == 1
    assert "broken.png: not an image" in report.failed[0][1]
    assert len(store.collections.read("mixed").samples) == 6


def test_non_finite_features_stop_a_run(spec: FeatureSpec, backbone: Backbone, dataset_folder: Path) -> None:
    broken = Backbone(build_unet(tiny_unet()), backbone.diffusion, tiny_unet())
    broken.unet.up_blocks[0].resnets[0].conv1.weight[0] = np.inf
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    left_out, extractor = list[str](), Extractor(broken, TINY.spec(backbone_like(broken, spec)))
    with pytest.raises(NonFiniteActivation, match="block_0 at timestep 1"):
        extract_dataset(dataset, FeatureStore("memory://"), extractor, advance=left_out.append)
    assert len(left_out) == 2  # the third photograph in a row makes it the network's fault


@pytest.mark.parametrize("error", [NonFiniteFeatures, NonFiniteActivation])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_photograph_that_network_or_encoding_cannot_hold_is_left_out(
    backbone: Backbone,
    spec: FeatureSpec,
    dataset_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    error: type[Exception],
) -> None:
    unstacked, path = Extractor.extract_unstacked, sorted((dataset_folder / "images").iterdir())[2]
    too_large = image_id(path.read_bytes())

    def overflowing(self: Extractor, prepared: Sequence[Prepared]) -> list[UnstackedFeatures]:
        if any(one.key.image_id == too_large for one in prepared):
            raise error("block_2: features hold numbers beyond float16")
        return unstacked(self, prepared)

    monkeypatch.setattr(Extractor, "extract_unstacked", overflowing)
    store = FeatureStore("memory://")
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    report = extract_dataset(dataset, store, Extractor(backbone, spec), batch=batch)
    assert report.failed == [(str(path), f"{path}: block_2: features hold numbers beyond float16")]
    assert (report.extracted, len(list(store.keys(spec)))) == (5, 5)
    assert len(store.collections.read("eyes").samples) == 5
    assert extract_dataset(dataset, store, Extractor(backbone, spec)).failed == report.failed
    monkeypatch.undo()
    assert extract_dataset(dataset, store, Extractor(backbone, spec)).extracted == 1  # its claim was given up


def test_photographs_that_were_left_out_stop_no_run_that_goes_on(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstacked, paths = Extractor.extract_unstacked, sorted((dataset_folder / "images").iterdir())[1:5]
    bad = {image_id(path.read_bytes()) for path in paths}

    def broken(self: Extractor, prepared: Sequence[Prepared]) -> list[UnstackedFeatures]:
        if any(one.key.image_id in bad for one in prepared):
            raise NonFiniteActivation("block_0 at timestep 1")
        return unstacked(self, prepared)

    monkeypatch.setattr(Extractor, "extract_unstacked", broken)
    store, dataset = FeatureStore("memory://"), load_dataset(f"folder:{dataset_folder}", "eyes")
    for extracted in (2, 0):
        report = extract_dataset(dataset, store, Extractor(backbone, spec))
        assert (report.extracted, len(report.failed)) == (extracted, 4)


@pytest.mark.parametrize(("name", "value"), [("precision", "float16"), ("schedule", "linear-4000")])
def test_a_spec_of_another_precision_or_schedule_is_refused(
    backbone: Backbone, spec: FeatureSpec, name: str, value: str
) -> None:
    with pytest.raises(BackboneError, match=f"the spec has {name} {value}, but the backbone was opened with"):
        Extractor(backbone, changed(spec, **{name: value}))


def test_a_recipe_prepares_photographs_as_the_backbone_was_trained(backbone: Backbone) -> None:
    assert TINY.spec(backbone).preprocessing == Preprocessing()
    trained = Backbone(backbone.unet, backbone.diffusion, backbone.config, preprocessing=Preprocessing(clahe=None))
    assert TINY.spec(trained).preprocessing == Preprocessing(clahe=None)
    squeezed = replace(TINY, preprocessing=PREPROCESSINGS["squeeze"]())
    assert squeezed.spec(trained).preprocessing.crop == "none"


def test_a_photograph_that_is_there_twice_is_nobody_elses(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset_folder, tmp_path / "eyes")
    first = next((tmp_path / "eyes" / "images").iterdir())
    shutil.copy(first, first.with_name(f"again{first.suffix}"))
    said: list[str] = []
    dataset = load_dataset(f"folder:{tmp_path / 'eyes'}", "eyes")
    report = extract_dataset(dataset, FeatureStore("memory://"), Extractor(backbone, spec), batch=2, say=said.append)
    assert (report.extracted, report.present) == (6, 1)
    assert not said


def backbone_like(broken: Backbone, spec: FeatureSpec) -> Backbone:
    """The broken backbone, whose block shapes are known from the spec without running it."""
    broken.blocks = lambda *_: spec.blocks  # type: ignore[method-assign]
    return broken


def test_a_data_set_without_a_usable_image_is_an_error(backbone: Backbone, spec: FeatureSpec, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"rubbish")
    with pytest.raises(DatasetError, match="none of the 1 images could be used"):
        extract_dataset(load_dataset(f"folder:{tmp_path}", "x"), FeatureStore("memory://"), Extractor(backbone, spec))


def test_the_features_do_not_depend_on_the_batch(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path) -> None:
    exact = replace(TINY, encoding=FloatEncoding(kind="float32"))
    for trajectory in ("ddim", "stochastic"):
        extractor = Extractor(backbone, exact.with_trajectory(trajectory).spec(backbone))  # type: ignore[arg-type]
        prepared = [extractor.prepare(p.read_bytes()) for p in sorted((dataset_folder / "images").iterdir())[:3]]
        together = extractor.features(prepared)
        for one, expected in zip(prepared, together, strict=True):
            alone = extractor.features([one])[0]
            for name, maps in alone.maps.items():
                scale = np.abs(maps.values).max()
                np.testing.assert_allclose(maps.values, expected.maps[name].values, atol=1e-4 * scale)


def test_trajectories_differ_and_seeds_repeat(backbone: Backbone, dataset_folder: Path) -> None:
    data = next((dataset_folder / "images").iterdir()).read_bytes()

    def maps(preset: object) -> np.ndarray:
        extractor = Extractor(backbone, preset.spec(backbone))  # type: ignore[attr-defined]
        return np.asarray(extractor.features([extractor.prepare(data)])[0].maps["block_2"].values)

    ddim, anchored, stochastic = (
        maps(TINY),
        maps(TINY.with_trajectory("anchored")),
        maps(TINY.with_trajectory("stochastic", 1)),
    )
    np.testing.assert_array_equal(ddim[0], anchored[0])  # the walk starts at the image
    assert not np.allclose(ddim[2], anchored[2])
    np.testing.assert_array_equal(stochastic, maps(TINY.with_trajectory("stochastic", 1)))
    assert not np.allclose(stochastic, maps(TINY.with_trajectory("stochastic", 2)))


def test_residuals_come_with_the_inversion_and_cost_no_forward(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path
) -> None:
    sparse = changed(spec, timesteps=(1, 100))
    extractor = Extractor(backbone, sparse)
    data = [(dataset_folder / "images" / f"eye{i}.png").read_bytes() for i in range(2)]
    prepared = [extractor.prepare(one) for one in data]
    calls: list[int] = []
    handle = backbone.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))
    together = extractor.features(prepared)
    handle.remove()
    assert len(calls) == 3
    for one, features in zip(prepared, together, strict=True):
        step = backbone.estimate(one.input.x0, 1)
        assert step.x0 is not None
        missed = (step.x0 - one.input.x0).double()[0][:, torch.from_numpy(one.input.fov)]
        assert set(features.residuals) == {1, 10}  # t = 10 is not kept, and known all the same
        assert features.residuals[1] == pytest.approx(float(missed.square().mean()), rel=1e-4)
    assert together[0].residuals != together[1].residuals


def test_without_an_inversion_there_is_no_residual(backbone: Backbone, dataset_folder: Path) -> None:
    spec = replace(TINY, trajectory="anchored").spec(backbone)
    extractor = Extractor(backbone, spec)
    prepared = extractor.prepare((dataset_folder / "images" / "eye0.png").read_bytes())
    assert extractor.features([prepared])[0].residuals == {}


def test_another_backbone_is_refused(backbone: Backbone, spec: FeatureSpec) -> None:
    with pytest.raises(BackboneError, match="the spec was made with backbone 00000"):
        Extractor(backbone, changed(spec, backbone="0" * 64))


def test_the_fingerprint_is_that_of_weights_and_configuration(backbone: Backbone) -> None:
    other = Backbone(backbone.unet, Diffusion(backbone.schedule, "epsilon"), backbone.config)
    assert other.fingerprint != backbone.fingerprint


def test_untrained_is_the_same_architecture_with_other_weights_always_the_same(
    backbone: Backbone, tmp_path: Path
) -> None:
    save_backbone(backbone, tmp_path / "net")
    trained = open_backbone(str(tmp_path / "net"))
    state = torch.get_rng_state()
    again = trained.untrained_copy()
    assert torch.equal(torch.get_rng_state(), state)
    control = open_backbone(f"untrained:{tmp_path / 'net'}")
    assert control.fingerprint == again.fingerprint != trained.fingerprint
    assert (control.parameters, control.block_names) == (trained.parameters, trained.block_names)
    with pytest.raises(BackboneError, match="shipped backbones"):
        open_backbone("untrained:nothing")


def test_the_backbone_beside_the_wheel_is_pointed_at_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "MODELS", tmp_path)
    for missing in (lambda: open_backbone("base"), lambda: encoding_of("compact", "base")):
        with pytest.raises(BackboneError, match="too large for the wheel: name its folder, extractor/models/base"):
            missing()


def test_a_run_that_cannot_fit_is_stopped_before_it_starts() -> None:
    require_room(SizePlan(10, {"block_0": 100}, free=1000))
    require_room(SizePlan(10, {"block_0": 100}, free=None))
    with pytest.raises(StoreFull, match="10 entries will take about"):
        require_room(SizePlan(10, {"block_0": 101}, free=1000))


def test_views_are_renderings_with_one_geometry(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path) -> None:
    extractor = Extractor(backbone, spec)
    data = next((dataset_folder / "images").iterdir()).read_bytes()
    plain = extractor.prepare(data).input
    flipped = extractor.prepare(data, view="flip-h").input
    np.testing.assert_array_equal(flipped.x0.numpy(), plain.x0.numpy()[..., ::-1])
    np.testing.assert_array_equal(flipped.fov, plain.fov[:, ::-1])
    rendered = [extractor.prepare(data, view=f"photometric-{seed}").input for seed in (0, 0, 1)]
    assert all(one.geometry == plain.geometry and (one.fov == plain.fov).all() for one in rendered)
    np.testing.assert_array_equal(rendered[0].x0, rendered[1].x0)
    assert not np.allclose(rendered[0].x0, plain.x0, atol=0.02)
    assert not np.allclose(rendered[0].x0, rendered[2].x0, atol=0.02)
    assert (rendered[0].x0[0, :, ~plain.fov] == -1).all()


def test_views_are_entries_of_their_own(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path) -> None:
    store, extractor = FeatureStore("memory://"), Extractor(backbone, spec)
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    views = ("identity", "flip-v", "photometric-0")
    assert plan_size(dataset, store, spec, views).entries == 18
    assert extract_dataset(dataset, store, extractor, views=views).extracted == 18
    assert {key.view for key in store.keys(spec)} == set(views)
    assert len(store.collections.read("eyes").samples) == 6
    assert extract_dataset(dataset, store, extractor).present == 6


def test_a_part_of_a_set_joins_what_is_known_of_it(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path) -> None:
    store, extractor = FeatureStore("memory://"), Extractor(backbone, spec)
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    for part in (dataset.photographs[:2], dataset.photographs[1:4]):
        extract_dataset(dataset.part(part), store, extractor)
    assert [sample.name for sample in store.collections.read("eyes").samples] == ["eye0", "eye1", "eye2", "eye3"]
    relabelled = [replace(p, masks={"disc": p.masks["mask"]}) for p in dataset.photographs[1:2]]
    extract_dataset(
        DataSet("eyes", dataset.photographs[4:5], (*relabelled, *dataset.photographs[2:])), store, extractor
    )
    names = [sample.name for sample in store.collections.read("eyes").samples]
    assert names == ["eye2", "eye3", "eye4"]  # eye0 is gone from the folder, and eye1 has other masks
    extract_dataset(DataSet("eyes", dataset.photographs[4:]), store, extractor)
    assert [sample.name for sample in store.collections.read("eyes").samples] == ["eye4", "eye5"]


def test_recipes_at_other_timesteps(backbone: Backbone) -> None:
    spec = TINY.with_overrides(timesteps=(5, 50), blocks=(1,)).spec(backbone)
    assert (spec.grid, spec.timesteps, [b.name for b in spec.blocks]) == ((5, 50), (5, 50), ["block_1"])
    assert TINY.with_overrides(grid=(1, 10, 50, 100)).spec(backbone).timesteps == TINY.timesteps
    assert TINY.with_overrides().spec(backbone) == TINY.spec(backbone)
    smaller = TINY.with_overrides(resolution=TINY.resolution // 2).spec(backbone)
    assert [2 * one.width for one in smaller.blocks] == [one.width for one in TINY.spec(backbone).blocks]
    with pytest.raises(SpecError, match=r"timesteps \[50\] are kept but not in the grid"):
        TINY.with_overrides(timesteps=(5, 50), grid=(5, 10)).spec(backbone)


def test_half_precision_that_overflows_falls_back_to_float32(
    backbone: Backbone, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Backbone(backbone.unet, backbone.diffusion, backbone.config, precision="float16")
    extractor = Extractor(half, TINY.spec(half))
    prepared = [extractor.prepare(p.read_bytes()) for p in sorted((dataset_folder / "images").iterdir())[:3]]
    exact = Extractor(backbone, TINY.spec(backbone)).features(prepared)
    estimate = Backbone.estimate
    too_large = prepared[1].input.x0

    def overflowing(self: Backbone, x: torch.Tensor, t: int, *rest: object, **more: object) -> object:
        if self.precision == "float16" and any(torch.equal(one, too_large[0]) for one in x):
            raise NonFiniteActivation("block_0 at timestep 1 holds NaN or infinity")
        return estimate(self, x, t, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "estimate", overflowing)
    found = extractor.features(prepared)
    assert extractor.take_fallbacks() == [f"{prepared[1].key.image_id[:12]} (identity)"]
    assert extractor.take_fallbacks() == []
    for one, expected in zip(found, exact, strict=True):
        for name, maps in expected.maps.items():
            np.testing.assert_allclose(one.maps[name].values, maps.values, atol=0.05 * np.abs(maps.values).max())
    assert half.precision == "float16"


def test_batches_make_the_same_entries(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path) -> None:
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    one, four = FeatureStore("memory://"), FeatureStore("memory://")
    extract_dataset(dataset, one, Extractor(backbone, spec))
    report = extract_dataset(dataset, four, Extractor(backbone, spec), batch=4)
    assert (report.extracted, report.forwards) == (6, 6 * len(spec.grid))
    for key in one.keys(spec):
        expected = one.entry(spec, key).read("block_2")
        np.testing.assert_allclose(four.entry(spec, key).read("block_2"), expected, atol=2e-3 * np.abs(expected).max())
    assert one.collections.read("eyes") == four.collections.read("eyes")


def test_a_stop_is_asked_between_views(backbone: Backbone, spec: FeatureSpec, dataset_folder: Path) -> None:
    store, stop = FeatureStore("memory://"), Stop()
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    report = extract_dataset(dataset, store, Extractor(backbone, spec), stop=stop, advance=lambda _: stop.request())
    assert report.interrupted
    assert 0 < report.extracted < 6
    assert len(store.collections.read("eyes").samples) == report.extracted
    assert all(store.verify(spec, key) == [] for key in store.keys(spec))
    assert extract_dataset(dataset, store, Extractor(backbone, spec)).extracted == 6 - report.extracted
    assert len(store.collections.read("eyes").samples) == 6


def test_an_interrupted_run_drops_what_can_no_longer_be_read(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path
) -> None:
    store, stop, extractor = FeatureStore("memory://"), Stop(), Extractor(backbone, spec)
    dataset = load_dataset(f"folder:{shutil.copytree(dataset_folder, tmp_path / 'eyes')}")
    extract_dataset(dataset, store, extractor)
    dataset.photographs[0].image.write_bytes(b"rubbish")
    report = extract_dataset(
        dataset, store, extractor, stop=stop, advance=lambda name: stop.request() if name == "eye1" else None
    )
    assert (report.interrupted, len(report.failed)) == (True, 1)
    assert [sample.name for sample in store.collections.read("eyes").samples] == [f"eye{i}" for i in range(1, 6)]


def test_a_batch_without_room_is_done_in_halves(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = Extractor(backbone, spec)
    prepared = [extractor.prepare(path.read_bytes()) for path in sorted((dataset_folder / "images").iterdir())[:5]]
    expected, estimate = extractor.features(prepared), backbone.estimate
    tried: list[int] = []

    def with_room_for_two(x: torch.Tensor, t: int, *arguments: Any, **options: Any) -> Any:
        if t == spec.grid[0]:
            tried.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return estimate(x, t, *arguments, **options)

    monkeypatch.setattr(backbone, "estimate", with_room_for_two)
    for found, features in zip(extractor.features(prepared), expected, strict=True):
        for name, maps in features.maps.items():
            np.testing.assert_allclose(found.maps[name].values, maps.values, rtol=1e-2, atol=1e-3)
    assert tried == [5, 2, 2, 1]
    assert len(extractor.features(prepared)) == 5
    assert tried[4:] == [2, 2, 1]  # what there is room for is known


@pytest.mark.parametrize("count", [1, 3])
def test_recorded_graphs_are_given_up_before_a_batch_is_split(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    extractor = Extractor(backbone, spec)
    prepared = [extractor.prepare(path.read_bytes()) for path in sorted((dataset_folder / "images").iterdir())[:count]]
    encode, left = extractor.codec.encode, [1]

    def full_beside_graphs(*given: Any) -> Any:
        if left:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(*given)

    monkeypatch.setattr(extractor.codec, "encode", full_beside_graphs)
    monkeypatch.setattr(backbone, "forget_graphs", lambda: bool(left and left.pop()))
    assert len(extractor.features(prepared)) == count
    assert extractor.forwards == count * len(spec.grid)  # in one batch


def test_a_device_without_room_for_one_photograph_is_told(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_room(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    extractor = Extractor(backbone, spec)
    prepared = [extractor.prepare(next((dataset_folder / "images").iterdir()).read_bytes())]
    monkeypatch.setattr(backbone, "estimate", without_room)
    with pytest.raises(DeviceFull, match="no room for one photograph of 32 pixels"):
        extractor.features(prepared)


def test_nothing_of_a_batch_is_kept_while_its_photographs_are_done_again(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "precision", "float16")
    extractor = Extractor(backbone, changed(spec, precision="float16"))
    prepared = [extractor.prepare(path.read_bytes()) for path in sorted((dataset_folder / "images").iterdir())[:2]]
    batches: list[weakref.ref[torch.Tensor]] = []
    estimate = backbone.estimate

    def too_much_for_half_precision(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        assert not [ref for ref in batches if ref() is not None and ref() is not x and len(ref()) > len(x)]  # type: ignore[arg-type]
        batches.append(weakref.ref(x))
        if backbone.precision != "float32":
            raise NonFiniteActivation("block_0 at timestep 1 holds NaN or infinity")
        return estimate(x, *arguments, **options)

    monkeypatch.setattr(backbone, "estimate", too_much_for_half_precision)
    assert len(extractor.features(prepared)) == 2
    assert len(extractor.take_fallbacks()) == 2


def test_the_network_does_not_wait_for_the_batch_before_to_be_written(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, store = Extractor(backbone, spec), FeatureStore("memory://")
    unstacked, write, second = extractor.extract_unstacked, store.write, threading.Event()
    begun: list[int] = []

    def noting(prepared: Any) -> Any:
        begun.append(len(prepared))
        if len(begun) == 2:
            second.set()
        return unstacked(prepared)

    def waiting(*arguments: Any) -> int:
        assert second.wait(60)  # nothing is written before the second batch is in the network
        return write(*arguments)

    monkeypatch.setattr(extractor, "extract_unstacked", noting)
    monkeypatch.setattr(store, "write", waiting)
    extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, extractor, batch=3)
    assert begun == [3, 3]


def test_beside_a_gpu_more_threads_decode_and_write() -> None:
    assert default_threads("cpu", 64) == Threads(decoders=2, writers=2)
    assert [default_threads("cuda", cores).writers for cores in (1, 4, 12, 128)] == [2, 2, 6, 8]


def test_a_batch_is_bounded_by_the_memory_of_what_it_makes() -> None:
    assert [default_batch("cuda", size) for size in (30 << 20, 1 << 30, 9 << 30)] == [16, 4, 1]
    assert (default_batch("cpu", 1 << 30), default_batch("cpu", 1, spread=True)) == (2, 1)


@pytest.mark.parametrize("damage", [b"rubbish", "of another size"])
def test_a_bad_mask_costs_its_photograph_alone(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path, damage: bytes | str
) -> None:
    shutil.copytree(dataset_folder, tmp_path / "eyes")
    mask = sorted((tmp_path / "eyes" / "masks").iterdir())[2]
    whole = mask.read_bytes()
    if isinstance(damage, bytes):
        mask.write_bytes(damage)
    else:
        Image.new("1", (7, 5)).save(mask)
    store, dataset = FeatureStore("memory://"), load_dataset(f"folder:{tmp_path / 'eyes'}")
    report = extract_dataset(dataset, store, Extractor(backbone, spec), views=["identity", "flip-h"], batch=2)
    assert (report.extracted, len(report.failed)) == (10, 1)
    assert mask.name in report.failed[0][1]
    assert len(store.collections.read("eyes").samples) == 5
    assert store.objects.keys("claims") == []
    mask.write_bytes(whole)
    again = extract_dataset(dataset, store, Extractor(backbone, spec), views=["identity", "flip-h"])
    assert (again.extracted, again.present, again.failed) == (2, 10, [])
    assert all(sample.masks for sample in store.collections.read("eyes").samples)


def test_a_photograph_is_decoded_once_for_all_its_views(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = opened.decode_image

    def counting(data: bytes) -> NDArray[np.uint8]:
        decoded.append(image_id(data))
        return decode(data)

    monkeypatch.setattr(opened, "decode_image", counting)
    views = ["identity", "flip-h", "photometric-0", "negative"]
    store, one = FeatureStore("memory://"), Extractor(backbone, spec)
    extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, one, views=views)
    assert sorted(decoded) == sorted(set(decoded))
    assert len(decoded) == 6
    path = next((dataset_folder / "images").iterdir())
    for view in views:
        alone = one.features([one.prepare(path.read_bytes(), view=view)])[0]
        stored = store.entry(spec, Key(image_id(path.read_bytes()), view)).features()
        for name, maps in alone.maps.items():
            np.testing.assert_array_equal(stored.maps[name].values, maps.values)


def test_an_entry_whose_claim_was_lost_is_left_to_whoever_took_it(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_ours, asked = Claims.is_ours, []

    def slept_too_long_once(claims: Claims, name: str) -> bool:
        asked.append(name)
        return len(asked) > 1 and is_ours(claims, name)

    monkeypatch.setattr(Claims, "is_ours", slept_too_long_once)
    store = FeatureStore("memory://")
    report = extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, Extractor(backbone, spec))
    assert (report.extracted, report.interrupted) == (6, False)
    assert len(list(store.keys(spec))) == 6  # nobody else made it, and so it was made here
    assert len(asked) == 7


@pytest.mark.parametrize("name", ["fundus", "red-free", "squeeze", "squeeze-red-free"])
def test_photographs_are_stored_as_the_backbone_is_shown_them(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, name: PreprocessingName
) -> None:
    store, extractor = (
        FeatureStore("memory://"),
        Extractor(backbone, changed(spec, preprocessing=PREPROCESSINGS[name]())),
    )
    pixels, views = (
        spec_of_pixels(extractor.spec.resolution, extractor.spec.preprocessing),
        ("identity", "flip-h", "negative", "photometric-1"),
    )
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    report = extract_dataset(dataset, store, PixelExtractor(pixels), views=views, batch=2)
    assert (report.extracted, report.forwards) == (24, 0)
    assert extract_dataset(dataset, store, PixelExtractor(pixels), views=views).present == 24
    data = (dataset_folder / "images" / "eye0.png").read_bytes()
    for view in views:
        shown, entry = extractor.prepare(data, view=view).input, store.entry(pixels, Key(image_id(data), view))
        np.testing.assert_array_equal(entry.read("pixels"), shown.x0.half().float())
        np.testing.assert_array_equal(entry.fov, shown.fov)
        assert entry.geometry == shown.geometry


def test_a_run_that_an_error_ends_records_what_it_has_written(
    spec: FeatureSpec, backbone: Backbone, dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, written = FeatureStore("memory://"), list[Key]()
    write = store.write

    def full(one: FeatureSpec, key: Key, features: Features) -> int:
        if len(written) == 2:
            raise StoreFull("no room left")
        written.append(key)
        return write(one, key, features)

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(StoreFull):
        extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, Extractor(backbone, spec), batch=2)
    recorded = {sample.image_id for sample in store.collections.read("eyes").samples}
    assert recorded
    assert recorded <= {key.image_id for key in written}
