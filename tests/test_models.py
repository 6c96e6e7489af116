"""The models that are shipped: whole, described, and refused where they are not what was sealed."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from extractor import presets
from extractor import registry as backbones
from extractor.backbone_folder import WEIGHTS_FILE as BACKBONE_WEIGHTS
from extractor.backbone_folder import load_backbone
from extractor.backbones import CODEBOOK_FILE, MODELS, encoding_of, open_backbone
from extractor.errors import BackboneError
from interpreter import checkpoint
from interpreter import registry as interpreters
from interpreter.checkpoint import CARD_FILE, WEIGHTS_FILE, load_interpreter
from interpreter.domain import DOMAIN_FILE, load_domain
from interpreter.errors import CheckpointError
from recipes.shipped import INTERPRETERS as RECIPES
from store.errors import DamagedModel
from store.extraction_command import ExtractionCommand, options_of_spec
from store.manifest import MANIFEST_FILE, read_manifest
from store.spec import PREPROCESSINGS, AffineEncoding, Clahe, FeatureSpec, FloatEncoding, Preprocessing
from tests.conftest import Run, changed

BACKBONES = sorted(path.parent for path in MODELS.glob("*/config.json"))
INTERPRETERS = sorted(path.parent for path in checkpoint.MODELS.glob(f"*/{CARD_FILE}"))


def broken(model: Path, name: str, folder: Path) -> Path:
    """A copy of a model in which one byte of a file is another."""
    copy = folder / "copy"
    shutil.copytree(model, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    return copy


@pytest.mark.parametrize("folder", [*BACKBONES, *INTERPRETERS], ids=lambda folder: folder.name)
def test_each_has_a_card_and_a_manifest_of_all_its_files(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.data
    assert {path.name for path in folder.iterdir()} == {*manifest.files, MANIFEST_FILE, "README.md"}
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("## Data", "## Recipe", "Weights: Apache-2.0"))


@pytest.mark.parametrize("folder", INTERPRETERS, ids=lambda folder: folder.name)
def test_the_command_that_is_told_makes_what_an_interpreter_reads(
    run: Run, folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    _, card = load_interpreter(folder.name)
    where = {"dataset": f"folder:{dataset_folder}", "store": str(tmp_path / "s"), "dry-run": True, "json": True}
    command = ExtractionCommand(where | options_of_spec(card.spec, card.backbone))
    planned = run(*shlex.split(str(command)))
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["spec"] == card.spec.digest


def test_options_are_told_as_far_as_they_have_names(spec: FeatureSpec) -> None:
    spec = changed(
        spec, grid=(0, 1, 10, 100), clip=True, precision="bfloat16", preprocessing=Preprocessing(clahe=Clahe(tiles=4))
    )
    told = str(ExtractionCommand(options_of_spec(spec, None)))
    assert "--backbone ... --trajectory " in told
    assert "--grid 0,1,10,100 " in told
    assert told.endswith("--precision bfloat16 --clip")
    drawn = changed(spec, grid=spec.timesteps, clip=False, trajectory="stochastic", seed=7)
    told = str(ExtractionCommand(options_of_spec(drawn, "x")))
    assert "--trajectory stochastic --seed 7 --timesteps 1,10,100 --blocks" in told


@pytest.mark.parametrize("folder", INTERPRETERS, ids=lambda folder: folder.name)
def test_interpreters_read_a_shipped_backbone(folder: Path) -> None:
    _, card = load_interpreter(folder.name)
    backbone = open_backbone(card.backbone)
    prepared = PREPROCESSINGS[RECIPES[folder.name].preprocessing or "fundus"]()
    assert card.spec == replace(presets.fast(), preprocessing=prepared).spec(backbone)
    domain = load_domain(folder, card.spec)
    assert domain is not None
    assert domain.residual_range is not None


@pytest.mark.parametrize("name", [CARD_FILE, WEIGHTS_FILE])
def test_a_changed_interpreter_is_not_loaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name}: expected sha256 .*install the model again"):
        load_interpreter(broken(checkpoint.MODELS / "vessels", name, tmp_path))


def test_a_changed_domain_is_not_loaded(tmp_path: Path) -> None:
    copy = broken(checkpoint.MODELS / "vessels", DOMAIN_FILE, tmp_path)
    _, card = load_interpreter(copy)
    with pytest.raises(CheckpointError, match="expected sha256"):
        load_domain(copy, card.spec)


def test_a_domain_that_is_gone_is_not_taken_for_none(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.MODELS / "vessels", copy)
    (copy / DOMAIN_FILE).unlink()
    _, card = load_interpreter(copy)
    with pytest.raises(CheckpointError, match="the file is gone"):
        load_domain(copy, card.spec)
    with pytest.raises(CheckpointError, match="the file is gone"):
        interpreters.listed([copy])


def test_folders_are_listed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder named as a shipped model, and one that a diffusers pipeline wrote."""
    shutil.copytree(checkpoint.MODELS / "vessels", tmp_path / "disc_cup")
    small = MODELS / "small"
    for part, name in (("unet", "config.json"), ("unet", BACKBONE_WEIGHTS), ("scheduler", "scheduler_config.json")):
        (tmp_path / "pipe" / part).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(small / name, tmp_path / "pipe" / part / name)
    monkeypatch.chdir(tmp_path)
    *_, mine = interpreters.listed([Path("disc_cup")])
    assert (mine.folder, mine.card.task.name) == (tmp_path / "disc_cup", "vessels")
    *_, mine_too = backbones.listed([Path("pipe")])
    assert mine_too.size == (small / BACKBONE_WEIGHTS).stat().st_size


def test_a_changed_backbone_or_codebook_is_not_loaded(tmp_path: Path) -> None:
    copy = broken(MODELS / "small", "diffusion_pytorch_model.safetensors", tmp_path / "a")
    with pytest.raises(BackboneError, match=r"expected sha256 .*install the model again"):
        load_backbone(copy)
    copy = broken(MODELS / "small", CODEBOOK_FILE, tmp_path / "b")
    with pytest.raises(DamagedModel, match="expected sha256"):
        encoding_of("compact", str(copy))
    with pytest.raises(BackboneError, match="expected sha256"):
        backbones.listed([copy])


def test_interpreters_are_listed_by_command(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(checkpoint.MODELS / "vessels", mine, ignore=shutil.ignore_patterns(MANIFEST_FILE))
    listed = json.loads(run("interpreter", "models", mine, "--json").stdout)
    assert list(listed) == [*(folder.name for folder in INTERPRETERS), str(mine)]
    vessels = listed["vessels"]
    manifest = read_manifest(checkpoint.MODELS / "vessels")
    assert manifest is not None
    assert vessels["sha256"] == manifest.sha256_of(WEIGHTS_FILE)
    assert vessels["bytes"] == (checkpoint.MODELS / "vessels" / WEIGHTS_FILE).stat().st_size
    assert vessels["task"]["targets"] == ["vessel"]
    assert len(vessels["spec_digest"]) == 64
    _, card = load_interpreter("vessels")
    learnt = len(card.training_ids) + len(card.validation_ids)
    assert sum(data["photographs"] for data in vessels["data"]) == learnt
    assert vessels["figures"][0]["metric"] == "Dice of vessel"
    assert (listed[str(mine)]["sha256"], listed[str(mine)]["figures"]) == (None, [])
    shown = run("interpreter", "models", mine)
    assert shown.returncode == 0
    assert "vessels" in shown.stdout


def test_backbones_are_listed_by_command(run: Run) -> None:
    small = json.loads(run("extractor", "models", "--json").stdout)["small"]
    manifest = read_manifest(MODELS / "small")
    assert manifest is not None
    assert small["fingerprint"] == manifest.fingerprint == load_interpreter("vessels")[1].spec.backbone
    assert set(small["presets"]) == {"small", "fast"}
    in_half = replace(presets.small(), encoding=FloatEncoding()).spec(open_backbone("small"))
    assert in_half.digest == "6d1d6cf53c841b548007a8bcf8a2392a17e5c4cb0c6e18cb323fdeae8dd9d935"  # as ever
    assert small["presets"]["small"] == in_half.with_encoding(AffineEncoding()).digest
    assert small["weights"] > 3e6
    assert run("extractor", "models").returncode == 0


def test_a_damaged_model_is_one_line_on_stderr(run: Run, tmp_path: Path) -> None:
    result = run("interpreter", "models", broken(checkpoint.MODELS / "vessels", WEIGHTS_FILE, tmp_path))
    assert result.returncode == 1
    assert "install the model again" in result.stderr
