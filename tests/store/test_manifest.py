"""Manifests: what was sealed is loaded, anything else is refused with what to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from store.errors import DamagedModel
from store.files import replaced
from store.manifest import (
    MANIFEST_FILE,
    Figure,
    Manifest,
    TrainingData,
    read_intact,
    read_manifest,
    require_intact,
    seal,
)

MANIFEST = Manifest(
    summary="vessels",
    data=(TrainingData(name="STARE, train", photographs=10, terms="CC BY 4.0"),),
    figures=(Figure(where="CHASE_DB1", metric="Dice", value=0.6, interval=(0.571, 0.632)),),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "card.json").write_text("{}")
    (tmp_path / "README.md").write_text("a card")
    seal(tmp_path, MANIFEST)
    return tmp_path


def test_every_json_and_safetensors_file_is_sealed(model: Path) -> None:
    manifest = read_manifest(model)
    assert manifest is not None
    assert set(manifest.files) == {"weights.safetensors", "card.json"}
    assert manifest.sha256_of("weights.safetensors") == hashlib.sha256(b"weights").hexdigest()
    assert manifest.size == len(b"weights{}")
    assert manifest.model_copy(update={"files": {}}) == MANIFEST
    require_intact(model, "weights.safetensors", "card.json", "absent.safetensors")


def test_a_changed_file_is_refused_with_what_to_do(model: Path) -> None:
    (model / "weights.safetensors").write_bytes(b"weightS")
    require_intact(model, "card.json")
    with pytest.raises(DamagedModel, match=r"weights\.safetensors: expected sha256 .* install the model again"):
        require_intact(model, "card.json", "weights.safetensors")
    seal(model, MANIFEST)
    require_intact(model, "weights.safetensors")


def test_a_file_that_was_added_is_refused(model: Path) -> None:
    (model / "codebook.safetensors").write_bytes(b"foreign")
    with pytest.raises(DamagedModel, match=r"does not name this file"):
        require_intact(model, "codebook.safetensors")


def test_a_folder_without_manifest_is_the_users_own(model: Path) -> None:
    (model / MANIFEST_FILE).unlink()
    (model / "weights.safetensors").write_bytes(b"mine")
    require_intact(model, "weights.safetensors")
    assert read_manifest(model) is None


@pytest.mark.parametrize("text", ["", "{}", '{"summary": "x", "files": {"a": {"sha256": "short", "size": 1}}}'])
def test_a_manifest_that_cannot_be_read_is_an_error(model: Path, text: str) -> None:
    (model / MANIFEST_FILE).write_text(text)
    with pytest.raises(DamagedModel, match=r"manifest\.json"):
        require_intact(model, "weights.safetensors")
    with pytest.raises(KeyError, match=r"manifest\.json"):
        read_intact(model, otherwise=KeyError)


def test_data_and_figures_are_told_in_a_line() -> None:
    assert str(MANIFEST.data[0]) == "10 of STARE, train (CC BY 4.0)"
    assert str(MANIFEST.figures[0]) == "Dice 60.0 (57.1 to 63.2) on CHASE_DB1"
    assert str(Figure(where="HRF", metric="Dice", value=1)) == "Dice 100.0 on HRF"


def test_figures_of_an_earlier_version_were_points_of_100(model: Path) -> None:
    path = model / MANIFEST_FILE
    written = json.loads(path.read_text())
    assert written["figures"][0]["value"] == 0.6
    written["figures"][0] |= {"value": 60.0, "interval": [57.1, 63.2]}
    path.write_text(json.dumps(written))
    found = read_manifest(model)
    assert found is not None
    assert str(found.figures[0]) == str(MANIFEST.figures[0])
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Figure(where="HRF", metric="Dice", value=101)


def test_a_file_that_is_replaced_is_read_by_whoever_reads_others(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replaced(tmp_path / "weights.safetensors") as partial:
        save_file({"a": torch.zeros(2)}, partial)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["weights.safetensors"] == modes["plain"]
    with pytest.raises(ValueError, match="no"), replaced(tmp_path / "plain") as partial:
        partial.write_text("half")
        raise ValueError("no")
    assert (tmp_path / "plain").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "weights.safetensors"]
