"""Pre-training: the loss falls, a stopped run goes on as if it had not been, wrong input is told."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractor import pretraining
from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.backbone_folder import WEIGHTS_FILE, load_backbone
from extractor.diffusion import Diffusion
from extractor.errors import PretrainingError
from extractor.photographs import CropDataset, PreparedPhotographs, find_images, prepare_photographs
from extractor.photometric import photometric_change
from extractor.pretrain_cli import pretrain
from extractor.pretraining import Pretraining, _by_level, noisy_pair
from extractor.pretraining_settings import PretrainingSettings
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from store import Clahe, Preprocessing
from store.interrupts import Stop
from tests.conftest import draw_fundus

SETTINGS = PretrainingSettings(
    unet=tiny_unet(), resolution=32, crop=16, batch=4, steps=6, warmup=0, checkpoint_every=3, learning_rate=1e-3
)


@pytest.fixture
def photographs(dataset_folder: Path, tmp_path: Path) -> PreparedPhotographs:
    return prepare_photographs(
        find_images([dataset_folder / "images"]), tmp_path / "prepared", 32, Preprocessing(clahe=None)
    )


def weights(run: Pretraining) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.unet.parameters()])


def denoising_error(backbone: Backbone, photographs: PreparedPhotographs) -> float:
    """Mean squared error of x0_hat over a few noise levels of one photograph."""
    x0 = photographs.network_input(0)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for t in (300, 1000, 2000):
        x, _ = noisy_pair(backbone.schedule, "sample", x0, noise, t)
        x0_hat = backbone.estimate(x, t).x0
        assert x0_hat is not None
        errors.append(float((x0_hat - x0).square().mean()))
    return sum(errors)


def test_the_loss_falls_and_the_backbone_can_be_loaded(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 80, "checkpoint_every": 80, "learning_rate": 5e-3})
    run = Pretraining(settings, photographs, tmp_path / "run")
    before = denoising_error(run.averaged(), photographs)
    backbone = run.run()
    assert denoising_error(backbone, photographs) < 0.8 * before
    saved = load_backbone(tmp_path / "run" / "backbone")
    assert saved.schedule.name == "cosine-4000"
    assert saved.preprocessing == settings.preprocessing
    assert saved.diffusion.prediction == "v_prediction"
    assert backbone.fingerprint == saved.fingerprint  # what is extracted with either is found with the other
    pictures = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert pictures == ["reconstruction_0000080.png", "samples_0000080.png"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_backbone_that_a_killed_run_left_torn_is_whole_behind_the_next(
    photographs: PreparedPhotographs, tmp_path: Path
) -> None:
    made = Pretraining(SETTINGS, photographs, tmp_path / "run").run()
    file = tmp_path / "run" / "backbone" / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:1000])
    assert Pretraining(SETTINGS, photographs, tmp_path / "run").run().fingerprint == made.fingerprint
    assert load_backbone(tmp_path / "run" / "backbone").fingerprint == made.fingerprint


def test_pictures_that_the_run_has_drawn_are_not_learnt_from(dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_folder / "images", tmp_path / "images")
    before = find_images([tmp_path])
    shutil.copytree(dataset_folder / "images", tmp_path / "run" / "pictures")
    assert find_images([tmp_path], without=tmp_path / "run") == before
    assert len(find_images([tmp_path])) == 2 * len(before)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    whole = Pretraining(SETTINGS, photographs, tmp_path / "whole")
    whole.run()

    def stop(step: int, _loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pretraining(SETTINGS, photographs, tmp_path / "parts").run(stop)
    rest = Pretraining(SETTINGS, photographs, tmp_path / "parts")
    assert rest.step == 3  # the last checkpoint
    rest.run()
    assert torch.equal(weights(whole), weights(rest))
    shadow = [torch.equal(a, b) for a, b in zip(whole.ema.shadow_params, rest.ema.shadow_params, strict=True)]
    assert all(shadow)


def test_a_run_that_is_asked_to_stop_loses_no_step(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    whole, stop = Pretraining(SETTINGS, photographs, tmp_path / "whole"), Stop()
    whole.run()

    def terminated(step: int, _loss: float) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGTERM)  # as schedulers send it

    said: list[str] = []
    with stop.on_interrupt(lambda: said.append("stopping")), pytest.raises(KeyboardInterrupt):
        Pretraining(SETTINGS, photographs, tmp_path / "parts").run(terminated, stop)
    assert said == ["stopping"]
    rest = Pretraining(SETTINGS, photographs, tmp_path / "parts")
    assert rest.step == 5
    rest.run()
    assert torch.equal(weights(whole), weights(rest))


def test_a_signal_to_the_whole_group_loses_no_step(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    stop = Stop()

    def terminated(step: int, _loss: float) -> None:
        if step == 4:
            workers = multiprocessing.active_children()
            assert workers
            for worker in workers:
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    run = Pretraining(SETTINGS.model_copy(update={"steps": 50}), photographs, tmp_path / "run", workers=1)
    with stop.on_interrupt(lambda: None), pytest.raises(KeyboardInterrupt):
        run.run(terminated, stop)
    assert Pretraining(SETTINGS.model_copy(update={"steps": 50}), photographs, tmp_path / "run").step == 4


def test_a_checkpoint_killed_between_its_two_renames_is_found(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    run = Pretraining(SETTINGS, photographs, tmp_path / "run")
    run.run()
    (tmp_path / "run" / "state").rename(tmp_path / "run" / "state.old")
    (tmp_path / "run" / "state.new").mkdir()  # begun, never finished
    assert Pretraining(SETTINGS, photographs, tmp_path / "run").step == 6


def test_the_only_complete_state_stays_until_the_next_has_its_name(
    photographs: PreparedPhotographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pretraining(SETTINGS, photographs, tmp_path / "run").run()
    (tmp_path / "run" / "state").rename(tmp_path / "run" / "state.old")
    longer = SETTINGS.model_copy(update={"steps": 7})
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == "state.new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        Pretraining(longer, photographs, tmp_path / "run").run()
    monkeypatch.undo()
    assert Pretraining(longer, photographs, tmp_path / "run").step == 6


def test_the_defaults_of_the_command_are_those_of_the_settings() -> None:
    said = {name: one.default for name, one in inspect.signature(pretrain).parameters.items()}
    for name, field in PretrainingSettings.model_fields.items():
        if said.get(name) is not None:  # None leaves it to the settings
            assert said[name] == field.default, name
    assert set(PretrainingSettings.model_fields) - set(said) == {"unet", "ema_decay"}


def test_a_folder_belongs_to_one_run(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    Pretraining(SETTINGS, photographs, tmp_path / "run")
    Pretraining(SETTINGS.model_copy(update={"steps": 9}), photographs, tmp_path / "run")
    with pytest.raises(PretrainingError, match="a run with other batch, seed"):
        Pretraining(SETTINGS.model_copy(update={"seed": 1, "batch": 2}), photographs, tmp_path / "run")


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    Pretraining(SETTINGS, photographs, tmp_path / "run")
    path = tmp_path / "run" / "settings.json"
    former = json.loads(path.read_text())
    assert former.pop("colourless") == 0
    path.write_text(json.dumps(former))
    Pretraining(SETTINGS, photographs, tmp_path / "run")
    path.write_text(json.dumps(former))
    with pytest.raises(PretrainingError, match="a run with other colourless"):
        Pretraining(SETTINGS.model_copy(update={"colourless": 0.5}), photographs, tmp_path / "run")


def test_every_crop_has_a_noise_level_of_its_own(
    photographs: PreparedPhotographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[list[int]] = []

    def seen(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        levels.append(given[-1])
        return noisy_pair(*given)

    monkeypatch.setattr(pretraining, "noisy_pair", seen)
    uniform = SETTINGS.model_copy(update={"steps": 3, "level_power": 1.0})
    Pretraining(uniform, photographs, tmp_path / "run").run()
    assert [len(set(one)) for one in levels] == [4, 4, 4]
    losses = np.array([1.0, 3.0, 5.0, 7.0], np.float32)
    assert _by_level(losses, [0, 9, 10, 3999]) == {"t_below_10": 2.0, "t_below_100": 5.0, "t_below_10000": 7.0}


def test_a_run_without_colour_shows_none(
    photographs: PreparedPhotographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[torch.Tensor] = []
    step = Pretraining._train_step

    def seen(self: Pretraining, x0: torch.Tensor, part: int) -> Any:
        shown.append(x0)
        return step(self, x0, part)

    monkeypatch.setattr(Pretraining, "_train_step", seen)
    Pretraining(SETTINGS.model_copy(update={"steps": 2, "colourless": 1.0}), photographs, tmp_path / "run").run()
    assert len(shown) == 2
    assert all(torch.equal(x0, x0[:, 1:2].expand_as(x0)) for x0 in shown)


def test_a_run_goes_on_from_a_backbone(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    preprocessing = Preprocessing(clahe=None)
    other = {"prediction": "epsilon", "preprocessing": preprocessing}
    first = Pretraining(SETTINGS.model_copy(update=other), photographs, tmp_path / "first")
    first.run()
    start = load_backbone(tmp_path / "first" / "backbone")
    given = SETTINGS.model_dump(include={"resolution", "crop", "steps", "warmup"})
    settings = PretrainingSettings.going_on_from(start, **given, learning_rate=1e-9)
    assert (settings.prediction, settings.preprocessing) == ("epsilon", preprocessing)
    assert settings.seeds != first.settings.seeds
    further = Pretraining(settings, photographs, tmp_path / "further", start)
    for name, tensor in further.run().unet.state_dict().items():
        torch.testing.assert_close(tensor, start.unet.state_dict()[name], rtol=1e-3, atol=1e-6)
    with pytest.raises(PretrainingError, match=r"a run with other .*initial"):
        Pretraining(SETTINGS.model_copy(update={"warmup": 0}), photographs, tmp_path / "further")
    with pytest.raises(PretrainingError, match="not the one that the settings name"):
        Pretraining(settings, photographs, tmp_path / "other")


@pytest.mark.parametrize(
    ("out_channels", "rescale_timesteps", "found"),
    [(6, False, "a learned variance"), (3, True, "rescaled timesteps"), (6, True, "a learned variance, rescaled")],
)
def test_what_cannot_be_trained_further_is_told(out_channels: int, rescale_timesteps: bool, found: str) -> None:
    config = tiny_unet() | {"out_channels": out_channels}
    diffusion = Diffusion(noise_schedule("cosine-100"), rescale_timesteps=rescale_timesteps)
    backbone = Backbone(build_unet(config), diffusion, config)
    with pytest.raises(PretrainingError, match=f"this backbone has {found}"):
        PretrainingSettings.going_on_from(backbone)


def test_gradients_of_several_batches_are_one_step(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"accumulate": 2, "steps": 2, "batch": 2, "checkpoint_every": 2})
    run = Pretraining(settings, photographs, tmp_path / "run")
    reported: list[int] = []
    run.run(lambda step, _: reported.append(step))
    assert reported == [1, 2]


@pytest.mark.slow  # another process loads torch
def test_crops_made_by_other_processes_are_the_same(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    runs = [Pretraining(SETTINGS, photographs, tmp_path / f"{n}", workers=n) for n in (0, 2)]
    for run in runs:
        run.run()
    assert torch.equal(*map(weights, runs))


def test_sizes_that_do_not_fit_are_told_before_the_first_step(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    with pytest.raises(PretrainingError, match="crop 15 is not a multiple of the network's stride 2"):
        Pretraining(SETTINGS.model_copy(update={"crop": 15}), photographs, tmp_path / "run")


def test_a_finished_run_is_finished(photographs: PreparedPhotographs, tmp_path: Path) -> None:
    run = Pretraining(SETTINGS, photographs, tmp_path / "run")
    run.run()
    shorter = Pretraining(SETTINGS.model_copy(update={"steps": 4}), photographs, tmp_path / "run")
    shorter.run(lambda *_: pytest.fail("nothing was left to do"))
    assert torch.equal(weights(run), weights(shorter))


def test_photographs_prepared_otherwise_are_prepared_again(dataset_folder: Path, tmp_path: Path) -> None:
    paths = find_images([dataset_folder / "images"])
    plain, equalised = (prepare_photographs(paths, tmp_path, 32, Preprocessing(clahe=c)) for c in (None, Clahe()))
    assert not np.array_equal(plain[0], equalised[0])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_targets_belong_to_their_noisy_images(prediction: str) -> None:
    schedule, t = noise_schedule("cosine-100"), [40, 90]
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x, target = noisy_pair(schedule, prediction, x0, noise, t)  # type: ignore[arg-type]
    a = torch.from_numpy(schedule.alphas_cumprod[t]).float()[:, None, None, None]
    recovered = {
        "epsilon": lambda: (x - a**0.5 * x0) / (1 - a) ** 0.5,
        "sample": lambda: x0,
        "v_prediction": lambda: (a**0.5 * x - x0) / (1 - a) ** 0.5,
    }[prediction]()
    torch.testing.assert_close(target, recovered, rtol=1e-4, atol=1e-4)


def test_crops_depend_on_seed_and_index_alone(photographs: PreparedPhotographs) -> None:
    crops, other = CropDataset(photographs, 16, 1.0, 0), CropDataset(photographs, 16, 1.0, 1)
    assert torch.equal(crops[5], CropDataset(photographs, 16, 1.0, 0)[5])
    assert not torch.equal(crops[5], crops[6])
    assert not torch.equal(crops[5], other[5])
    assert crops[5].shape == (3, 16, 16)
    assert crops[5].abs().max() <= 1
    with pytest.raises(PretrainingError, match="crops of 64 do not fit"):
        CropDataset(photographs, 64, 1.0, 0)


def test_some_crops_are_shown_without_colour(photographs: PreparedPhotographs) -> None:
    colours, some, none = (CropDataset(photographs, 16, 1.0, 0, colourless=share) for share in (0.0, 0.5, 1.0))
    for i in range(20):
        assert torch.equal(none[i], colours[i][1:2].expand(3, -1, -1))
        assert torch.equal(some[i], none[i]) or torch.equal(some[i], colours[i])
    grey = sum(torch.equal(some[i], none[i]) for i in range(200))
    assert 70 < grey < 130


def test_unusable_photographs_are_listed(dataset_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"rubbish")
    good = find_images([dataset_folder / "images"])
    prepared = prepare_photographs([*good, tmp_path / "broken.png"], tmp_path / "p", 32, Preprocessing())
    assert len(prepared) == 6
    assert "broken.png" in prepared.rejected[0]
    with pytest.raises(PretrainingError, match="none of 1 images can be used"):
        prepare_photographs([tmp_path / "broken.png"], tmp_path / "q", 32, Preprocessing())
    with pytest.raises(PretrainingError, match="no image files here"):
        find_images([tmp_path / "q"])


def test_photometric_changes_keep_black_and_follow_their_seed() -> None:
    image, _ = draw_fundus()
    changed = photometric_change(image, np.random.default_rng(3))
    np.testing.assert_array_equal(changed, photometric_change(image, np.random.default_rng(3)))
    assert not changed[image.max(axis=2) < 4].any()
    assert np.abs(changed.astype(int) - image).max() > 10
    unchanged = photometric_change(image, np.random.default_rng(3), strength=0)
    lit = image.max(axis=2) >= 4
    assert np.abs(unchanged.astype(int) - image)[lit].max() <= 1


def test_a_run_goes_on_with_the_photographs_it_began_with(
    photographs: PreparedPhotographs, dataset_folder: Path, tmp_path: Path
) -> None:
    Pretraining(SETTINGS, photographs, tmp_path / "run")
    Pretraining(SETTINGS, photographs, tmp_path / "run")
    fewer = prepare_photographs(
        find_images([dataset_folder / "images"])[1:], tmp_path / "prepared", 32, Preprocessing(clahe=None)
    )
    with pytest.raises(PretrainingError, match="begun with 6 photographs, but not with these 5"):
        Pretraining(SETTINGS, fewer, tmp_path / "run")


def test_noise_and_crops_are_drawn_apart(
    photographs: PreparedPhotographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = list[list[int]]()
    generator = np.random.default_rng

    def noted(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, list):
            seeds.append(seed)
        return generator(seed)

    monkeypatch.setattr(np.random, "default_rng", noted)
    Pretraining(SETTINGS.model_copy(update={"batch": 1, "steps": 3}), photographs, tmp_path / "run").run()
    first_draws = {tuple(generator(seed).random(4)) for seed in seeds}
    assert len(first_draws) == len({tuple(seed) for seed in seeds}) == 6
