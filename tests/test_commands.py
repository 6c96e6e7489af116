"""The commands as a user meets them: help, results, one-line errors, exit codes."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.backbone_folder import save_backbone
from interpreter.checkpoint import load_interpreter
from interpreter.config import InterpreterConfig
from interpreter.presets import TRAINING_PRESETS
from interpreter.settings import TrainingRecord
from store import Collection, FeatureSpec, FeatureStore
from store.extraction_command import ExtractionCommand
from tests.conftest import Run

AT_64 = ("--resolution", "64", "--backbone")
"""Before a backbone: photographs of 64 pixels."""


@pytest.fixture(scope="module")
def wide_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with as many blocks as the small preset reads, at two levels of two channels."""
    import torch

    from extractor.architectures import plain_unet
    from extractor.diffusion import Diffusion
    from extractor.schedule import noise_schedule
    from extractor.unet import build_unet

    torch.manual_seed(0)
    config = plain_unet((4, 4, 4, 4, 4), norm_groups=2)
    folder = tmp_path_factory.mktemp("wide")
    save_backbone(Backbone(build_unet(config), Diffusion(noise_schedule("cosine-4000")), config), folder)
    return folder


@pytest.mark.parametrize("command", ["extractor", "interpreter", "store", "service"])
def test_help_in_a_process_of_its_own(command: str) -> None:
    call = [sys.executable, "-m", f"{command}.cli", "--help"]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "Exit codes" in result.stdout
    assert "Traceback" not in result.stderr


def test_the_whole_way_by_commands(run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path) -> None:
    store, model = tmp_path / "features.zarr", tmp_path / "model"
    extract = ["run", "--dataset", f"folder:{dataset_folder}", "--name", "eyes", *AT_64, wide_backbone]
    planned = run("extractor", *extract, "--store", store, "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["entries"] == 6
    done = run("extractor", *extract, "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["extracted"], report["failed"]) == (6, [])
    described = 6 * 20_000  # metadata and indices, which weigh at 64 pixels
    assert report["bytes_stored"] <= json.loads(planned.stdout)["bytes_total"] + described
    again = json.loads(run("extractor", *extract, "--store", store, "--json").stdout)
    assert (again["extracted"], again["present"], again["forwards"]) == (0, 6, 0)

    train = ["train", "--store", store, "--dataset", "eyes", "--out", model, "--backbone", wide_backbone]
    refused = run("interpreter", *train, "--head", "mlp", "--standardise", "--vss", "v05")
    assert (refused.returncode, "leave out --vss" in refused.stderr) == (2, True)  # any head reads standardised maps
    refused = run("interpreter", *train, "--head", "unet", "--max-width", "8", "--drop-path", "0.1")
    assert (refused.returncode, "unet: leave out --max-width, --drop-path" in refused.stderr) == (2, True)
    trained = run(
        "interpreter", *train, "--standardise", "--epochs", "1", "--vss-max-size", "0", "--max-width", "8", "--json"
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["epochs"] == 1
    assert json.loads((model / "interpreter.json").read_text())["config"]["standardise"]
    scored = run("interpreter", *["evaluate", "--dataset", "eyes", "--json"], "--store", store, "--model", model)
    assert scored.returncode == 0, scored.stderr
    summary = json.loads(scored.stdout)
    assert summary["images"] == 6
    assert set(summary["dice_by_voter"]) == {"1", "10", "100", "500"}
    assert "were used to train" in scored.stderr
    asked = ["evaluate", "--dataset", "eyes", "--store", store, "--model", model, "--json", "--view"]
    assert "--views red-free" in run("interpreter", *asked, "red-free").stderr
    assert run("extractor", *extract, "--store", store, "--views", "red-free").returncode == 0
    without_colour = json.loads(run("interpreter", *asked, "red-free").stdout)
    assert without_colour["by_image"].keys() == summary["by_image"].keys()
    assert without_colour["dice"] != summary["dice"]
    assert (without_colour["view"], summary["view"]) == ("red-free", "identity")
    assert "a single view other than a flip" in run("interpreter", *asked, "flip-h").stderr
    assert "flip-h" in run("interpreter", *asked[:-1], "--mirrored").stderr
    assert run("extractor", *extract, "--store", store, "--views", "flips").returncode == 0
    mirrored = json.loads(run("interpreter", *asked[:-1], "--mirrored", "--masks", tmp_path / "mirrored").stdout)
    assert (mirrored["mirrored"], summary["mirrored"]) == (True, False)
    assert mirrored["dice"] != summary["dice"]
    assert len(list((tmp_path / "mirrored").rglob("*.png"))) == len(mirrored["by_image"])
    assert "as it is" in run("interpreter", *asked, "red-free", "--mirrored").stderr
    shutil.copytree(dataset_folder / "images", tmp_path / "unlabelled")
    plain = ["run", "--dataset", f"folder:{tmp_path / 'unlabelled'}", *AT_64, wide_backbone, "--store", store]
    assert run("extractor", *plain).stderr.count("masks of 6 photographs: none") == 1
    segment = ["segment", "--store", store, "--dataset", "unlabelled", "--model", model, "--out", tmp_path / "masks"]
    segmented = run("interpreter", *segment, "--json")
    assert segmented.returncode == 0, segmented.stderr
    rows = json.loads(segmented.stdout)
    with (tmp_path / "masks" / "segmented.csv").open() as file:
        assert [row["image"] for row in csv.DictReader(file)] == [row["image"] for row in rows]
    for row in rows:
        labels = np.asarray(Image.open(tmp_path / "masks" / row["file"]))
        assert labels.shape == (80, 96)
        assert 0 <= row["share_mask"] <= 1
        assert row["expected_dice_mask"] is None or 0 < row["expected_dice_mask"] <= 1
    assert not any(row["mirrored"] for row in rows)
    assert run("extractor", *plain, "--views", "flips").returncode == 0
    in_a_mirror = json.loads(run("interpreter", *segment, "--mirrored", "--json").stdout)
    assert all(row["mirrored"] for row in in_a_mirror)
    assert [row["disagreement"] for row in in_a_mirror] != [row["disagreement"] for row in rows]
    table = tmp_path / "masks" / "segmented.csv"
    former = table.read_text().replace("unlabelled/", "another/")  # as of another data set
    table.write_text(former)
    assert "6 label maps and segmented.csv" in run("interpreter", *segment).stdout
    assert table.read_text().startswith(former)
    table.write_text(former.replace("share_mask", "share_disc"))
    assert "is another table, such as" in run("interpreter", *segment).stderr
    card = json.loads((model / "interpreter.json").read_text())
    assert card["metrics"]["finished"]
    card["metrics"]["finished"] = False
    (model / "interpreter.json").write_text(json.dumps(card))
    assert "has not finished" in run("interpreter", *asked[:-1]).stderr


def test_photographs_on_disk_are_extracted_as_an_interpreter_reads_them(
    run: Run, monkeypatch: pytest.MonkeyPatch, dataset_folder: Path, wide_backbone: Path, tmp_path: Path
) -> None:
    store, model = tmp_path / "features.zarr", tmp_path / "model"
    shutil.copytree(dataset_folder, partly_labelled := tmp_path / "partly")
    Image.new("RGB", (96, 96), (200, 90, 40)).save(partly_labelled / "images" / "without_mask.png")
    eyes = f"eyes=folder:{partly_labelled}"
    extract = ["run", "--dataset", f"folder:{dataset_folder}", "--name", "eyes", *AT_64, wide_backbone]
    assert run("extractor", *extract, "--store", store).returncode == 0
    train = ["train", "--store", store, "--dataset", "eyes", "--task", "vessels", "--out", model, "--epochs", "1"]
    assert run("interpreter", *train, "--vss-max-size", "0", "--max-width", "8").returncode == 0
    shutil.copytree(dataset_folder / "images", photographs := tmp_path / "photographs")
    (photographs / "broken.png").write_bytes(b"no image")
    read = ["--store", tmp_path / "new.zarr", "--model", model]
    segment = ["segment", *read, "--data", f"folder:{photographs}", "--out", tmp_path / "masks", "--json"]
    segmented = run("interpreter", *segment)  # the command in a process of its own
    assert segmented.returncode == 3, segmented.stderr
    assert [row["image"].partition("/")[0] for row in json.loads(segmented.stdout)] == ["photographs"] * 6
    assert "left out" in segmented.stderr
    assert "broken.png" in segmented.stderr

    called: list[ExtractionCommand] = []

    def in_this_process(command: ExtractionCommand) -> subprocess.CompletedProcess[str]:
        called.append(command)
        done = CliRunner().invoke(importlib.import_module("extractor.cli").app, command.arguments[3:])
        return subprocess.CompletedProcess(command.arguments, done.exit_code, done.stdout)

    monkeypatch.setattr(ExtractionCommand, "run", in_this_process)
    scored = run("interpreter", "evaluate", *read, "--data", eyes, "--mirrored", "--json")
    assert scored.returncode == 0, scored.stderr
    assert (json.loads(scored.stdout)["images"], json.loads(scored.stdout)["mirrored"]) == (6, True)
    assert "eyes/without_mask" not in run("store", "ls", tmp_path / "new.zarr", "--json").stdout
    labelled = ["run", "--dataset", f"folder:{partly_labelled}", *AT_64, wide_backbone, "--labelled", "--dry-run"]
    for pattern, told in (("*", "1 of 7 photographs have no mask of a target"), ("eye*", "")):
        dry = run("extractor", *labelled, "--store", tmp_path / "dry.zarr", "--images", pattern)
        assert (told in dry.stderr, "are left out" in dry.stderr) == (True, bool(told)), dry.stderr
    (partly_labelled / "images" / "eye0.png").unlink()
    (partly_labelled / "masks" / "eye0.png").unlink()
    (partly_labelled / "masks" / "eye1.png").unlink()
    rescored = run("interpreter", "evaluate", *read, "--data", eyes, "--json")
    assert json.loads(rescored.stdout)["by_image"].keys() == {f"eyes/eye{i}" for i in range(2, 6)}
    none = run("interpreter", "evaluate", *read, "--data", eyes, "--split", "nowhere")
    assert (none.returncode, "could not be extracted" in none.stderr) == (1, True)
    called.clear()
    sides = [word for side in (32, 64) for word in ("--resolution", side)]
    adapted = run("interpreter", "adapt", *read, "--data", eyes, *map(str, sides), "--json")
    assert adapted.returncode == 0, adapted.stderr
    assert [one["resolution"] for one in json.loads(adapted.stdout)["read"]] == [32, 64]
    assert [command.options["resolution"] for command in called] == ["32", "64"]
    assert {command.options["expect-spec"] for command in called} == {
        load_interpreter(model)[1].spec.with_resolution(side).digest for side in (32, 64)
    }
    smaller = run("interpreter", "segment", *read, "--data", eyes, "--resolution", "32", "--out", tmp_path / "at_32")
    assert (smaller.returncode, "photographs are is not judged" in smaller.stderr) == (0, True), smaller.stderr
    with (tmp_path / "at_32" / "segmented.csv").open(newline="") as table:
        assert {(row["distance"], row["unusual"]) for row in csv.DictReader(table)} == {("", "")}
    assert run("extractor", *extract, "--store", tmp_path / "other.zarr", "--expect-spec", "").returncode == 2
    other = run("extractor", *extract, "--store", tmp_path / "other.zarr", "--expect-spec", "0" * 64)
    assert (other.returncode, "these options lead to features of spec" in other.stderr) == (2, True)
    digest, at = FeatureStore(tmp_path / "new.zarr").specs()[0].digest, ("--store", tmp_path / "new.zarr")
    other = run("extractor", *extract, *at, "--timesteps", "1,10", "--expect-spec", digest[:12])
    assert (other.returncode, "timesteps: [1, 10, 100, 500] expected" in other.stderr) == (2, True), other.stderr
    assert not list((tmp_path / "other.zarr").rglob("block_*"))
    mixed = ["segment", *read, "--out", tmp_path / "other", "--data", f"folder:{photographs}"]
    refused = run("interpreter", *mixed, "--data", f"photographs=folder:{dataset_folder}")
    assert (refused.returncode, "two data sets would be called photographs" in refused.stderr) == (2, True)
    assert not (tmp_path / "other").exists()
    for words, told in (
        ([], "expected --dataset, a data set in the store"),
        (["--dataset", "eyes", "--split", "test"], "--split belongs to --data"),
        (["--data", "a=folder:x", "--data", "a=folder:y"], "two data sets would be called a"),
    ):
        refused = run("interpreter", "segment", *read, "--out", tmp_path / "other", *words)
        assert (refused.returncode, told in refused.stderr) == (2, True)


def test_a_preset_of_a_training_gives_way_to_options(run: Run, filled_store: FeatureStore, tmp_path: Path) -> None:
    fast = TRAINING_PRESETS["fast"]
    train = ["train", "--store", filled_store.location, "--dataset", "eyes", "--backbone", "x", "--preset", "fast"]
    train += ["--crop", "32", "--out"]

    def trained(*options: str) -> tuple[InterpreterConfig, TrainingRecord]:
        folder = tmp_path / "-".join(options)
        done = run("interpreter", *train, folder, *options)
        assert done.returncode == 0, done.stderr
        again = run("interpreter", *train, folder, *options)
        assert (again.stdout, "has finished already" in " ".join(again.stderr.split())) == (done.stdout, True)
        card = load_interpreter(folder)[1]
        return card.config, card.training

    config, settings = trained("--steps", "2", "--no-standardise")
    assert config == fast.network_config().model_copy(update={"standardise": False})
    assert settings == TrainingRecord(**dict(fast.training_settings())).model_copy(update={"steps": 2, "crop": 32})
    _, settings = trained("--epochs", "1")  # not the preset's steps, which would go before it
    assert (settings.steps, settings.epochs) == (None, 1)
    wrong = run("interpreter", *train, tmp_path / "x", "--preset", "slow")
    assert (wrong.returncode, "'slow' is not one of 'paper', 'fast'" in wrong.stderr) == (2, True)
    told = " ".join(run("interpreter", "train", "--help").stdout.split())
    assert all(words in told for words in ("--steps 600", "--crop 128", "--width-multiplier 2", "--standardise"))


def test_the_masks_of_a_folder_need_no_name_to_be_compared(
    run: Run, filled_store: FeatureStore, tmp_path: Path
) -> None:
    eyes = filled_store.collections.read("eyes")
    named = [one.model_copy(update={"masks": {"vessel": one.masks["mask"]}}) for one in eyes.samples]
    filled_store.collections.write(Collection(name="named", samples=tuple(named)))
    read = ["--store", filled_store.location, "--dataset"]
    train = ["--target", "vessel", "--backbone", "x", "--epochs", "1", "--max-width", "8", "--vss-max-size", "0"]
    assert run("interpreter", "train", *read, "named", *train, "--out", tmp_path / "run").returncode == 0
    scored = [
        run("interpreter", "evaluate", *read, name, "--model", tmp_path / "run", "--json") for name in ("named", "eyes")
    ]
    assert "note: mask of eyes is taken for vessel" in scored[1].stderr
    assert "taken for" not in scored[0].stderr
    assert len({json.loads(one.stdout)["by_class"]["vessel"]["dice"] for one in scored}) == 1
    filled_store.collections.write(Collection(name="named", samples=tuple(named[:3])))
    both = run("interpreter", "evaluate", *read, "named", "--dataset", "eyes", "--model", tmp_path / "run", "--json")
    assert (both.returncode, json.loads(both.stdout)["images"]) == (0, 6)
    discs = [one.model_copy(update={"masks": {"disc": one.masks["mask"]}}) for one in eyes.samples]
    filled_store.collections.write(Collection(name="discs", samples=tuple(discs)))
    other = run("interpreter", "evaluate", *read, "discs", "--model", tmp_path / "run")
    assert (other.returncode, "targets there: disc" in other.stderr) == (1, True)


def test_a_data_set_does_not_take_anothers_place(
    run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path
) -> None:
    for site in ("a", "b"):
        shutil.copytree(dataset_folder / "images", tmp_path / site / "photos")
    store = tmp_path / "s"
    extract = ["run", *AT_64, wide_backbone, "--store", store, "--limit", "1", "--dataset"]
    assert run("extractor", *extract, f"folder:{tmp_path}/a/photos").returncode == 0
    assert run("extractor", *extract, f"folder:{tmp_path}/a/../a/photos").returncode == 0
    refused = run("extractor", *extract, f"folder:{tmp_path}/b/photos")
    assert refused.returncode == 1
    assert "under the name 'photos'" in refused.stderr
    assert run("extractor", *extract, f"folder:{tmp_path}/b/photos", "--name", "site_b").returncode == 0
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert run("extractor", *extract, f"folder:{tmp_path}/moved/photos").returncode == 0


def test_an_image_that_cannot_be_used_makes_the_run_partial(
    run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes((dataset_folder / "images" / "eye0.png").read_bytes())
    (folder / "broken.png").write_bytes(b"rubbish")
    arguments = ["run", "--dataset", f"folder:{folder}", *AT_64, wide_backbone, "--store", tmp_path / "s"]
    result = run("extractor", *arguments)
    assert result.returncode == 3
    assert "broken.png: not an image" in result.stderr


def test_store_commands(run: Run, filled_store: FeatureStore, spec: FeatureSpec) -> None:
    place = filled_store.location
    listed = json.loads(run("store", "ls", place, "--json").stdout)
    assert len(listed) == 6
    assert all(row["complete"] and row["name"].startswith("eyes/eye") for row in listed)
    info = json.loads(run("store", "info", place, "--json").stdout)
    assert info["specs"][0]["entries"] == 6
    assert info["specs"][0]["ratio_to_float32"] > 1.5
    assert info["datasets"] == [{"name": "eyes", "images": 6, "splits": {"-": 6}, "targets": ["mask"]}]
    assert run("store", "verify", place).returncode == 0
    victim = Path(place) / spec.digest / listed[0]["image_id"] / "identity" / "zarr.json"
    victim.unlink()
    broken = run("store", "verify", place, "--json")
    assert broken.returncode == 4
    assert listed[0]["image_id"] in json.loads(broken.stdout)["problems"][0]
    assert "incomplete" in run("store", "ls", place).stdout


@pytest.mark.parametrize("name", ["extractor", "interpreter", "store"])
def test_every_option_has_help_and_none_is_swallowed_as_markup(name: str) -> None:
    """Rich takes what stands in brackets for a style, and leaves it out."""
    app = importlib.import_module(f"{name}.cli").app
    commands = typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
    assert [f"{one.name} {p.name}" for one in commands for p in one.params if not p.help] == []
    texts = [text for one in commands for text in (one.help, one.epilog, *(p.help for p in one.params))]
    assert len(texts) > 10
    assert [text for text in texts if text and re.search(r"\[[a-z]", text)] == []


PROTOCOL = ["evaluate", "--store", "x", "--data", "stare:x", "--out", "y"]


@pytest.mark.parametrize(
    ("command", "arguments", "code", "message"),
    [
        ("extractor", ["run", "--dataset", "folder:/no/such", "--store", "x"], 1, "no such file or folder"),
        ("extractor", ["run", "--store", "x"], 2, "Missing option"),
        ("extractor", ["run", "--dataset", "a:b", "--store", "x"], 1, "expected ADAPTER:PATH"),
        ("extractor", ["run", "--dataset", "a:b", "--store", "x", "--preset", "huge"], 2, "no preset 'huge'"),
        ("extractor", ["run", "--dataset", "folder:.", "--store", "x", "--blocks", "4,x"], 2, "whole numbers"),
        ("extractor", ["run", "--dataset", "a:b", "--store", "x", "--preprocessing", "grey"], 2, ": 'grey' is not"),
        ("extractor", ["run", "--dataset", "folder:.", "--store", "x", "--codebook", "c"], 2, "compact"),
        (
            "extractor",
            ["run", "--dataset", "folder:.", "--store", "x", "--photographs", "--class-label", "1", "--compile"],
            2,
            "--photographs runs no network: leave out --class-label, --compile",
        ),
        ("extractor", ["reconstruct", "/no/such.png", "--out", "x"], 1, "cannot be read"),
        ("extractor", ["import-checkpoint", "/no/such.pt", "x"], 1, "no such file"),
        ("extractor", ["pretrain", "--images", ".", "--out", "x", "--config", "/no/such"], 1, "No such file"),
        (
            "extractor",
            ["pretrain", "--images", ".", "--out", "x", "--initial", "small", "--prediction", "epsilon"],
            2,
            "--initial decides the network",
        ),
        ("extractor", ["reconstruct", "x.png", "--out", "y", "--grid", "a"], 1, "cannot be read"),
        ("interpreter", ["train", "--store", "/no/such", "--dataset", "a", "--out", "x"], 1, "no such store"),
        ("interpreter", ["evaluate", "--store", "/no/such", "--dataset", "a"], 1, "no such store"),
        ("interpreter", [*PROTOCOL, "--protocol", "nonsense"], 2, "no protocol 'nonsense'"),
        ("interpreter", [*PROTOCOL, "--protocol", "lodo-vessels", "--rows", "nonsense"], 2, "no method nonsense"),
        ("interpreter", [*PROTOCOL, "--protocol", "lodo-vessels", "--settings", "{"], 2, "expected a JSON object"),
        ("store", ["ls", "/no/such"], 1, "no such store"),
        ("store", ["frobnicate"], 2, "No such command"),
        ("service", ["--model", "nothing"], 1, "no shipped interpreter"),
        ("service", ["--port", "70000"], 2, "less than or equal to 65535"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    run: Run, command: str, arguments: list[str], code: int, message: str
) -> None:
    result = run(command, *arguments)
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_recipes_that_cannot_be_meant_are_wrong_usage(run: Run, dataset_folder: Path, tmp_path: Path) -> None:
    call = ["run", "--dataset", f"folder:{dataset_folder}", "--store", tmp_path / "store"]
    wrong = (
        ("--timesteps", "5,1"), ("--views", "nonsense"), ("--resolution", "100"), ("--blocks", "99"), ("--seed", "5")
    )  # fmt: skip
    for option, value in wrong:
        assert run("extractor", *call, option, value).returncode == 2
    assert not (tmp_path / "store").exists()


def test_a_protocol_that_cannot_be_meant_leaves_no_folder(run: Run, dataset_folder: Path, tmp_path: Path) -> None:
    data, out = f"a=folder:{dataset_folder}", tmp_path / "out"
    call = ["evaluate", "--protocol", "lodo-vessels", "--store", tmp_path / "store", "--out", out, "--data", data]
    for more, message in (
        ([], "two data sets at least"),
        (["--data", data], "data sets with distinct names"),
        (["--data", data.replace("a=", "b="), "--target", "c"], "no data set c"),
        (["--rows", "nonsense"], "no method"),
        (["--settings", '{"timesteps": "5,1"}'], "strictly increasing timesteps"),
        (["--settings", '{"views": "nonsense"}'], "no view"),
    ):
        result = run("interpreter", *call, *more)
        assert (result.returncode, message in result.stderr) == (2, True), result.stderr
        assert not out.exists()


def test_presets_are_printed(run: Run) -> None:
    presets = json.loads(run("extractor", "presets", "--json").stdout)
    assert presets["paper"]["timesteps"] == [1, 10, 100, 500]
    assert presets["paper"]["blocks"] == list(range(11, 21))
    assert presets["fast"]["timesteps"] == presets["fast"]["grid"] == [100, 500]
    assert presets["fast"]["blocks"] == presets["small"]["blocks"]
    assert "small" in run("extractor", "presets").stdout


def test_pretrain_and_import_by_command(run: Run, dataset_folder: Path, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "unet.json").write_text(json.dumps(tiny_unet()))
    arguments = ["pretrain", "--images", dataset_folder / "images", "--out", tmp_path / "run", "--steps", "2"]
    small = ["--crop", "16", "--resolution", "32", "--config", tmp_path / "unet.json", "--checkpoint-every", "2"]
    trained = run("extractor", *arguments, *small)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "backbone" / "config.json").is_file()
    further = run(
        "extractor", "pretrain", "--images", dataset_folder / "images", "--out", tmp_path / "further", "--steps", "1",
        "--crop", "16", "--resolution", "32", "--initial", tmp_path / "run" / "backbone", "--json",
    )  # fmt: skip
    assert further.returncode == 0, further.stderr
    assert json.loads((tmp_path / "further" / "settings.json").read_text())["initial"]
    assert json.loads(further.stdout) == {
        "backbone": str(tmp_path / "further" / "backbone"),
        "steps": 1,
        "left_out": [],
    }
    importing = ["import-checkpoint", shared / "fixtures" / "imagenet_tiny.safetensors", tmp_path / "imported"]
    imported = run("extractor", *importing, "--preprocessing", "unequalised")
    assert imported.returncode == 0, imported.stderr
    assert json.loads((tmp_path / "imported" / "preprocessing.json").read_text())["clahe"] is None
    assert "blocks block_0 .. block_8, linear-1000, predicts epsilon" in " ".join(imported.stdout.split())
    assert "64 channels a head are assumed" in " ".join(imported.stderr.split())
    again = run("extractor", *importing)
    assert (again.returncode, "imported holds files already" in again.stderr) == (2, True)
    replaced = run("extractor", *importing, "--overwrite", "--head-channels", "64", "--json")
    assert (replaced.returncode, replaced.stderr) == (0, "")
    assert json.loads(replaced.stdout)["blocks"][-1] == "block_8"
    assert not (tmp_path / "imported" / "preprocessing.json").exists()


def test_a_photograph_walks_up_and_back(run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path) -> None:
    picture = tmp_path / "both.png"
    image = dataset_folder / "images" / "eye0.png"
    arguments = ["reconstruct", image, "--out", picture, "--backbone", wide_backbone, "--resolution", "32"]
    result = run("extractor", *arguments, "--grid", "1,10", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["psnr_db"] > 10
    assert picture.is_file()


def test_a_backbone_is_assessed_on_photographs(run: Run, dataset_folder: Path, wide_backbone: Path) -> None:
    arguments = ["assess", "--backbone", wide_backbone, "--dataset", f"folder:{dataset_folder}", "--photographs", "2"]
    small = [
        *arguments,
        "--resolution",
        "32",
        "--grid",
        "1,10",
        "--timesteps",
        "1,100",
        "--preprocessing",
        "unequalised",
    ]
    told = run("extractor", *small, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert report["noisy"].keys() == report["datasets"][0]["denoised"].keys() == {"1", "100"}
    assert report["datasets"][0]["photographs"] == 2
    table = run("extractor", *small).stdout
    assert "up to 10 and back" in table
    assert run("extractor", *small, "--split", "other").returncode == 1


def test_damage_is_repaired_by_the_runs_that_made_it(
    run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path
) -> None:
    store = tmp_path / "features.zarr"
    photographs = shutil.copytree(dataset_folder, tmp_path / "photographs")
    (photographs / "images" / "broken.png").write_bytes(b"rubbish")  # left out by the run, and by its repetition
    extract = ["run", "--dataset", f"folder:{photographs}", "--name", "eyes", *AT_64, wide_backbone]
    done = run("extractor", *extract, "--store", store, "--encoding", "int8", "--views", "identity,flip-h", "--json")
    assert done.returncode == 3, done.stderr
    spec = json.loads(done.stdout)["spec"]
    entries = sorted(path for path in (store / spec).glob("*/*") if path.is_dir())
    assert len(entries) == 12
    shard = next(path for path in (entries[0] / "block_8" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1])
    (entries[1] / "zarr.json").unlink()
    next(path for path in (store / "labels").rglob("*") if path.is_file() and path.name != "zarr.json").unlink()
    found = run("store", "verify", store)
    assert found.returncode == 4
    assert "3 problems" in found.stdout
    repaired = run("store", "verify", store, "--repair", "--json")
    assert repaired.returncode == 0, repaired.stderr
    report = json.loads(repaired.stdout)
    assert (len(report["problems"]), report["problems_left"], report["made_by_no_recorded_run"]) == (3, [], [])
    assert report["failed_runs"] == []
    assert run("store", "verify", store).returncode == 0
    assert len(json.loads(run("store", "ls", store, "--json").stdout)) == 12


def test_damage_that_no_run_made_is_told_and_left(run: Run, filled_store: FeatureStore, spec: FeatureSpec) -> None:
    key = next(iter(filled_store.keys(spec)))
    entry = Path(filled_store.location) / spec.digest / key.image_id / key.view
    (entry / "zarr.json").unlink()
    repaired = run("store", "verify", filled_store.location, "--repair")
    assert repaired.returncode == 4
    assert "no recorded run made it" in repaired.stdout
    assert (entry / "fov").is_dir()


def test_a_repair_repeats_the_run_and_no_more(
    run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path
) -> None:
    photographs, store = tmp_path / "photographs", tmp_path / "features.zarr"
    shutil.copytree(dataset_folder, photographs)
    extract = ["run", "--dataset", f"folder:{photographs}", "--name", "eyes", *AT_64, wide_backbone]
    assert run("extractor", *extract, "--store", store, "--limit", "1", "--labelled").returncode == 0
    assert [record.options["labelled"] for record in FeatureStore(store).records.all()] == [True]
    marker = next(store.glob("*/*/identity/zarr.json"))
    marker.unlink()
    assert run("store", "verify", store, "--repair").returncode == 0
    assert len(json.loads(run("store", "ls", store, "--json").stdout)) == 1
    marker.write_text("{")
    shutil.rmtree(photographs)
    for _ in range(2):  # what cannot be made anew stays named
        assert run("store", "verify", store, "--repair").returncode == 4
    assert marker.read_text() == "{"


def test_compact_by_commands(run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path) -> None:
    recipe = [*AT_64, wide_backbone, "--dataset", f"folder:{dataset_folder}"]
    extract = ["run", *recipe, "--store", tmp_path / "s", "--encoding", "compact"]
    missing = run("extractor", *extract)
    assert missing.returncode == 1
    assert "`extractor fit-codebook` makes one" in missing.stderr
    code = tmp_path / "code.safetensors"
    fitted = run("extractor", "fit-codebook", *recipe, "--out", code, "--photographs", "3", "--json")
    assert fitted.returncode == 0, fitted.stderr
    done = run("extractor", *extract, "--codebook", code, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(run("store", "info", tmp_path / "s", "--json").stdout)["specs"][0]["encoding"] == "compact"
    train = ["train", "--store", tmp_path / "s", "--dataset", Path(dataset_folder).name, "--out", tmp_path / "model"]
    trained = run("interpreter", *train, "--epochs", "1", "--vss-max-size", "0", "--max-width", "8")
    assert trained.returncode == 0, trained.stderr
    scored = run(
        "interpreter", *["evaluate", "--dataset", Path(dataset_folder).name], "--store", tmp_path / "s",
        "--model", tmp_path / "model", "--json",
    )  # fmt: skip
    assert scored.returncode == 0, scored.stderr
    (tmp_path / "model" / "codebook.safetensors").unlink()
    lost = run("interpreter", *["evaluate", "--dataset", "x"], "--store", tmp_path / "s", "--model", tmp_path / "model")
    assert lost.returncode == 1
    assert "no codebook here" in lost.stderr


def test_a_training_selects_on_the_images_it_is_told_and_learns_from_unlabelled_ones(
    run: Run, filled_store: FeatureStore, tmp_path: Path
) -> None:
    eyes = filled_store.collections.read("eyes")
    filled_store.collections.write(Collection(name="others", samples=eyes.samples[:2]))
    filled_store.collections.write(Collection(name="mine", samples=eyes.samples[2:]))
    begun = ["train", "--store", filled_store.location, "--backbone", "x", "--epochs", "1", "--max-width", "8"]
    train = [*begun, "--validation", "others"]
    done = run("interpreter", *train, "--vss-max-size", "0", "--dataset", "mine", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    _, card = load_interpreter(tmp_path / "run")
    assert card.licence == "not stated"
    assert set(card.validation_ids) == {sample.image_id for sample in eyes.samples[:2]}
    assert set(card.training_ids) == {sample.image_id for sample in eyes.samples[2:]}
    taught = [*begun, "--vss-max-size", "0", "--licence", "CC0-1.0", "--out", tmp_path / "student"]
    asked = ["--dataset", "mine", "--unlabelled", "others"]
    learnt = run("interpreter", *taught, *asked, "--teacher", tmp_path / "run")
    assert learnt.returncode == 0, learnt.stderr
    assert "labels those of 2 photographs that have no labels here" in " ".join(learnt.stderr.split())
    itself = run("interpreter", *taught[:-2], *asked, "--teacher", tmp_path / "run", "--out", tmp_path / "run")
    assert itself.returncode == 2
    assert load_interpreter(tmp_path / "run")[1].validation_ids
    _, card = load_interpreter(tmp_path / "student")
    assert card.licence == "CC0-1.0"
    assert {sample.image_id for sample in eyes.samples[:2]} < set(card.training_ids)
    alone = run("interpreter", *taught, *asked)
    assert alone.returncode == 2
    assert "expected --unlabelled and --teacher together" in " ".join(alone.stderr.replace("│", " ").split())
    both = run("interpreter", *train, "--dataset", "eyes", "--out", tmp_path / "both")
    assert both.returncode == 1
    assert "to be trained on and validated on; leave each out of one" in " ".join(both.stderr.split())


def test_images_are_chosen_by_name_and_the_profile_is_told(
    run: Run, dataset_folder: Path, wide_backbone: Path, tmp_path: Path
) -> None:
    extract = ["run", "--dataset", f"folder:{dataset_folder}", "--name", "eyes", *AT_64, wide_backbone]
    chosen = run(
        "extractor", *extract, "--store", tmp_path / "s", "--images", "eye[0-2].*", "--batch", "2", "--profile"
    )
    assert chosen.returncode == 0, chosen.stderr
    assert "3 extracted" in chosen.stdout
    assert all(stage in chosen.stderr for stage in ("decode", "network", "encode", "write"))
    info = json.loads(run("store", "info", tmp_path / "s", "--json").stdout)
    assert info["datasets"][0]["images"] == 3
    record = FeatureStore(tmp_path / "s").records.all()[0]
    assert record.counts["extracted"] == 3
    assert record.options["images"] == "eye[0-2].*"
    assert {"all", "network", "write"} <= set(record.seconds)
    none = run("extractor", *extract, "--store", tmp_path / "s", "--images", "*.nef")
    assert none.returncode == 1
    assert "no image of eyes has a name like '*.nef'" in none.stderr


def test_an_interrupt_finishes_what_is_in_flight(dataset_folder: Path, wide_backbone: Path, tmp_path: Path) -> None:
    extract = ["run", "--dataset", f"folder:{dataset_folder}", "--name", "eyes", *AT_64, str(wide_backbone)]
    call = [
        sys.executable,
        "-m",
        "extractor.cli",
        *extract,
        "--store",
        str(tmp_path / "s"),
        "--views",
        "photometric:40",
    ]
    running = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while len(list((tmp_path / "s").glob("*/*/*/zarr.json"))) < 3:
        time.sleep(0.05)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=240)
    assert running.returncode == 130
    assert "finishing what is in flight" in told
    assert "run the same command again to continue" in told
    store = FeatureStore(tmp_path / "s")
    spec = store.specs()[0]
    keys = list(store.keys(spec))
    assert 3 <= len(keys) < 240
    assert all(store.verify(spec, key) == [] for key in keys)
    assert store.objects.keys("claims") == []
    assert store.collections.read("eyes").samples


@pytest.mark.slow
def test_workers_finish_what_is_in_flight(dataset_folder: Path, wide_backbone: Path, tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to every process of the command, workers too."""
    store, call = tmp_path / "s", [sys.executable, "-m", "extractor.cli", "run", "--workers", "2", "--name", "eyes"]
    call += ["--dataset", f"folder:{dataset_folder}", "--backbone", str(wide_backbone), "--store", str(store)]
    call += ["--views", "photometric:10"]
    running = subprocess.Popen(
        call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(list(store.glob("*/*/*/zarr.json"))) < 3:
        time.sleep(0.05)
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=240)
    assert running.returncode == 130, told
    assert "dashboard: http://127.0.0.1:" in told
    features = FeatureStore(store)
    keys = list(features.keys(features.specs()[0]))
    assert 3 <= len(keys) < 60
    assert all(features.verify(features.specs()[0], key) == [] for key in keys)
    assert features.objects.keys("claims") == []
    again = subprocess.run([*call, "--json"], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["present"] == len(keys)
    assert len(list(features.keys(features.specs()[0]))) == 60


def test_photographs_are_stored_whatever_blocks_a_backbone_has(
    run: Run, backbone: Backbone, dataset_folder: Path, tmp_path: Path
) -> None:
    save_backbone(backbone, tmp_path / "tiny", half=False)
    where = ["--dataset", f"folder:{dataset_folder}", "--store", str(tmp_path / "s")]
    how = ["--photographs", "--backbone", str(tmp_path / "tiny"), "--resolution", "33", "--json"]
    done = run("extractor", "run", *where, *how)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["extracted"] == 6
    (record,) = FeatureStore(tmp_path / "s", read_only=True).records.all()
    again = run(*shlex.split(str(ExtractionCommand({"store": str(tmp_path / "s"), **record.options, "json": True}))))
    assert json.loads(again.stdout)["present"] == 6
    assert json.loads(again.stdout)["spec"] == json.loads(done.stdout)["spec"]
