"""Label maps of stored photographs, and what each says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from interpreter.config import InterpreterConfig
from interpreter.data import all_images
from interpreter.network import Interpreter
from interpreter.segmenting import segment_into
from interpreter.task import Task
from store import FeatureSpec, FeatureStore, SpecMismatch
from store.errors import MissingEntry

TASK = Task(name="vessels", targets=("vessel",))


@pytest.fixture
def blind(spec: FeatureSpec) -> Interpreter:
    """An interpreter that finds nothing."""
    network = Interpreter(spec, InterpreterConfig(vss_max_size=0, max_width=8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network.eval()


def test_where_nothing_is_found_nothing_is_expected(
    filled_store: FeatureStore, spec: FeatureSpec, blind: Interpreter, tmp_path: Path
) -> None:
    images = all_images(filled_store, "eyes")
    found = list(segment_into(tmp_path, blind, filled_store, spec, TASK, images))
    rows = [one.row(tmp_path) for one in found]
    assert json.dumps(rows, allow_nan=False)
    assert {(row["share_vessel"], row["expected_dice_vessel"]) for row in rows} == {(0.0, None)}
    for one in found:
        assert not np.asarray(Image.open(one.file)).any()


def test_features_that_are_not_its_own_are_refused(
    filled_store: FeatureStore, spec: FeatureSpec, blind: Interpreter, tmp_path: Path
) -> None:
    images = all_images(filled_store, "eyes")
    other = spec.model_copy(update={"clip": not spec.clip})
    with pytest.raises(SpecMismatch, match="clip"):
        next(segment_into(tmp_path, blind, filled_store, other, TASK, images))
    with pytest.raises(MissingEntry, match="flip-h"):
        next(segment_into(tmp_path, blind, filled_store, spec, TASK, images, mirrored=True))
