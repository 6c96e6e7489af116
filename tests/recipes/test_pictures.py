"""Pictures of what should not be asked: every model answers, and what may not be shown is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from interpreter.checkpoint import shipped
from recipes.pictures import CAPTION, SIDE, ask, photographs
from service.engine import Engine, Limits
from service.metrics import Metrics
from service.models import load_models
from service.storage import GuardedStore
from store.feature_store import FeatureStore


def test_every_model_says_how_far_an_astronaut_is(tmp_path: Path) -> None:
    astronaut = next(one for one in photographs() if one.title == "an astronaut")
    models = load_models(shipped())
    engine = Engine(
        models, GuardedStore(lambda: FeatureStore(tmp_path / "f.zarr"), Metrics(), 60.0), Limits(), Metrics()
    )
    told, picture = ask(engine, [astronaut, dataclasses.replace(astronaut, displayed=False)])
    assert [one.model for one in told] == 2 * list(models.by_name)
    assert all(one.abstains for one in told)
    assert told[: len(models.by_name)] == told[len(models.by_name) :]
    assert picture.shape == (2 * (SIDE + CAPTION), (1 + len(models.by_name)) * SIDE, 3)
    shown, hidden = picture[:SIDE, :SIDE], picture[SIDE + CAPTION : 2 * SIDE + CAPTION, :SIDE]
    assert shown.std() > 30
    assert not np.any(hidden)


def test_there_is_a_retina_among_them() -> None:
    assert [one.title for one in photographs([])] == ["a retina", "an astronaut"]
    with pytest.raises(FileNotFoundError):
        photographs([Path("absent.png")])
