"""Every protocol at tiny size: photographs of 80 pixels, a network side of 32, features made in this process."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from extractor.architectures import plain_unet
from extractor.backbone import Backbone
from extractor.backbone_folder import save_backbone
from extractor.datasets import load_dataset, of_split
from extractor.diffusion import Diffusion
from extractor.errors import DatasetError
from extractor.extraction import Extractor
from extractor.pixels import PixelExtractor
from extractor.runs import extract_dataset
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from interpreter.adapting import Expected, expected_at
from interpreter.cli import app
from interpreter.data import LabelledImage
from interpreter.errors import CheckpointError, ConfigurationError, DataError, ExtractionFailed
from interpreter.extractor_command import run_extraction
from interpreter.heads.photometric import ROUNDED
from interpreter.presets import TRAINING_PRESETS
from interpreter.protocol_cli import parse_rows, parse_seeds, parse_settings
from interpreter.protocols import PROTOCOLS, protocol_named, running
from interpreter.protocols.extracting import (
    DataSource,
    Extract,
    FeatureRequest,
    command_of,
    extract_by_command,
    parse_source,
)
from interpreter.protocols.features import ProtocolFeatures
from interpreter.protocols.protocol import ROWS, Edition, ProtocolSettings
from interpreter.protocols.report import write_report
from interpreter.protocols.running import ProtocolRun, Result
from interpreter.protocols.score_cache import _fingerprint
from interpreter.protocols.table import tabulated
from interpreter.rules import STRICT, Rules
from interpreter.task import Task
from store import FeatureStore, SpecError
from store.collection import Sample
from store.extraction_command import ExtractionCommand
from store.features import Key
from store.pixels import spec_of_pixels
from store.spec import PREPROCESSINGS
from store.views import NEGATIVE
from tests.conftest import TINY, Run, draw_fundus

SETTINGS = ProtocolSettings(
    epochs=2, batch=2, learning_rate=5e-3, evaluate_every=1, max_width=8, vss_max_size=0, standardise=True
)
TARGETS = {"vessel": ("vessel",), "lesions": ("MA", "HE", "EX", "SE")}


def draw_data(folder: Path, name: str, targets: tuple[str, ...], first: int, negative: bool = False) -> DataSource:
    """A data set of three training and two test images as a manifest; the last target is missing once."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(5):
        image, vessel = draw_fundus(seed=first + i)
        Image.fromarray(255 - image if negative else image).save(folder / f"{name}{i}.png")
        row = {"image": f"{name}{i}.png", "split": "train" if i < 3 else "test"}
        for shift, target in enumerate(targets):
            missing = i == 0 and len(targets) > 1 and shift == len(targets) - 1
            row[target] = "" if missing else f"{name}{i}_{target}.png"
            if not missing:
                Image.fromarray(np.roll(vessel, 3 * shift, axis=0)).save(folder / row[target])
        rows.append(row)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return DataSource(name, f"manifest:{folder / name}.csv")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features.zarr")


@pytest.fixture
def extract(backbone: Backbone, store: FeatureStore) -> Extract:
    def extract_here(wanted: FeatureRequest) -> str:
        prepared = PREPROCESSINGS[wanted.preprocessing or "fundus"]()
        recipe = dataclasses.replace(TINY, preprocessing=prepared).with_trajectory(wanted.trajectory)
        recipe = recipe.with_overrides(resolution=wanted.resolution or TINY.resolution)
        data = load_dataset(wanted.source.reference, wanted.source.name)
        part = data.part(of_split(data.photographs, wanted.split))
        network = backbone.untrained_copy() if wanted.untrained else backbone
        spec = recipe.spec(network)
        extractor = (
            PixelExtractor(spec_of_pixels(spec.resolution, spec.preprocessing))
            if wanted.photographs
            else Extractor(network, spec)
        )
        extract_dataset(part, store, extractor, views=wanted.views)
        return extractor.spec.digest

    return extract_here


Table = Callable[..., tuple[list[Result], dict[str, Any]]]


@pytest.fixture
def table(store: FeatureStore, extract: Extract, tmp_path: Path) -> Table:
    """Run a protocol and read its report."""

    def run(
        name: str, edition: Edition, sources: list[DataSource], targets: tuple[str, ...] = (), rows: str = "diffdgss",
        seeds: tuple[int, ...] = (0,), settings: ProtocolSettings = SETTINGS,
    ) -> tuple[list[Result], dict[str, Any]]:  # fmt: skip
        protocol, out = protocol_named(name, edition), tmp_path / f"{name}-{edition}"
        features = ProtocolFeatures(protocol, sources, store, settings, extract)
        results = ProtocolRun(features, out).run(targets, parse_rows(rows), seeds)
        page = write_report(protocol, settings, {s.name: s.reference for s in sources}, results, out).read_text()
        assert all(str(cell) in page for cells in tabulated(protocol, results).values() for cell in cells.values())
        return results, json.loads((out / "report.json").read_text())

    return run


def vessels(tmp_path: Path, *names: str) -> list[DataSource]:
    return [draw_data(tmp_path / name, name, TARGETS["vessel"], 10 * i) for i, name in enumerate(names)]


def test_leave_one_domain_out_never_sees_the_target(table: Table, store: FeatureStore, tmp_path: Path) -> None:
    results, report = table("lodo-vessels", "strict", vessels(tmp_path, "stare", "hrf"), seeds=(0, 1))
    assert [r.experiment.path for r in results] == [
        f"diffdgss/{target}/seed-{seed}" for target in ("stare", "hrf") for seed in (0, 1)
    ]
    for result in results:
        card = json.loads((result.folder / "interpreter.json").read_text())
        target = {s.image_id for s in store.collections.read(result.experiment.column).samples}
        assert not target & {*card["training_ids"], *card["validation_ids"]}
        name = result.experiment.column
        assert set(result.summary["by_image"]) == {f"{name}/{name}{i}" for i in (3, 4)}
    cell = report["table"]["diffdgss"]["stare"]
    assert cell["value"] == pytest.approx(np.mean(list(cell["by_seed"].values())))
    assert report["quoted"]["DiffDGSS, as published"]["stare"] == 0.8046
    assert report["versions"]["torch"]
    with (tmp_path / "lodo-vessels-strict" / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8


def test_a_camera_is_read_at_the_resolution_that_its_photographs_say(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = vessels(tmp_path, "stare", "hrf")
    asked = "lodo-vessels", "strict", sources, ("hrf",), "diffdgss,unet"
    plain, _ = table(*asked)
    weights = [(one.folder / "interpreter.safetensors").read_bytes() for one in plain]
    adapted, _ = table(*asked, settings=SETTINGS.model_copy(update={"adapt": (64,)}))
    monkeypatch.setattr(running, "best_of", lambda expected, _learnt_at: expected[-1])
    larger, report = table(*asked, settings=SETTINGS.model_copy(update={"adapt": (64, 48)}))
    assert [(one.folder / "interpreter.safetensors").read_bytes() for one in larger] == weights
    for at_32, chosen, at_64 in zip(plain, adapted, larger, strict=True):
        expected = chosen.summary["expected_dice_at"]
        assert list(expected) == ["32", "64"]  # its own among them
        best = chosen.summary["read_at"]
        assert best == 32 or expected["64"] > expected["32"]
        assert chosen.summary["auc_roc"] == (at_32 if best == 32 else at_64).summary["auc_roc"]
        assert list(at_64.summary["expected_dice_at"]) == ["32", "48", "64"]
        assert at_64.summary["expected_dice_at"]["64"] == expected["64"]
        assert (at_64.summary["read_at"], at_64.summary["flops"]) == (64, 4 * at_32.summary["flops"])
        assert at_64.summary["auc_roc"] != at_32.summary["auc_roc"]
        assert at_64.summary["by_image"].keys() == at_32.summary["by_image"].keys()
    assert report["table"]["unet"]["hrf"]["value"] == pytest.approx(larger[1].summary["dice"])
    page = (tmp_path / "lodo-vessels-strict" / "report.html").read_text()
    assert page.count("<td>64</td>") == 2
    assert "their labels are not read" in page


def test_what_cannot_be_adapted_is_told_before_anything_is_trained(table: Table, tmp_path: Path) -> None:
    sources = vessels(tmp_path, "stare", "hrf")
    with pytest.raises(SpecError, match="a square of 33 pixels"):
        table("lodo-vessels", "strict", sources, ("hrf",), settings=SETTINGS.model_copy(update={"adapt": (33,)}))
    with pytest.raises(ConfigurationError, match=r"`adapt` expects each training to be tested on a single data set"):
        table("few-label", "strict", sources, settings=SETTINGS.model_copy(update={"adapt": (64,)}))
    assert not list(tmp_path.glob("*-strict"))
    listed = tmp_path / "hrf" / "hrf.csv"
    listed.write_text(listed.read_text().replace(",train,", ",other,"))
    with pytest.raises(DatasetError, match="no image of split 'train'"):
        table("lodo-vessels", "strict", sources, ("hrf",), settings=SETTINGS.model_copy(update={"adapt": (64,)}))
    assert not list(tmp_path.glob("*-strict"))


def test_a_network_that_finds_nothing_is_scored_as_it_learnt(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*arguments: Any) -> Expected:
        one = expected_at(*arguments)
        return dataclasses.replace(one, sums=np.zeros_like(one.sums))

    monkeypatch.setattr(running, "expected_at", nothing)
    settings = SETTINGS.model_copy(update={"adapt": (64,)})
    (result,), _ = table("lodo-vessels", "strict", vessels(tmp_path, "stare", "hrf"), ("hrf",), settings=settings)
    assert (result.summary["read_at"], result.summary["expected_dice_at"]) == (32, {"32": None, "64": None})


def test_a_photograph_that_is_trained_and_tested_on_is_named(table: Table, tmp_path: Path) -> None:
    stare = draw_data(tmp_path / "stare", "stare", TARGETS["vessel"], 0)
    collected = draw_data(tmp_path / "collected", "collected", TARGETS["vessel"], 3)  # some of its files, and others
    with pytest.raises(DataError, match=r"2 photographs would be both trained and tested on; .*the same file as"):
        table("lodo-vessels", "strict", [stare, collected], ("stare",))


def test_a_patient_who_is_trained_and_tested_on_is_named(table: Table, tmp_path: Path) -> None:
    source = draw_data(tmp_path / "stare", "stare", TARGETS["vessel"], 0)
    listed = tmp_path / "stare" / "stare.csv"
    rows = listed.read_text().splitlines()
    listed.write_text("\n".join([f"{rows[0]},group", *(f"{row},{i // 4}" for i, row in enumerate(rows[1:]))]))
    with pytest.raises(DataError, match=r"1 test images are of groups \(patients\) .* stare/stare3 of the group 0"):
        table("few-label", "strict", [source])


def test_only_a_name_that_was_given_replaces_a_data_set_of_that_name() -> None:
    for text, named in (("stare:/x/STARE", False), ("stare=stare:/x/STARE", True)):
        wanted = FeatureRequest(parse_source(text), "train", "ddim", ("identity",), None)
        assert ("name" in command_of(wanted, "features.zarr", SETTINGS).options) == named


def test_groups_and_palettes_decide_scores_where_they_are_asked_for() -> None:
    task, squeezed = Task(name="vessels", targets=("vessel",)), Rules(masks="pillow")
    plain = Sample(image_id="0" * 64, name="a", masks={"vessel": "1" * 64, "disc": "2" * 64})
    samples = (plain, plain.model_copy(update={"group": "eve"}), plain.model_copy(update={"indexed": ("vessel",)}))
    images = [LabelledImage("eyes", ("disc", "vessel"), one, Key(one.image_id)) for one in samples]
    strict, compatible = ([_fingerprint(one, task, rules) for one in images] for rules in (STRICT, squeezed))
    assert strict[0] == strict[2] == ["eyes/a", "0" * 64, ["1" * 64]]  # as files of earlier versions have it
    assert strict[1] == [*strict[0], "eve"]
    assert compatible == [strict[0], strict[1], ["eyes/a", "0" * 64, ["1" * 64, "vessel"]]]


def test_what_was_done_is_not_done_again_and_other_settings_are_refused(table: Table, tmp_path: Path) -> None:
    sources = vessels(tmp_path, "stare", "hrf")
    first, _ = table("lodo-vessels", "strict", sources, ("hrf",))
    scores = first[0].folder / "scores.json"
    noted = json.loads(scores.read_text())
    del noted["inputs"]["config"]["time_width"]  # as a version wrote it that had no such choice
    scores.write_text(json.dumps(noted))
    noted["inputs"]["row"]["description"] = "as a version wrote it that kept what decides nothing"
    scores.write_text(json.dumps(noted))
    stamp = scores.stat().st_mtime_ns
    again, _ = table("lodo-vessels", "strict", sources, ("hrf",))
    assert again[0].summary == first[0].summary
    assert (first[0].folder / "scores.json").stat().st_mtime_ns == stamp
    former = {"asked": noted["inputs"], "summary": {"dice": 70.0}}  # as versions wrote it that had points of 100
    scores.write_text(json.dumps(former))
    weights = (first[0].folder / "interpreter.safetensors").stat().st_mtime_ns
    assert table("lodo-vessels", "strict", sources, ("hrf",))[0][0].summary == first[0].summary
    assert (first[0].folder / "interpreter.safetensors").stat().st_mtime_ns == weights
    for damaged in ("[]", '{"format": 2}', "{"):
        kept = scores.read_text()
        scores.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"scores\.json"):
            table("lodo-vessels", "strict", sources, ("hrf",))
        scores.write_text(kept)
    with pytest.raises(ConfigurationError, match="a run with other training"):
        table("lodo-vessels", "strict", sources, ("hrf",), settings=SETTINGS.model_copy(update={"batch": 3}))
    (path, *_) = of_split(load_dataset(sources[1].reference).photographs, "test")[0].masks.values()
    with Image.open(path) as image:
        Image.fromarray(255 - np.asarray(image.convert("L"))).save(path)
    corrected, _ = table("lodo-vessels", "strict", sources, ("hrf",))  # a mask of the test: scored anew, not trained
    assert corrected[0].summary["auc_pr"] != first[0].summary["auc_pr"]


def test_the_published_edition_squeezes_selects_on_the_target_and_counts_everything(
    table: Table, store: FeatureStore, tmp_path: Path
) -> None:
    results, report = table("lodo-vessels", "aadg-compat", vessels(tmp_path, "stare", "hrf"), ("hrf",))
    card = json.loads((results[0].folder / "interpreter.json").read_text())
    assert card["spec"]["preprocessing"]["name"] == "squeeze"
    tests = {s.image_id for s in store.collections.read("hrf").samples if s.split == "test"}
    assert set(card["validation_ids"]) == tests
    assert card["training"]["rules"] == {"masks": "pillow", "region": "image", "size": "network"}
    assert report["mask_filter"] == "Pillow bicubic, nearest for masks of one bit or with a palette, then != 0"
    assert any("PICKED ON THE TEST IMAGES" in note for note in report["notes"])


def test_every_row_can_be_run_by_name(table: Table, tmp_path: Path) -> None:
    results, report = table("lodo-vessels", "strict", vessels(tmp_path, "stare", "hrf"), ("hrf",), ",".join(ROWS))
    assert list(report["table"]) == list(ROWS)
    cards = {r.experiment.row.name: json.loads((r.folder / "interpreter.json").read_text()) for r in results}
    assert cards["stochastic"]["spec"]["trajectory"] == "stochastic"
    assert cards["anchored"]["spec"]["trajectory"] == "anchored"
    assert cards["mlp"]["config"]["head"] == "mlp"
    assert [name for name, card in cards.items() if not card["config"]["standardise"]] == ["unet", "pyramid"]
    assert cards["untrained"]["spec"]["backbone"] != cards["diffdgss"]["spec"]["backbone"]
    assert [block["name"] for block in cards["unet"]["spec"]["blocks"]] == ["pixels"]
    voters = {r.experiment.row.name: list(r.summary["dice_by_voter"]) for r in results}
    assert (voters["joint"], len(voters["mlp"])) == (["joint"], 10)


def test_networks_on_pixels_draw_photometric_views_themselves() -> None:
    settings = ProtocolSettings(views=("identity", "red-free", "flip-h", "photometric-0"))
    of = {row: settings.views_of(ROWS[row]) for row in ("diffdgss", "unet")}
    assert of == {"diffdgss": settings.views, "unet": ("identity", "red-free")}
    assert ProtocolSettings(views=("photometric-0",)).views_of(ROWS["unet"]) == ("identity",)


def test_photographs_without_colour_are_read_by_networks_on_features_and_on_pixels(
    table: Table, store: FeatureStore, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"views": ("red-free", "identity")})
    table("lodo-vessels", "strict", vessels(tmp_path, "stare", "hrf"), ("hrf",), "diffdgss,unet", settings=settings)
    (pixels,) = [spec for spec in store.specs() if spec.blocks[0].name == "pixels"]
    (key, *_) = [key for key in store.keys(pixels) if key.view == "red-free"]
    grey = store.entry(pixels, key).read("pixels")[0]
    coloured = store.entry(pixels, Key(key.image_id, "identity")).read("pixels")[0]
    assert np.ptp(grey, axis=0).max() <= ROUNDED < np.ptp(coloured, axis=0).max()


def test_a_table_may_be_of_photographs_without_colour(table: Table, store: FeatureStore, tmp_path: Path) -> None:
    settings, sources = SETTINGS.model_copy(update={"preprocessing": "red-free"}), vessels(tmp_path, "stare", "hrf")
    results, _ = table("lodo-vessels", "strict", sources, ("hrf",), "diffdgss,unet", settings=settings)
    cards = {r.experiment.row.name: json.loads((r.folder / "interpreter.json").read_text()) for r in results}
    assert {card["spec"]["preprocessing"]["name"] for card in cards.values()} == {"red-free"}
    (pixels,) = [spec for spec in store.specs() if spec.blocks[0].name == "pixels"]
    for key in store.keys(pixels):
        photograph = store.entry(pixels, key).read("pixels")[0]
        assert np.ptp(photograph, axis=0).max() <= ROUNDED
    with pytest.raises(ConfigurationError, match=r"by squeeze; leave out .* alike: squeeze, squeeze-red-free"):
        table("lodo-vessels", "aadg-compat", sources, ("hrf",), settings=settings)
    squeezed = SETTINGS.model_copy(update={"preprocessing": "squeeze-red-free"})
    results, _ = table("lodo-vessels", "aadg-compat", sources, ("hrf",), settings=squeezed)
    read = json.loads((results[0].folder / "interpreter.json").read_text())["spec"]["preprocessing"]
    assert (read["name"], read["crop"]) == ("red-free", "none")


def test_angiograms_are_read_as_negatives(table: Table, store: FeatureStore, tmp_path: Path) -> None:
    sources = [*vessels(tmp_path, "stare"), draw_data(tmp_path / "octa", "octa_500", ("vessel",), 50, negative=True)]
    results, _ = table("cross-modality", "strict", sources, ("octa_500",), "diffdgss,unet")
    views = {key.view for one in store.specs() for key in store.keys(one)}
    assert views == {"identity", NEGATIVE}
    assert list(results[0].summary["by_image"]) == ["octa_500/octa_5003", "octa_500/octa_5004"]
    with pytest.raises(ConfigurationError, match="named by --target, angiograms"):
        table("cross-modality", "strict", sources)


def test_test_images_may_be_read_with_their_mirror_images(table: Table, store: FeatureStore, tmp_path: Path) -> None:
    sources = vessels(tmp_path, "stare", "hrf")
    plain, _ = table("lodo-vessels", "strict", sources, ("hrf",), "diffdgss,unet")
    weights = [(result.folder / "interpreter.safetensors").read_bytes() for result in plain]
    settings = SETTINGS.model_copy(update={"mirrored": True})
    mirrored, _ = table("lodo-vessels", "strict", sources, ("hrf",), "diffdgss,unet", settings=settings)
    for before, after, kept in zip(plain, mirrored, weights, strict=True):
        assert before.summary["by_image"].keys() == after.summary["by_image"].keys()
        assert before.summary["auc_roc"] != after.summary["auc_roc"]
        assert 4 * before.summary["flops"] == after.summary["flops"]
        assert (after.folder / "interpreter.safetensors").read_bytes() == kept  # scored anew, not trained
    (pixels,) = [spec for spec in store.specs() if spec.blocks[0].name == "pixels"]
    image_id = next(key.image_id for key in store.keys(pixels) if key.view == "flip-h")
    upright, turned = (store.entry(pixels, Key(image_id, view)) for view in ("identity", "flip-h"))
    np.testing.assert_array_equal(turned.read("pixels"), upright.read("pixels")[..., ::-1])
    np.testing.assert_array_equal(turned.fov, upright.fov[..., ::-1])
    angiograms = draw_data(tmp_path / "octa", "octa_500", ("vessel",), 50, negative=True)
    entries = sum(1 for spec in store.specs() for _ in store.keys(spec))
    with pytest.raises(ConfigurationError, match="there are none of negative"):
        table("cross-modality", "strict", [*sources, angiograms], ("octa_500",), settings=settings)
    assert sum(1 for spec in store.specs() for _ in store.keys(spec)) == entries  # refused before anything is made


def test_lesions_overlap_and_are_scored_at_native_size(table: Table, tmp_path: Path) -> None:
    sources = [draw_data(tmp_path / "idrid", "idrid", TARGETS["lesions"], 0)]
    results, report = table("idrid-lesions", "strict", sources)
    assert list(report["table"]["diffdgss"]) == list(TARGETS["lesions"])
    assert all(0 < cell["value"] <= 1 for cell in report["table"]["diffdgss"].values())
    assert results[0].experiment.scoring_rules.size == "native"
    assert results[0].summary["training_images"] + results[0].summary["validation_images"] == 3


def test_scores_of_a_square_of_a_chosen_size(table: Table, tmp_path: Path) -> None:
    sources = vessels(tmp_path, "stare", "hrf")
    own, _ = table("lodo-vessels", "strict", sources, ("hrf",))
    resized, _ = table("lodo-vessels", "strict", sources, ("hrf",), settings=SETTINGS.model_copy(update={"size": 24}))
    assert resized[0].experiment.scoring_rules.size == 24
    assert resized[0].summary["epoch"] == own[0].summary["epoch"]
    assert resized[0].summary["auc_pr"] != own[0].summary["auc_pr"]
    with pytest.raises(ConfigurationError, match="compares pixels of native size; leave out the setting `size`"):
        ProtocolSettings(size=24).scoring(Rules(size="native"))


def test_few_labels(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interpreter.protocols import vessels as protocols

    monkeypatch.setattr(protocols, "FEW", (1, 5))
    results, report = table("few-label", "strict", vessels(tmp_path, "stare", "hrf"))
    assert list(report["table"]["diffdgss"]) == ["1", "5", "all"]
    trained = [(r.summary["training_images"], r.summary["validation_images"]) for r in results]
    assert trained == [(1, 0), (4, 1), (4, 2)]
    monkeypatch.setattr(protocols, "FEW", (1, 7))  # of six images
    _, report = table("few-label", "strict", vessels(tmp_path, "stare", "hrf"))
    assert list(report["table"]["diffdgss"]) == ["1", "all"]


def test_an_interrupted_training_of_a_protocol_goes_on_where_it_was(
    store: FeatureStore, extract: Extract, tmp_path: Path
) -> None:
    protocol, sources = protocol_named("lodo-vessels", "strict"), vessels(tmp_path, "stare", "hrf")
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if sum("loss" in one for one in said) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = SETTINGS.model_copy(update={"epochs": 2, "batch": 1})
    asked = (["stare"], parse_rows("diffdgss"), [0])
    with pytest.raises(KeyboardInterrupt):
        ProtocolRun(ProtocolFeatures(protocol, sources, store, settings, extract, say), tmp_path / "out").run(*asked)
    assert "  finishing a step; Ctrl-C again interrupts at once" in said
    steps = sum("loss" in one for one in said)
    features = ProtocolFeatures(protocol, sources, store, settings, extract, said.append)
    (result,) = ProtocolRun(features, tmp_path / "out").run(*asked)
    quiet = ProtocolFeatures(protocol, sources, store, settings, extract)
    (whole,) = ProtocolRun(quiet, tmp_path / "whole").run(*asked)
    assert result.summary == whole.summary
    per_epoch = result.summary["training_images"]
    assert (steps, sum("loss" in one for one in said)) == (1, 2 * per_epoch)


def test_names_and_options() -> None:
    assert {name for name, _ in PROTOCOLS} == {"lodo-vessels", "cross-modality", "idrid-lesions", "few-label"}
    assert parse_source("stare:/x/STARE") == DataSource("stare", "stare:/x/STARE", named=False)
    assert parse_source("a=hrf:/x/HRF") == DataSource("a", "hrf:/x/HRF")
    assert parse_source("hrf:/x=y/HRF") == DataSource("hrf", "hrf:/x=y/HRF", named=False)
    assert parse_seeds(["0", "1", "2"]) == parse_seeds(["0,1 2"]) == [0, 1, 2]
    assert parse_settings('{"device": "cuda:1"}', "cpu").device == "cuda:1"
    assert parse_settings('{"views": "identity,photometric:2"}', "cpu").views == (
        "identity", "photometric-0", "photometric-1",
    )  # fmt: skip
    fast = parse_settings('{"training": "fast", "steps": 5}', "cpu")
    assert (fast.steps, fast.crop, fast.standardise, fast.preset) == (5, 128, True, "small")
    by_epochs = parse_settings('{"training": "fast", "epochs": 60}', "cpu")  # which steps would go before
    assert (by_epochs.steps, by_epochs.epochs, by_epochs.crop) == (None, 60, 128)
    assert TRAINING_PRESETS["fast"].training_settings(epochs=60).steps is None
    assert [parse_settings(text, "cpu").decay for text in ('{"training": "paper"}', "{}")] == ["none", "cosine"]
    chosen = parse_settings('{"timesteps": "200, 500", "blocks": [2, 4]}', "cpu")
    assert (chosen.timesteps, chosen.blocks) == ((200, 500), (2, 4))
    assert [parse_settings(None, "cpu", mirrored=one).mirrored for one in (False, True)] == [False, True]
    for call, message in (
        (lambda: protocol_named("lodo-vessels", "other"), "there are lodo-vessels"),  # type: ignore[arg-type]
        *(
            (lambda text=text: parse_source(text), "expected NAME=ADAPTER:PATH")
            for text in ("nowhere", "=a:b", "a=b", "a:", "a=:b")
        ),
        (lambda: parse_source("manifest:list.csv"), "give the data set a name, as NAME=manifest:list.csv"),
        (lambda: parse_rows("diffdgss,x"), "no method x"),
        (lambda: parse_seeds(["0", "--x"]), "expected seeds such as"),
        (lambda: parse_seeds([""]), "expected seeds such as"),
        (lambda: parse_settings('{"epochs": 0}', "cpu"), "epochs: Input should be"),
        *((lambda text=text: parse_settings(text, "cpu"), "expected a JSON object") for text in ("[", "[]", "3")),
        (lambda: parse_settings('{"training": "slow"}', "cpu"), "no training 'slow'; there are paper, fast"),
        (lambda: parse_settings('{"timesteps": "200;500"}', "cpu"), r"timesteps.0: Input should be a valid integer"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            call()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "eyes", "--edition", "aadg-compat"], "--edition belongs to a protocol"),
        (["--dataset", "eyes", "--rows", "unet", "--settings", "{}"], "--rows, --settings belongs to a protocol"),
        (["--dataset", "eyes", "--size", "0"], "expected network, native or a number of pixels such as 512, got '0'"),
        (["--protocol", "few-label", "--size", "native"], "--size belongs to one model; the protocol decides it"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words: list[str], message: str) -> None:
    told = CliRunner().invoke(app, ["evaluate", "--store", "x", *words])
    assert told.exit_code == 2
    assert message in " ".join(told.output.replace("│", " ").split())


def test_photographs_left_out_end_a_protocol_with_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"dataset": "a", "spec": "x", "failed": [["eye", "eye.png: cannot be read"]]}
    partial = subprocess.CompletedProcess([], 3, json.dumps(report))
    monkeypatch.setattr(ExtractionCommand, "run", lambda _: partial)
    command = ExtractionCommand({"dataset": "folder:a"})
    assert run_extraction(command, partial=True) == report
    with pytest.raises(ExtractionFailed, match=r"1 photographs of folder:a could not be used: eye\.png: cannot"):
        run_extraction(command)


def test_the_extractor_is_called_as_a_command(tmp_path: Path) -> None:
    import typer

    from extractor.cli import app as extractor_app

    wanted = FeatureRequest(
        DataSource("a", f"folder:{tmp_path}/nothing"), "train", "anchored", ("identity", NEGATIVE), "squeeze"
    )
    call = command_of(wanted, str(tmp_path / "s"), SETTINGS).arguments
    context = typer.main.get_command(extractor_app).commands["run"].make_context("run", call[4:])  # type: ignore[attr-defined]
    assert context.params["views"] == "identity,negative"
    assert context.params["preprocessing"] == "squeeze"
    assert context.params["timesteps"] is context.params["blocks"] is None
    read = ProtocolSettings.model_validate({"timesteps": [200, 500], "blocks": [7]})
    assert {"--timesteps=200,500", "--blocks=7"} <= set(command_of(wanted, str(tmp_path / "s"), read).arguments)
    photographs = command_of(dataclasses.replace(wanted, photographs=True), str(tmp_path / "s"), read).arguments
    assert "--photographs" in photographs
    assert not [word for word in photographs if word.startswith(("--timesteps", "--trajectory", "--encoding"))]
    untrained = dataclasses.replace(wanted, untrained=True)
    named = SETTINGS.model_copy(update={"backbone": "small"})
    assert "--backbone=untrained:small" in command_of(untrained, str(tmp_path / "s"), named).arguments
    with pytest.raises(ConfigurationError, match="untrained needs a backbone's architecture"):
        command_of(untrained, str(tmp_path / "s"), SETTINGS)
    with pytest.raises(ExtractionFailed, match=r"nothing could not be extracted \(exit code 1 of `extractor run"):
        extract_by_command(str(tmp_path / "s"), SETTINGS)(wanted)


@pytest.mark.slow
def test_a_protocol_by_one_command(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = plain_unet((4, 4, 4, 4, 4), norm_groups=2)
    save_backbone(Backbone(build_unet(config), Diffusion(noise_schedule("cosine-4000")), config), tmp_path / "wide")
    data = [f"--data={s.name}={s.reference}" for s in vessels(tmp_path, "stare", "hrf")]
    settings = {"epochs": 1, "backbone": str(tmp_path / "wide"), "max_width": 8, "vss_max_size": 0}
    call = ["evaluate", "--protocol", "lodo-vessels", "--store", tmp_path / "s", *data, "--out", tmp_path / "out"]
    done = run(
        "interpreter", *call, "--settings", json.dumps(settings), "--target", "hrf", "--json", "--seeds", "0", "1"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 <= report["table"]["diffdgss"]["hrf"] <= 1
    assert Path(report["report"]).is_file()
    wrong = run("interpreter", "evaluate", "--store", tmp_path / "s", "--dataset", "hrf", "0")
    assert wrong.returncode == 2
