"""Label maps as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from interpreter.rendering import write_label_maps
from interpreter.task import Task


def test_overlapping_classes_are_written_one_by_one(tmp_path: Path) -> None:
    """A cup inside its disc is in the label map alone; of lesions that overlap, each has a file of its own."""
    labels = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    masks = np.array([[[0, 1], [1, 0]], [[0, 0], [1, 1]]], dtype=np.bool_)
    for folder, layers, written in (
        ("discs", None, ["eyes_a.png"]),
        ("lesions", masks, ["eyes_a.png", "eyes_a_EX.png", "eyes_a_SE.png"]),
    ):
        task = Task(name=folder, targets=("EX", "SE"), overlapping=layers is not None)
        file = write_label_maps(tmp_path / folder, "eyes/a", labels, layers, task)
        assert file.name == "eyes_a.png"
        assert sorted(path.name for path in file.parent.iterdir()) == written
        np.testing.assert_array_equal(np.asarray(Image.open(file)), labels)
    for name, mask in zip(("EX", "SE"), masks, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "lesions" / f"eyes_a_{name}.png")), mask)
