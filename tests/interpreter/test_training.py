"""Training from a store: it learns, repeats, resumes, and refuses what it cannot use."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from extractor.backbone import Backbone
from extractor.datasets import load_dataset
from extractor.extraction import Extractor
from extractor.runs import extract_dataset
from interpreter.calibration import fit_temperature
from interpreter.checkpoint import Validation, load_interpreter
from interpreter.config import InterpreterConfig
from interpreter.data import all_images, labelled_images, labelled_in, notes_on_missing, without_duplicates
from interpreter.domain import load_domain
from interpreter.errors import CheckpointError, ConfigurationError, DataError, TrainingDiverged
from interpreter.evaluation import evaluate
from interpreter.feed import ProcessShard
from interpreter.losses import overlapping_loss, segmentation_loss
from interpreter.prediction import predict
from interpreter.presets import TrainingPlan
from interpreter.segmenting import segment_into
from interpreter.settings import TrainingSettings
from interpreter.splits import draw_subset, split_off, split_small_set
from interpreter.stored import require_features, store_spec
from interpreter.task import Task
from interpreter.train_cli import train
from interpreter.training import Training
from store import Collection, FeatureSpec, FeatureStore, Key, MissingEntry, Sample, SpecMismatch
from store.interrupts import Stop
from store.memory import HeapTrimmer
from store.records import RunRecord
from store.views import parse_views
from tests.conftest import changed

TASK = Task(name="vessels", targets=("mask",))
SETTINGS = TrainingSettings(epochs=4, batch=2, learning_rate=5e-3, evaluate_every=2, validation_share=0.2)


def training(store: FeatureStore, spec: FeatureSpec, folder: Path, settings: TrainingSettings = SETTINGS) -> Training:
    images = labelled_images(store, "eyes", None, TASK)
    return Training(store, spec, TASK, images, InterpreterConfig(), settings, folder, "x")


def weights(run: Training) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


def test_it_learns_and_the_best_interpreter_is_kept(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    losses: list[float] = []
    settings = SETTINGS.model_copy(update={"epochs": 20, "evaluate_every": 5, "decay": "cosine"})
    run = training(filled_store, spec, tmp_path / "run", settings)
    best = run.run(lambda _, __, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    network, card = load_interpreter(tmp_path / "run")
    assert card.spec == spec
    assert card.task == TASK
    assert not set(card.training_ids) & set(card.validation_ids)
    assert len(card.training_ids) == 5
    scores = evaluate(network, filled_store, spec, TASK, run.validation_images)
    assert scores.mean_dice == pytest.approx(best, abs=0.02)  # the file holds float16
    assert scores.mean_dice > 0.5
    domain = load_domain(tmp_path / "run", spec)  # six images are enough to tell how far another one is
    assert domain is not None
    assert domain.threshold > 0
    assert domain.residual_range is not None
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_holes_in_its_memory_are_looked_for_after_each_step(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    run = training(filled_store, spec, tmp_path / "run", SETTINGS.model_copy(update={"epochs": 2}))
    looked: list[int] = []

    class Counted(HeapTrimmer):
        def trim_if_fragmented(self) -> bool:
            looked.append(run.next_batch)
            return super().trim_if_fragmented()

    assert run._trimmer is not None
    run._trimmer = Counted()
    run.run()
    assert looked == [1, 2, 3, 1, 2, 3]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = training(filled_store, spec, tmp_path / name, SETTINGS.model_copy(update={"epochs": 2, "seed": seed}))
        run.run()
        runs.append(weights(run))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_views_are_drawn_with_their_labels(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path
) -> None:
    store = FeatureStore("memory://")
    views = ("flip-h", "flip-v")
    dataset = load_dataset(f"folder:{dataset_folder}", "eyes")
    extract_dataset(dataset, store, Extractor(backbone, spec))
    settings = SETTINGS.model_copy(update={"views": views, "flips": False, "epochs": 1})
    with pytest.raises(DataError, match=r"eye\d \(flip-h\).*--views flip-h,flip-v"):
        training(store, spec, tmp_path / "run", settings)
    extract_dataset(dataset, store, Extractor(backbone, spec), views=views)
    run = training(store, spec, tmp_path / "run", settings)
    run.prepare()
    seen: set[str] = set()
    for epoch in range(4):
        run.epoch = epoch
        for batch in run.feed.batches(run.epoch):
            seen |= {key.view for key in batch.keys}
            for key, truth in zip(batch.keys, run.feed.truths(batch), strict=True):
                np.testing.assert_array_equal(truth[1], store.entry(spec, key).fov)
    assert seen == set(views)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, at a place of the test's choosing."""


@pytest.mark.parametrize("decay", ["none", "cosine"])
def test_a_run_stopped_in_mid_epoch_goes_on_as_if_it_had_not(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path, decay: str
) -> None:
    settings = SETTINGS.model_copy(update={"decay": decay})
    whole = training(filled_store, spec, tmp_path / "whole", settings)
    whole.run()

    def stop(epoch: int, position: int, _loss: float) -> None:
        if (epoch, position) == (1, 1):
            raise Stopped

    with pytest.raises(Stopped):
        training(filled_store, spec, tmp_path / "parts", settings).run(stop)
    rest = training(filled_store, spec, tmp_path / "parts", settings)
    assert (rest.epoch, rest.next_batch) == (1, 2)
    rest.run()
    assert torch.equal(weights(whole), weights(rest))
    assert rest.selection.best == whole.selection.best


def test_a_run_stopped_inside_a_step_adds_nothing_twice(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are half added up where Ctrl-C comes: what was saved before stands."""
    settings = SETTINGS.model_copy(update={"accumulate": 2})
    whole = training(filled_store, spec, tmp_path / "whole", settings)
    whole.run()
    parts = training(filled_store, spec, tmp_path / "parts", settings)
    backward, calls = parts.accelerator.backward, iter(range(100))

    def interrupted(loss: torch.Tensor) -> None:
        backward(loss)
        if next(calls) == parts.steps_per_epoch + 1:
            raise Stopped

    monkeypatch.setattr(parts.accelerator, "backward", interrupted)
    with pytest.raises(Stopped):
        parts.run()
    rest = training(filled_store, spec, tmp_path / "parts", settings)
    assert (rest.epoch, rest.next_batch) == (1, 0)
    rest.run()
    assert torch.equal(weights(whole), weights(rest))


def test_a_loss_that_is_no_number_ends_the_training(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    broken = training(filled_store, spec, tmp_path / "run")
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="the loss became nan in batch 1 of epoch 1"):
        broken.run()
    assert not (tmp_path / "run" / "interpreter.safetensors").exists()


def test_a_validation_that_gives_no_number_ends_the_training(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "evaluate_every": 1})
    broken = training(filled_store, spec, tmp_path / "run", settings)

    def overflowing(_epoch: int, _batch: int, _loss: float) -> None:
        if broken.next_batch == broken.steps_per_epoch:  # after the last step, whose loss was still finite
            with torch.no_grad():
                next(broken.network.parameters()).fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match="after epoch 1, eyes/"):
        broken.run(overflowing)
    assert not (tmp_path / "run" / "interpreter.safetensors").exists()


def test_a_run_file_that_is_cut_off_is_named(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    training(filled_store, spec, tmp_path / "run")
    run_file = tmp_path / "run" / "run.json"
    run_file.write_text(run_file.read_text()[:40])
    with pytest.raises(CheckpointError, match=r"run.json: damaged"):
        training(filled_store, spec, tmp_path / "run")


@pytest.mark.parametrize("length", [0, 7, 1000])
def test_a_state_that_is_cut_off_is_named(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path, length: int
) -> None:
    run = training(filled_store, spec, tmp_path / "run")
    run.prepare()
    run._save_state()
    (state,) = (tmp_path / "run").glob("*.pt")
    state.write_bytes(state.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=rf"{state.name}: damaged \(.*restore it, or choose another folder"):
        training(filled_store, spec, tmp_path / "run")


def test_ctrl_c_waits_for_the_end_of_a_step(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    stop = Stop()

    def ask(epoch: int, position: int, _loss: float) -> None:
        if (epoch, position) == (0, 1):
            stop.request()

    with pytest.raises(KeyboardInterrupt):
        training(filled_store, spec, tmp_path / "run").run(ask, stop)
    rest = training(filled_store, spec, tmp_path / "run")
    assert (rest.epoch, rest.next_batch) == (0, 2)


def test_patience_ends_a_run(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 50, "evaluate_every": 1, "patience": 1, "learning_rate": 1e-12})
    run = training(filled_store, spec, tmp_path / "run", settings)
    run.run()
    assert run.epoch < 5
    assert training(filled_store, spec, tmp_path / "run", settings).is_finished


def test_a_finished_training_is_not_trained_again(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    first = training(filled_store, spec, tmp_path / "run")
    assert not first.is_finished
    dice = first.run()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = training(filled_store, spec, tmp_path / "run")
    assert again.is_finished
    assert again.run(lambda *_: pytest.fail("a step was made")) == dice
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path.name for path in left if left[path] != written.get(path)} == {"run.json"}
    (tmp_path / "run" / "domain.safetensors").unlink()
    training(filled_store, spec, tmp_path / "run").run()
    assert (tmp_path / "run" / "domain.safetensors").is_file()  # what a training that was killed last had not written


def test_a_training_goes_on_that_was_begun_before_a_setting_existed(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    training(filled_store, spec, tmp_path / "run")
    begun = json.loads((tmp_path / "run" / "run.json").read_text())
    del begun["training"]["foreground"], begun["config"]["standardise"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(begun))
    training(filled_store, spec, tmp_path / "run")
    begun["training"]["a_later_one"] = 1
    (tmp_path / "run" / "run.json").write_text(json.dumps(begun))
    with pytest.raises(ConfigurationError, match="a run with other training"):
        training(filled_store, spec, tmp_path / "run")


def test_a_folder_belongs_to_one_run(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    training(filled_store, spec, tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"a run with other training \(training\.batch: \d, now 3\)"):
        training(filled_store, spec, tmp_path / "run", SETTINGS.model_copy(update={"batch": 3}))
    collection = filled_store.collections.read("eyes")
    corrected = filled_store.collections.write_mask(np.zeros((80, 96), np.bool_))
    samples = tuple(sample.model_copy(update={"masks": {"mask": corrected}}) for sample in collection.samples)
    filled_store.collections.write(Collection(name="eyes", samples=samples))
    with pytest.raises(ConfigurationError, match="a run with other masks"):
        training(filled_store, spec, tmp_path / "run")
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    del noted["masks"], noted["processes"], noted["config"]["standardise"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(noted))
    training(filled_store, spec, tmp_path / "run")  # of a version that did not note them


def test_images_of_a_batch_weigh_alike_however_processes_share_them() -> None:
    losses = np.array([1.0, 10.0, 100.0])
    for processes in (1, 2, 3, 4):
        shares = [ProcessShard(process, processes) for process in range(processes)]
        weighted = [one.weight(len(losses)) * losses[one.rows(len(losses)) or [0]].mean() for one in shares]
        assert np.mean(weighted) == pytest.approx(losses.mean())


def test_missing_features_are_named_with_the_command_that_makes_them(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    filled_store.delete(spec, next(iter(filled_store.keys(spec))))
    with pytest.raises(DataError, match=r"lacks features of eyes/eye\d .*`extractor run"):
        training(filled_store, spec, tmp_path / "run")


def test_missing_labels_are_told_with_those_there_are(filled_store: FeatureStore) -> None:
    with pytest.raises(DataError, match="is labelled with cup; targets there: mask"):
        labelled_images(filled_store, "eyes", None, Task(name="x", targets=("cup",)))
    with pytest.raises(DataError, match="no image of split test"):
        labelled_images(filled_store, "eyes", "test", TASK)


def test_photographs_that_lack_a_target_are_told(filled_store: FeatureStore) -> None:
    eyes = filled_store.collections.read("eyes")
    first, second, *others = eyes.samples
    changed = [first.model_copy(update={"masks": {}}), second.model_copy(update={"masks": {"cup": "x"}}), *others]
    filled_store.collections.write(eyes.model_copy(update={"samples": tuple(changed)}))
    assert notes_on_missing(filled_store, ["eyes"], TASK) == [
        f"2 of 6 photographs (eyes/{first.name}, eyes/{second.name}) of eyes have no mask and are left out"
    ]
    assert len(labelled_in(filled_store, ["eyes"], TASK)) == 4
    either = Task(name="both", targets=("mask", "cup"), overlapping=True)
    told = notes_on_missing(filled_store, ["eyes"], either)
    assert told == [
        f"1 of 5 photographs (eyes/{second.name}) of eyes have no mask and count as having none",
        f"4 of 5 photographs ({', '.join(f'eyes/{one.name}' for one in others[:3])}, ...) of eyes have no mask of cup "
        "and count as having none",
        f"1 of 6 photographs (eyes/{first.name}) of eyes have no mask and are left out",
    ]
    assert len(labelled_in(filled_store, ["eyes"], either)) == 5


def test_one_photograph_under_two_names_is_one_image(filled_store: FeatureStore) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    assert without_duplicates([*images, *images], TASK) == images
    assert labelled_in(filled_store, ["eyes", "eyes"], TASK) == images
    other = dataclasses.replace(images[0], sample=images[0].sample.model_copy(update={"masks": {"mask": "x"}}))
    with pytest.raises(DataError, match="one photograph with different masks"):
        without_duplicates([*images, other], TASK)
    cups = images[0].sample.model_copy(update={"masks": {**images[0].sample.masks, "cup": "x"}})
    assert without_duplicates([*images, dataclasses.replace(images[0], sample=cups)], TASK) == images


def test_one_image_is_too_few(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)[:1]
    with pytest.raises(DataError, match=r"1 image\(s\) of 1 group\(s\) are too few"):
        Training(filled_store, spec, TASK, images, InterpreterConfig(), SETTINGS, tmp_path / "run", "x")


def test_classes_must_agree(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    with pytest.raises(ConfigurationError, match="the task has 2 classes, the network 3"):
        Training(filled_store, spec, TASK, images, InterpreterConfig(classes=3), SETTINGS, tmp_path / "run", "x")


def test_groups_never_part() -> None:
    store = FeatureStore("memory://")
    digest = store.collections.write_mask(np.ones((2, 2), dtype=np.bool_))
    samples = tuple(
        Sample(image_id=f"{i:064x}", name=str(i), group=str(i // 2), masks={"mask": digest}) for i in range(20)
    )
    store.collections.write(Collection(name="eyes", samples=samples))
    train, validation = split_off(labelled_images(store, "eyes", None, TASK), 0.3, seed=4)
    assert len(validation) == 6
    assert not {i.sample.group for i in train} & {i.sample.group for i in validation}
    assert split_off(train + validation, 0.3, seed=5)[1] != validation
    kept, _ = split_off(train + validation, 1.0, seed=4)
    assert len({image.sample.group for image in kept}) == 1  # one group is left to train on, whatever the share


def test_another_spec_is_refused(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    run = training(filled_store, spec, tmp_path / "run")
    with pytest.raises(SpecMismatch, match="clip"):
        evaluate(run.network, filled_store, changed(spec, clip=True), TASK, run.validation_images)


def test_the_only_spec_is_taken_and_of_several_one_must_be_named(filled_store: FeatureStore, spec: FeatureSpec) -> None:
    assert store_spec(filled_store, None) == spec
    filled_store.register(changed(spec, clip=True))
    assert store_spec(filled_store, spec.digest[:8]) == spec
    images = labelled_images(filled_store, "eyes", None, TASK)
    assert store_spec(filled_store, None, images) == spec  # the other one has none of these images
    with pytest.raises(MissingEntry, match="choose one with --spec"):
        store_spec(filled_store, None)
    with pytest.raises(MissingEntry, match="no features here"):
        store_spec(FeatureStore("memory://"), None)


def test_the_loss_ignores_what_lies_outside_the_field_of_view() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8, generator=generator), torch.randint(3, (2, 8, 8), generator=generator)
    inside = torch.rand(2, 8, 8, generator=generator) < 0.5
    loss = segmentation_loss(logits, labels, inside)
    changed_outside = torch.where(inside[:, None], logits, logits + 5)
    torch.testing.assert_close(segmentation_loss(changed_outside, labels, inside), loss)
    perfect = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2) * 40.0
    assert float(segmentation_loss(perfect, labels, inside)) < 1e-3 < float(loss)


def test_where_a_class_is_not_known_nothing_is_learnt_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, generator=generator, requires_grad=True)
    bits = torch.randint(4, (2, 8, 8), generator=generator, dtype=torch.uint8)
    inside = torch.rand(2, 8, 8, generator=generator) < torch.tensor([0.3, 0.7])[:, None, None]
    known = torch.tensor([[True, True], [True, False]])
    loss = overlapping_loss(logits, bits, inside, known)
    loss.backward()
    assert logits.grad is not None
    learnt = (logits.grad != 0).flatten(2).sum(dim=2)
    assert learnt.tolist() == [[int(inside[0].sum())] * 2, [int(inside[1].sum()), 0]]
    first, second = logits.detach()[:, 0][inside], logits.detach()[0, 1][inside[0]]
    truths = (bits & 1)[inside].float(), (bits >> 1)[0][inside[0]].float()
    dice = [
        1 - (2 * (torch.sigmoid(z) * y).sum() + 1e-5) / (torch.sigmoid(z).sum() + y.sum() + 1e-5)
        for z, y in zip((first, second), truths, strict=True)
    ]
    entropy = functional.binary_cross_entropy_with_logits(torch.cat([first, second]), torch.cat(truths))
    torch.testing.assert_close(loss.detach(), entropy + (dice[0] + dice[1]) / 2)
    everywhere = overlapping_loss(logits[:1], bits[:1], inside[:1], known[:1])
    one_by_one = [overlapping_loss(logits[:1, c : c + 1], bits[:1] >> c, inside[:1], known[:1, :1]) for c in (0, 1)]
    torch.testing.assert_close(everywhere, (one_by_one[0] + one_by_one[1]) / 2)


def test_later_targets_cover_earlier_ones() -> None:
    disc, cup = np.array([[1, 1, 0]], dtype=bool), np.array([[0, 1, 0]], dtype=bool)
    task = Task(name="disc_cup", targets=("disc", "cup"))
    assert task.labels({"disc": disc, "cup": cup}).tolist() == [[1, 2, 0]]
    assert task.classes == ("background", "disc", "cup")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("interpreter.json", "{}", "spec: Field required"),
        ("interpreter.json", "{", r"interpreter\.json: Invalid JSON"),
        ("interpreter.safetensors", "rubbish", "cannot be loaded"),
    ],
)
def test_damaged_interpreters_are_refused(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path, file: str, text: str, message: str
) -> None:
    training(filled_store, spec, tmp_path / "run", SETTINGS.model_copy(update={"epochs": 1})).run()
    (tmp_path / "run" / file).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_interpreter(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no shipped interpreter of that name"):
        load_interpreter("nothing")


def test_a_run_stopped_between_two_accumulated_batches_goes_on_exactly(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"batch": 1, "accumulate": 2, "epochs": 2})
    config = InterpreterConfig(drop_path=0.3)
    images = labelled_images(filled_store, "eyes", None, TASK)

    def started(name: str) -> Training:
        return Training(filled_store, spec, TASK, images, config, settings, tmp_path / name, "x")

    def stop(epoch: int, position: int, _loss: float) -> None:
        if (epoch, position) == (1, 2):  # the third batch: its gradient waits for the fourth's
            raise Stopped

    whole = started("whole")
    whole.run()
    with pytest.raises(Stopped):
        started("parts").run(stop)
    rest = started("parts")
    rest.run()
    assert torch.equal(weights(whole), weights(rest))


def test_accumulated_batches_are_one_larger_batch(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 1, "batch": 1, "learning_rate": 1e-12})

    def gradients(accumulate: int) -> list[torch.Tensor]:
        """Of each step."""
        changed = settings.model_copy(update={"accumulate": accumulate})
        run, seen = training(filled_store, spec, tmp_path / str(accumulate), changed), []
        run.optimizer.register_step_pre_hook(
            lambda *_: seen.append(torch.cat([p.grad.flatten() for p in run.network.parameters()]))
        )
        run.run()
        return seen

    alone = gradients(1)
    assert len(alone) == 5
    for accumulate, groups in ((5, [alone]), (3, [alone[:3], alone[3:]])):
        for added, group in zip(gradients(accumulate), groups, strict=True):
            torch.testing.assert_close(added, torch.stack(group).mean(0), rtol=1e-3, atol=1e-6)


def test_half_precision_trains_and_the_scan_stays_in_float32(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    losses: list[float] = []
    settings = SETTINGS.model_copy(update={"precision": "bfloat16", "epochs": 12, "evaluate_every": 12})
    run = training(filled_store, spec, tmp_path / "half", settings)
    run.run(lambda _, __, loss: losses.append(loss))
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert all(p.dtype == torch.float32 for p in run.network.parameters())


def test_the_learning_rate_falls_as_half_a_cosine(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    settings, rates = SETTINGS.model_copy(update={"decay": "cosine"}), list[float]()
    run = training(filled_store, spec, tmp_path / "run", settings)
    run.run(lambda *_: rates.append(run.optimizer.param_groups[0]["lr"]))
    done = np.arange(len(rates)) / len(rates)
    np.testing.assert_allclose(rates, SETTINGS.learning_rate * (1 + np.cos(np.pi * done)) / 2)


def test_few_labels_are_drawn_by_seed_and_nested(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    assert draw_subset(images, 2, 0) == draw_subset(images, 5, 0)[:2]
    assert draw_subset(images, 2, 0) != draw_subset(images, 2, 1)
    eyes = [
        dataclasses.replace(image, sample=image.sample.model_copy(update={"group": "one patient"}))
        for image in images[:2]
    ]
    for seed in range(5):  # both eyes of a patient on one side
        train, validation = split_small_set([*eyes, *images[2:]], 0.3, seed)
        assert len(train) + len(validation) == 6
        assert len({image in train for image in eyes}) == 1
    assert split_small_set(eyes, 0.5, 0)[1] == []
    assert [len(split_small_set(images[2:], share, 0)[1]) for share in (0.1, 0.3, 0.45)] == [0, 1, 2]  # of four
    with pytest.raises(DataError, match="expected at least 7 labelled images to draw from, found 6"):
        draw_subset(images, 7, 0)
    run = training(filled_store, spec, tmp_path / "two", SETTINGS.model_copy(update={"labels": 2, "epochs": 1}))
    assert np.isnan(run.run())
    network, card = load_interpreter(tmp_path / "two")
    assert len(card.training_ids) == 2
    assert card.validation_ids == ()
    assert (card.temperature, card.metrics) == (1.0, Validation(epoch=1))
    assert network.parameter_count == run.network.parameter_count


def test_the_temperature_makes_probabilities_likelier(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    run = training(filled_store, spec, tmp_path / "run", SETTINGS.model_copy(update={"epochs": 10}))
    run.run()
    network, card = load_interpreter(tmp_path / "run")
    assert network.temperature == card.temperature != 1.0

    def calibration_error(temperature: float) -> float:
        network.temperature = temperature
        return evaluate(network, filled_store, spec, TASK, run.validation_images).reliability[0].error

    assert calibration_error(card.temperature) <= min(calibration_error(t) for t in (0.1, 10.0))
    # Logits that are too sure by a factor are cooled by it.
    network.temperature = 1.0
    final = network.head.head  # type: ignore[union-attr]
    with torch.no_grad():
        final.weight *= 3
        final.bias *= 3
    hotter = fit_temperature(network, filled_store, TASK, run.validation_images)
    assert hotter == pytest.approx(3 * card.temperature, rel=0.02)


def test_overlapping_classes_are_learnt(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path
) -> None:
    store = FeatureStore("memory://")
    extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, Extractor(backbone, spec))
    collection = store.collections.read("eyes")
    samples = []
    for i, sample in enumerate(collection.samples):
        mask = store.collections.mask(sample.masks["mask"])
        wide = store.collections.write_mask(mask | np.roll(mask, 6, axis=0))
        masks = {"thin": sample.masks["mask"], "wide": wide} if i else {"wide": wide}
        samples.append(sample.model_copy(update={"masks": masks}))
    store.collections.write(Collection(name="eyes", samples=tuple(samples)))
    task = Task(name="both", targets=("thin", "wide"), overlapping=True)
    images = labelled_images(store, "eyes", None, task)
    assert len(images) == 6
    config = InterpreterConfig(classes=3, overlapping=True)
    settings = SETTINGS.model_copy(update={"epochs": 25, "evaluate_every": 25})
    run = Training(store, spec, task, images, config, settings, tmp_path / "run", "x")
    assert run.run() > 0.4
    network, card = load_interpreter(tmp_path / "run")
    features = store.entry(spec, images[1].key).features()
    prediction = predict(network, features.maps, features.fov)
    thin, wide = prediction.masks
    assert (thin & wide).sum() > 0.5 * thin.sum() > 0
    scores = evaluate(network, store, spec, task, run.validation_images)
    assert set(scores.summary()["by_class"]) == {"thin", "wide"}  # type: ignore[arg-type]
    assert evaluate(network, store, spec, task, images[:1]).classes == ("thin", "wide")  # none in this photograph
    found = list(segment_into(tmp_path, network, store, spec, card.task, all_images(store, "eyes")))
    assert [one.image for one in found] == [f"eyes/eye{i}" for i in range(6)]
    both = [np.asarray(Image.open(tmp_path / "eyes" / "eye1" / f"{name}.png")) == 1 for name in ("thin", "wide")]
    assert (both[0] & both[1]).any()  # which the label map alone would not tell
    with pytest.raises(ConfigurationError, match="classes overlap in the task or in the network"):
        Training(store, spec, task, images, InterpreterConfig(classes=3), settings, tmp_path / "other", "x")


def test_of_a_data_set_without_a_class_nothing_is_learnt_and_scored_of_it(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    """Three photographs have discs and cups, three others discs alone: where their cups are nobody has said."""
    samples = filled_store.collections.read("eyes").samples
    of_both = [one.model_copy(update={"masks": dict.fromkeys(("OD", "cup"), one.masks["mask"])}) for one in samples[:3]]
    of_one = [one.model_copy(update={"masks": {"OD": one.masks["mask"]}}) for one in samples[3:]]
    for name, some in (("both", of_both), ("discs", of_one)):
        filled_store.collections.write(Collection(name=name, samples=tuple(some)))
    task = Task(name="disc_cup", targets=("OD", "cup"), overlapping=True)
    assert notes_on_missing(filled_store, ["both", "discs"], task) == [
        "discs has no mask of cup, only of OD: it is neither learnt nor scored there (if none of the photographs "
        "shows it, give one of them an empty mask)"
    ]
    images = labelled_in(filled_store, ["both", "discs"], task)
    config = InterpreterConfig(classes=3, overlapping=True, vss_max_size=0)
    run = Training(filled_store, spec, task, images, config, SETTINGS, tmp_path / "run", "x")
    run.prepare()
    filled_store.collections.write(
        Collection(name="discs", samples=(*of_one, samples[0].model_copy(update={"name": "x", "masks": {"cup": "y"}})))
    )
    now = [image for image in labelled_in(filled_store, ["discs"], task) if image.sample.name != "x"]
    with pytest.raises(ConfigurationError, match=r"a run with other known \(known\.discs: "):
        Training(filled_store, spec, task, [*images[:3], *now], config, SETTINGS, tmp_path / "run", "x")
    batch = next(iter(run.feed.batches(0)))
    ids = {one.image_id for one in of_both}
    known = run.feed.load(batch, 0).known
    assert known.tolist() == [[True, key.image_id in ids] for key in batch.keys]
    network = run.network
    torch.nn.init.normal_(network.head.head.weight, std=1.0)  # finds something of everything  # type: ignore[union-attr,arg-type]
    alone = evaluate(network, filled_store, spec, task, images[3:])
    assert (alone.classes, len(alone.images[0].voted)) == (("OD",), 1)
    assert alone.mean_dice == alone.class_figures(0)["dice"]
    together = evaluate(network, filled_store, spec, task, images)
    both = evaluate(network, filled_store, spec, task, images[:3])
    assert together.classes == ("OD", "cup")
    assert [one.voted[1] is None for one in together.images] == [False] * 3 + [True] * 3
    assert together.class_figures(1) == both.class_figures(1)
    assert 0 < together.class_figures(1)["expected_dice"] < 1
    assert together.images[3].expected_dice == together.images[3].expected[0]
    low, high = together.interval()
    dice = [together.class_figures(i)["dice"] for i in (0, 1)]
    assert together.mean_dice == together.figures()["dice"] == pytest.approx(np.mean(dice))
    assert low <= together.figures()["dice"] <= high
    by_class = together.summary()["by_class"]
    assert [by_class[name]["images"] for name in ("OD", "cup")] == [6, 3]  # type: ignore[index]
    assert together.class_interval(1) == both.class_interval(1)
    assert together.images[3].dice == together.images[3].voted[0].dice  # type: ignore[union-attr]


def test_the_missing_features_of_a_recorded_run_come_with_its_command(
    filled_store: FeatureStore, spec: FeatureSpec
) -> None:
    options: dict[str, str | bool] = {
        "dataset": "folder:/x/photos", "name": "eyes", "preset": "small", "limit": "2", "split": "test",
    }  # fmt: skip
    filled_store.records.write(RunRecord(spec=spec.digest, dataset="eyes", options=options, device="cpu"))
    images = labelled_images(filled_store, "eyes", None, TASK)
    with pytest.raises(
        DataError,
        match=r"`extractor run --dataset folder:/x/photos --name eyes --preset small --store .* --views negative`",
    ):
        require_features(filled_store, spec, images, ("negative",))
    of_training = [dataclasses.replace(i, sample=i.sample.model_copy(update={"split": "train"})) for i in images]
    with pytest.raises(DataError, match=r"--preset small --split train --store"):
        require_features(filled_store, spec, of_training, ("negative",))


@pytest.mark.slow
def test_two_processes_share_each_batch(filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path) -> None:
    """A training under torch's launcher: one interpreter, the same in both processes, saved once."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from interpreter.data import labelled_images\n"
        "from interpreter.config import InterpreterConfig\n"
        "from interpreter.stored import store_spec\n"
        "from interpreter.task import Task\n"
        "from interpreter.settings import TrainingSettings\n"
        "from interpreter.training import Training\n"
        "from store import FeatureStore\n"
        "torch.set_num_threads(1)\n"
        "store, out = FeatureStore(sys.argv[1], read_only=True), Path(sys.argv[2])\n"
        "task = Task(name='vessels', targets=('mask',))\n"
        "settings = TrainingSettings(epochs=2, batch=2, evaluate_every=1, validation_share=0.2)\n"
        "images = labelled_images(store, 'eyes', None, task)\n"
        "run = Training(store, store_spec(store, None), task, images, InterpreterConfig(), settings, out, 'x')\n"
        "best = run.run()\n"
        "weights = torch.cat([p.detach().flatten() for p in run.network.parameters()])\n"
        "rank = run.accelerator.process_index\n"
        "torch.save((run.accelerator.num_processes, best, weights), out / f'rank{rank}.pt')\n"
    )
    call = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, *call, filled_store.location, str(tmp_path / "run")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / "run" / f"rank{rank}.pt") for rank in (0, 1))
    assert first[0] == second[0] == 2
    assert first[1] == second[1]
    assert torch.equal(first[2], second[2])
    network, _ = load_interpreter(tmp_path / "run")
    assert network.parameter_count == len(first[2])


def test_tensorboard_has_loss_metrics_and_pictures(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    training(filled_store, spec, tmp_path / "run", SETTINGS.model_copy(update={"epochs": 1})).run()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "data_wait_share", "validation/dice", "validation/auc_pr"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"]


def test_who_never_sees_a_photograph_as_it_is_is_validated_as_trained(
    filled_store: FeatureStore, spec: FeatureSpec, tmp_path: Path
) -> None:
    images = labelled_images(filled_store, "eyes", None, TASK)
    for image in images:
        plain = filled_store.entry(spec, image.key).features()
        filled_store.write(spec, Key(image.key.image_id, "red-free"), plain)
        filled_store.delete(spec, image.key)
    settings = SETTINGS.model_copy(update={"views": ("flip-h", "red-free")})
    with pytest.raises(DataError, match="flip-h"):
        training(filled_store, spec, tmp_path / "a", settings)
    with pytest.raises(DataError, match=r"\(identity\)"):  # which is validated, whatever flips are drawn
        training(filled_store, spec, tmp_path / "a", SETTINGS.model_copy(update={"views": ("flip-h",)}))
    settings = SETTINGS.model_copy(update={"views": ("red-free",), "epochs": 1})
    run = training(filled_store, spec, tmp_path / "b", settings)
    assert {image.key.view for image in (*run.train_images, *run.validation_images)} == {"red-free"}
    assert run.run() >= 0
    assert load_domain(tmp_path / "b", spec) is not None


def test_the_defaults_of_the_command_are_those_of_the_settings() -> None:
    said = {name: one.default for name, one in inspect.signature(train).parameters.items()}
    said["views"] = tuple(parse_views(said["views"]))
    for settings in (TrainingSettings, InterpreterConfig):
        for name, field in settings.model_fields.items():
            if name in said:
                assert said[name] == field.default, name
    assert set(TrainingSettings.model_fields) - set(said) == {"validation_share"}
    assert set(TrainingPlan.model_fields) <= set(said)
