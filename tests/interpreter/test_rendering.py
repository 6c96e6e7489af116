"""Label maps as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from interpreter.rendering import label_map_path, write_label_maps
from interpreter.task import PALETTE, Task


def test_overlapping_classes_are_written_one_by_one(tmp_path: Path) -> None:
    """A cup inside its disc is in the label map alone; of lesions that overlap, each has a file of its own."""
    labels = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    masks = np.array([[[0, 1], [1, 0]], [[0, 0], [1, 1]]], dtype=np.bool_)
    for folder, layers, written in (
        ("discs", None, ["a.png"]),
        ("lesions", masks, ["a.png", "a/EX.png", "a/SE.png"]),
    ):
        task = Task(name=folder, targets=("EX", "SE"), overlapping=layers is not None)
        file = write_label_maps(tmp_path / folder, "eyes/a", labels, layers, task)
        assert file == tmp_path / folder / "eyes" / "a.png"
        assert sorted(path.relative_to(file.parent).as_posix() for path in file.parent.rglob("*.png")) == written
        np.testing.assert_array_equal(np.asarray(Image.open(file)), labels)
    for name, mask in zip(("EX", "SE"), masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "lesions" / "eyes" / "a" / f"{name}.png")), mask)


def test_each_image_has_a_picture_of_its_own_and_none_lies_elsewhere(tmp_path: Path) -> None:
    names = ["a/b_c", "a_b/c", "a/b/c", "eye", "eye_MA", "../../up"]
    files = {label_map_path(tmp_path, name) for name in names}
    assert len(files) == len(names)
    assert all(file.resolve().is_relative_to(tmp_path) for file in files)
    assert label_map_path(tmp_path, "stare/im0001.v2") == tmp_path / "stare" / "im0001.v2.png"


def test_colours_are_repeated_if_they_are_too_few() -> None:
    task = Task(name="many", targets=("a", "b", "c"), colours=("#ff0000", "#00ff00"))
    assert task.palette == ("#ff0000", "#00ff00", "#ff0000")
    assert Task(name="one", targets=("a",)).palette == PALETTE[:1]
    with pytest.raises(ValidationError):
        Task(name="none", targets=("a",), colours=())
