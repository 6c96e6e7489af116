"""Windows of training images: the same place everywhere, on whole pixels of every map, and learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from interpreter.config import HeadName, InterpreterConfig
from interpreter.cropping import crop_maps, crop_plane, draw_class, draw_corner, require_window
from interpreter.data import labelled_images
from interpreter.errors import ConfigurationError
from interpreter.network import Interpreter
from interpreter.settings import TrainingSettings
from interpreter.standardising import MomentsCache
from interpreter.task import Task
from interpreter.training import Training
from store import Encoded, Features, FeatureSpec, FeatureStore, Key
from store.batches import Batch
from store.encoded import stacked
from store.pixels import spec_of_pixels
from store.views import IDENTITY

TASK = Task(name="vessels", targets=("mask",))
SETTINGS = TrainingSettings(epochs=16, batch=2, learning_rate=5e-3, evaluate_every=8, validation_share=0.2)


def test_a_window_is_the_same_place_of_every_map_and_of_the_truth() -> None:
    fine = np.arange(2 * 32 * 32, dtype=np.float32).reshape(2, 1, 1, 32, 32)
    coarse = fine[..., ::8, ::8]
    scale = np.ones((2, 1, 1), dtype=np.float32)
    corners = [(8, 16), (0, 0)]
    cropped = crop_maps({"fine": Encoded(fine), "coarse": Encoded(coarse, scale, scale)}, corners, 16, 32)
    for i, corner in enumerate(corners):
        window = crop_plane(fine[i, 0, 0], corner, 16)
        assert window.shape == (16, 16)
        np.testing.assert_array_equal(cropped["fine"].values[i, 0, 0], window)
        np.testing.assert_array_equal(cropped["coarse"].values[i, 0, 0], window[::8, ::8])
    assert cropped["coarse"].scale is scale


@pytest.mark.parametrize("inside_at", [(0, 0), (31, 31), (13, 20), None])
def test_windows_hold_a_pixel_that_counts_wherever_one_is(inside_at: tuple[int, int] | None) -> None:
    inside = np.zeros((32, 32), dtype=np.bool_)
    if inside_at is not None:
        inside[inside_at] = True
    top, left = draw_corner(inside, 16, 4, np.random.default_rng(0))
    assert top % 4 == left % 4 == 0
    assert 0 <= top <= 16
    assert 0 <= left <= 16
    assert crop_plane(inside, (top, left), 16).any() == (inside_at is not None)


def test_windows_reach_every_place_of_a_square() -> None:
    inside, random = np.ones((32, 32), dtype=np.bool_), np.random.default_rng(0)
    corners = {draw_corner(inside, 16, 4, random) for _ in range(2000)}
    assert corners == {(top, left) for top in range(0, 17, 4) for left in range(0, 17, 4)}


def test_each_class_of_an_image_is_drawn_as_often_however_small_it_is() -> None:
    members = np.zeros((3, 32, 32), dtype=np.bool_)
    members[0, :, :16] = True
    members[1, 20, 20] = members[1, 20, 31] = True
    inside, random = np.ones((32, 32), dtype=np.bool_), np.random.default_rng(0)
    inside[:, 31] = False
    drawn = [draw_class(members, inside, random) for _ in range(200)]
    sizes = [int(one.sum()) for one in drawn]
    assert set(sizes) == {1, 16 * 32}  # the third is not there, and of the second one pixel does not count
    assert 70 < sizes.count(1) < 130
    assert draw_class(members[2:], inside, random) is inside


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_windows_are_centred_on_a_class_where_asked_to(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path, share: float
) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    settings = SETTINGS.model_copy(update={"crop": 8, "foreground": share})
    training = Training(filled_store, spec, TASK, images, InterpreterConfig(vss_max_size=0), settings, tmp_path, "x")
    labels = np.zeros((spec.resolution, spec.resolution), dtype=np.uint8)
    labels[3, 3] = 1
    inside, random = np.ones(labels.shape, dtype=np.bool_), np.random.default_rng(0)
    centres = [training.feed._centres(labels, inside, random) for _ in range(20)]
    assert all((one.sum() == 1) == bool(share) for one in centres)
    with pytest.raises(ConfigurationError, match="foreground is a share of the windows"):
        whole = settings.model_copy(update={"crop": None, "foreground": 0.5})
        Training(filled_store, spec, TASK, images, InterpreterConfig(), whole, tmp_path / "whole", "x")


@pytest.mark.parametrize("side", [12, 40])
def test_a_window_that_would_cut_a_pixel_is_refused(side: int) -> None:
    with pytest.raises(ConfigurationError, match=f"a crop of {side} pixels: expected a multiple of 8, 32 at most"):
        require_window(side, 8, 32)


def test_the_network_reads_a_window_as_it_reads_a_square(spec: FeatureSpec) -> None:
    for head in ("adaptive", "joint", "mlp", "unet", "pyramid"):
        read = spec_of_pixels(spec.resolution, spec.preprocessing) if head in ("unet", "pyramid") else spec
        network = Interpreter(read, InterpreterConfig(head=head)).eval()  # type: ignore[arg-type]
        assert read.resolution % network.head.stride == 0
        if network.head.all_timesteps:
            continue
        side = read.resolution // 2
        maps = {b.name: torch.zeros(2, b.channels, b.height // 2, b.width // 2) for b in read.blocks}
        assert network(maps, torch.tensor([1, 2])).shape == (2, 2, side, side)


@pytest.mark.parametrize(
    ("head", "standardise"), [("adaptive", False), ("adaptive", True), ("joint", True), ("mlp", True)]
)
def test_it_learns_from_windows_and_repeats(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path, head: HeadName, standardise: bool
) -> None:
    settings = SETTINGS.model_copy(update={"crop": spec.resolution // 2})
    config = InterpreterConfig(head=head, standardise=standardise)
    found: list[list[float]] = []
    for name in ("a", "b"):
        losses: list[float] = []
        images = labelled_images(filled_store, "eyes", None, TASK)
        run = Training(filled_store, spec, TASK, images, config, settings, tmp_path / name, "x")
        run.run(lambda _, __, loss, losses=losses: losses.append(loss))  # type: ignore[misc]
        found.append(losses)
    assert found[0] == found[1]
    assert np.mean(found[0][-5:]) < 0.9 * np.mean(found[0][:5])
    too_large = settings.model_copy(update={"crop": 2 * spec.resolution})
    with pytest.raises(ConfigurationError, match="expected a multiple of"):
        Training(filled_store, spec, TASK, images, config, too_large, tmp_path / "c", "x")


def test_a_flipped_view_is_standardised_as_the_photograph_is(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    config = InterpreterConfig(standardise=True)
    run = Training(filled_store, spec, TASK, images, config, SETTINGS, tmp_path, "x")
    key, side = run.train_images[0].key, spec.resolution
    plain = filled_store.entry(spec, key).features()
    maps, fov = plain.maps, np.arange(side)[None].repeat(side, 0) < side // 2
    moments = []
    for view, step in ((IDENTITY, 1), ("flip-h", -1)):
        flipped = {name: Encoded(np.ascontiguousarray(m.values[..., ::step])) for name, m in maps.items()}
        here = Key(key.image_id, view)
        filled_store.write(spec, here, Features(flipped, np.ascontiguousarray(fov[:, ::step]), plain.geometry))
        seen = {name: Encoded(m.values[None]) for name, m in flipped.items()}
        batch = Batch(0, (here,), np.array([spec.timesteps]), seen)
        moments.append(run.feed._moments_cache.of(batch))
    one, other = moments
    for name in maps:
        torch.testing.assert_close(one[name].mean, other[name].mean, rtol=1e-4, atol=1e-5)
        left = maps[name].values[..., : maps[name].values.shape[-1] // 2].astype("f4")
        np.testing.assert_allclose(one[name].mean[0, ..., 0, 0], left.mean((-2, -1)), rtol=1e-3, atol=1e-4)


def test_moments_are_found_once_for_each_view_and_timestep(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    network, key = Interpreter(spec, InterpreterConfig(standardise=True)), next(iter(filled_store.keys(spec)))
    entry, asked = filled_store.entry(spec, key), []

    def fov_of(one: Key) -> NDArray[np.bool_]:
        asked.append(one)
        return entry.fov

    known = MomentsCache(network.moments, fov_of)
    for t in (*spec.timesteps[:2], *spec.timesteps[:2]):
        maps = {block.name: entry.encoded(block.name, [t])[None] for block in spec.blocks}
        found = known.of(Batch(0, (key, key), np.array([[t], [t]]), {n: stacked([m[0]] * 2) for n, m in maps.items()}))
        expected = network.moments(maps, entry.fov[None])
        assert expected is not None
        for name, moments in expected.items():
            assert torch.equal(found[name].mean, moments.mean.repeat(2, *[1] * (moments.mean.ndim - 1)))
            assert torch.equal(found[name].deviation[:1], moments.deviation)
    assert asked == [key, key]


def test_steps_end_a_training_instead_of_epochs(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    seen: list[float] = []
    for labels, steps in ((2, 4), (None, 6)):
        settings = SETTINGS.model_copy(update={"steps": 4, "labels": labels})
        run = Training(filled_store, spec, TASK, images, InterpreterConfig(), settings, tmp_path / str(labels), "x")
        seen.clear()
        run.run(lambda _, __, loss: seen.append(loss))
        assert len(seen) == steps  # whole epochs: of one batch, and of three
        assert run.epoch == run.epochs == steps // run.steps_per_epoch
