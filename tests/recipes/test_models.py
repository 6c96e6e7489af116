"""The recipes of the shipped models, whole, at tiny size on drawn photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from extractor.architectures import base_unet
from extractor.backbone_folder import load_backbone
from extractor.datasets import load_dataset
from extractor.errors import DatasetError
from interpreter.checkpoint import load_interpreter, read_card, shipped
from recipes import models
from recipes.drawing import SMOKE_BACKBONE, draw_table
from recipes.models import build
from recipes.photographs import SourceDataset, folders_of
from recipes.shipped import BASE, INTERPRETERS, SMALL, at_smoke_size
from store.feature_store import FeatureStore
from store.manifest import read_manifest


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_table(tmp_path_factory.mktemp("drawn"))


def built(name: str, table: Path, work: Path) -> list[Path]:
    return build(work, table, SMOKE_BACKBONE, [at_smoke_size(INTERPRETERS[name])])


def test_a_build_makes_sealed_models_and_goes_on_where_it_was(table: Path, tmp_path: Path) -> None:
    backbone, model = built("disc_cup", table, tmp_path)
    _, card = load_interpreter(model)
    assert card.spec.backbone == load_backbone(backbone).fingerprint
    assert (card.task.name, card.task.targets, card.task.overlapping) == ("disc_cup", ("OD", "cup"), True)
    assert len(card.training_ids) + len(card.validation_ids) == 2
    manifest = read_manifest(model)
    assert manifest is not None
    assert [(data.name, data.photographs) for data in manifest.data] == [("Drishti-GS1_1024, train", 2)]
    told = [(figure.metric, figure.where) for figure in manifest.figures]
    drishti, drions = "Drishti-GS1_1024, test, 1 photographs", "DRIONS-DB, test, 1 photographs"
    assert told == [("Dice of OD", drishti), ("Dice of cup", drishti), ("Dice of OD", drions)]
    assert json.loads((tmp_path / "scores" / "disc_cup-drions_db.json").read_text())["images"] == 1

    entries = len(list(FeatureStore(tmp_path / "features.zarr").keys(card.spec)))
    before = {path: path.read_bytes() for path in (*backbone.iterdir(), *model.iterdir())}
    assert built("disc_cup", table, tmp_path) == [backbone, model]
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(FeatureStore(tmp_path / "features.zarr").keys(card.spec))) == entries


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(INTERPRETERS) - {"disc_cup"}))
def test_the_other_recipes_run(name: str, table: Path, tmp_path: Path) -> None:
    _, model = built(name, table, tmp_path)
    assert load_interpreter(model)[1].task.targets == INTERPRETERS[name].targets


def test_a_new_backbone_is_made_by_the_recipe_that_is_named(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(models, "build", lambda _work, _table, backbone, _recipes: asked.append(backbone) or [])
    monkeypatch.setattr(models, "table_at", lambda *_, **__: table)
    for words in ([], ["--pretrain", "base"], ["--backbone", "small"]):
        assert CliRunner().invoke(models.app, ["--work", str(tmp_path), *words]).exit_code == 0
    assert asked == [SMALL, BASE, "small"]
    assert json.loads(BASE.config) == base_unet()
    refused = {
        "no recipe huge": ["huge"],
        "leave out --backbone and --smoke": ["base", "--smoke"],
    }
    for why, words in refused.items():
        result = CliRunner().invoke(models.app, ["--work", str(tmp_path), "--pretrain", *words])
        assert result.exit_code == 2
        assert why in " ".join(result.output.replace("│", " ").split())


def test_every_shipped_model_has_a_recipe() -> None:
    assert set(shipped()) <= set(INTERPRETERS)
    for name in shipped():
        card, recipe = read_card(name), INTERPRETERS[name]
        assert card.task.targets == recipe.targets
        assert card.config.standardise == ("--standardise" in recipe.options)
    assert SMALL.name == "small"


def test_nothing_is_trained_on_what_it_is_tested_on(table: Path, tmp_path: Path) -> None:
    for recipe in INTERPRETERS.values():
        sources = {part.source.name: part.source for part in (*recipe.train, *recipe.test)}
        for source in sources.values():
            photographs = load_dataset(f"manifest:{source.write_manifest(table, tmp_path)}").photographs
            assert {photograph.split for photograph in photographs} <= {"train", "test"}
            wanted = [part.source.name for part in recipe.train].count(source.name)
            assert sum(p.split == "train" for p in photographs) >= 2 * wanted


def test_the_last_photographs_are_held_out_where_there_is_no_test_split(table: Path, tmp_path: Path) -> None:
    source = INTERPRETERS["disc_cup"].train[0].source
    photographs = load_dataset(f"manifest:{source.write_manifest(table, tmp_path)}").photographs
    assert [p.split for p in photographs] == ["train"] * 4 + ["test"] * 12
    assert photographs[0].masks.keys() == {"OD", "cup"}
    with Image.open(photographs[0].masks["cup"]) as cup, Image.open(photographs[0].image) as image:
        assert cup.size == image.size


def test_a_table_without_a_data_set_is_told(table: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no photograph of ELSEWHERE"):
        SourceDataset("x", "ELSEWHERE", ("vessel",), "none").write_manifest(table, tmp_path)
    assert [folder.parent.name for folder in folders_of(table, "unlabelled")] == ["UNLABELLED"]


def test_notes_test_splits_and_unlabelled_rows_of_a_table(tmp_path: Path) -> None:
    rows = [
        "dataset,split,image,OD",
        "other,official Training,a.png,",
        "other,official Training,b.png,",
        "set,train (a),a.png,",
        "set,test(dev),b.png,",
        "set,unlabelled (x),u/c.png,",
    ]
    (tmp_path / "u").mkdir()
    for name in ("a.png", "b.png", "u/c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    table = tmp_path / "splits.csv"
    table.write_text("\n".join(rows))
    source = SourceDataset("set", "set", ("OD",), "none", held_out=1)
    photographs = load_dataset(f"manifest:{source.write_manifest(table, tmp_path / 'tables')}").photographs
    assert [(photograph.image.name, photograph.split) for photograph in photographs] == [
        ("a.png", "train"),
        ("b.png", "test"),
    ]
    parted = SourceDataset("other", "other", ("OD",), "none", held_out=1).write_manifest(table, tmp_path / "tables")
    assert [photograph.split for photograph in load_dataset(f"manifest:{parted}").photographs] == ["train", "test"]
    assert folders_of(table, "unlabelled") == [tmp_path / "u"]
    Image.new("RGB", (8, 8)).save(tmp_path / "u" / "stranger.png")
    with pytest.raises(DatasetError, match=r"stranger\.png lies beside"):
        folders_of(table, "unlabelled")
