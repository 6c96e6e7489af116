"""Scores of an experiment on disk, and what decided them: what was scored before is not scored again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interpreter.config import InterpreterConfig, with_current_defaults
from interpreter.data import Labelled
from interpreter.errors import CheckpointError
from interpreter.protocols.protocol import Experiment, ProtocolSettings
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from store.files import read_json, replace_json
from store.spec import FeatureSpec

SCORES_FILE = "scores.json"
FORMAT = 2
"""Of the summaries: 1 had points of 100. A trained network whose scores are of another one is scored anew."""


def inputs_of(
    experiment: Experiment,
    spec: FeatureSpec,
    settings: ProtocolSettings,
    task: Task,
    images: Sequence[Sequence[Labelled]],
    adapted_on: Sequence[Labelled],
) -> dict[str, Any]:
    """Everything that decides an experiment's scores, as JSON has it.

    Args:
        spec: of what it is trained on.
        images: of training and test.
        adapted_on: photographs that say what resolution the test images are read at, if that is chosen.
    """
    plain = dataclasses.asdict(experiment) | {
        "training_rules": experiment.training_rules.model_dump(),
        "scoring_rules": experiment.scoring_rules.model_dump(),
        "spec": spec.digest,
        "settings": settings.training(experiment.row, experiment.seed, experiment.labels).model_dump(),
        "config": settings.config(experiment.row, task).model_dump(),
        "task": task.model_dump(),
        "known": {image.dataset: image.known(task).tolist() for some in images for image in some},
        "images": [[_decisive(image, task) for image in some] for some in images],
        # Scores of before do not say that they are neither.
        **({"mirrored": True} if settings.mirrored else {}),
        **(_adapted(settings, adapted_on) if settings.adapt else {}),
    }
    normal: dict[str, Any] = json.loads(json.dumps(plain))
    return normal | {"row": _undescribed(normal["row"])}


def _undescribed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A method without its description, which decides nothing."""
    return {name: value for name, value in row.items() if name != "description"}


def _decisive(image: Labelled, task: Task) -> list[Any]:
    """What of an image decides scores: the photograph, and the masks of the task."""
    return [image.name, image.key.image_id, image.masks_of(task)]


def _adapted(settings: ProtocolSettings, images: Sequence[Labelled]) -> dict[str, Any]:
    return {"adapt": sorted(settings.adapt), "adapted_on": [image.key.image_id for image in images]}


def read_scores(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of an experiment's scores; None if there are none, or other inputs made them.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / SCORES_FILE
    if not path.is_file():
        return None
    known = read_json(path, CheckpointError)
    if isinstance(known, dict) and known.get("format", 1) < FORMAT:
        return None
    try:
        summary: dict[str, Any] = known["summary"]
        return summary if _with_current_defaults(known["inputs"]) == inputs else None
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: no scores of a protocol; remove the file to have them made anew") from error


def write_scores(folder: Path, inputs: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Keep a summary, and what decided it."""
    replace_json(folder / SCORES_FILE, {"format": FORMAT, "inputs": inputs, "summary": summary})


def _with_current_defaults(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs as an earlier version wrote them, with the defaults of what may be chosen since."""
    return inputs | {
        "row": _undescribed(inputs["row"]),
        "config": with_current_defaults(InterpreterConfig, inputs["config"]),
        "settings": with_current_defaults(TrainingSettings, inputs["settings"]),
    }
