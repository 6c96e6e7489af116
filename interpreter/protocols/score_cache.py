"""Scores of experiments, kept on disk with all inputs that decide them, so that nothing is scored twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from interpreter.config import InterpreterConfig, with_current_defaults
from interpreter.data import LabelledImage, known_targets
from interpreter.errors import CheckpointError
from interpreter.protocols.protocol import Experiment, ProtocolSettings
from interpreter.rules import Rules
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from store.files import read_json, replace_json
from store.spec import FeatureSpec

SCORES_FILE = "scores.json"
FORMAT = 2
"""Version of the file; version 1 had points of 100. A network with scores of an earlier version is scored again."""


def inputs_of(
    experiment: Experiment,
    spec: FeatureSpec,
    settings: ProtocolSettings,
    task: Task,
    images: tuple[Sequence[LabelledImage], Sequence[LabelledImage]],
    adapted_on: Sequence[LabelledImage],
) -> dict[str, Any]:
    """Collect everything that decides an experiment's scores, as plain JSON values.

    Args:
        spec: the spec of the features that it is trained on.
        images: the training images and the test images.
        adapted_on: the photographs that decide at which resolution test images are read, with the setting ``adapt``.
    """
    plain = dataclasses.asdict(experiment) | {
        "training_rules": experiment.training_rules.model_dump(),
        "scoring_rules": experiment.scoring_rules.model_dump(),
        "spec": spec.digest,
        "settings": settings.training(experiment.row, experiment.seed, experiment.labels).model_dump(),
        "config": settings.config(experiment.row, task).model_dump(),
        "task": task.model_dump(),
        "known": known_targets(chain(*images), task),
        "images": [
            [_fingerprint(image, task, rules) for image in some]
            for some, rules in zip(images, (experiment.training_rules, experiment.scoring_rules), strict=True)
        ],
        # Left out when off, as in files from before these settings existed.
        **({"mirrored": True} if settings.mirrored else {}),
        **(_adapted(settings, adapted_on) if settings.adapt else {}),
    }
    normal: dict[str, Any] = json.loads(json.dumps(plain))
    return normal | {"row": _without_description(normal["row"])}


def _without_description(row: Mapping[str, Any]) -> dict[str, Any]:
    """A method without its description, which does not affect scores."""
    return {name: value for name, value in row.items() if name != "description"}


def _fingerprint(image: LabelledImage, task: Task, rules: Rules) -> list[Any]:
    """The facts of an image that affect scores: its name, photograph, ground truth and, if it has one, its group."""
    group = [] if image.sample.group is None else [image.sample.group]
    return [image.name, image.key.image_id, image.truth_facts(task, rules), *group]


def _adapted(settings: ProtocolSettings, images: Sequence[LabelledImage]) -> dict[str, Any]:
    return {"adapt": sorted(settings.adapt), "adapted_on": [image.key.image_id for image in images]}


def read_scores(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the summary of an experiment's scores; None if there is none for these inputs in the current format.

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
        raise CheckpointError(
            f"{path}: expected the scores of an experiment; remove the file to have it scored again"
        ) from error


def write_scores(folder: Path, inputs: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Write a summary of scores with the inputs that decided it."""
    replace_json(folder / SCORES_FILE, {"format": FORMAT, "inputs": inputs, "summary": summary})


def _with_current_defaults(inputs: dict[str, Any]) -> dict[str, Any]:
    """Complete inputs that an earlier version wrote with the defaults of settings added since."""
    return inputs | {
        "row": _without_description(inputs["row"]),
        "config": with_current_defaults(InterpreterConfig, inputs["config"]),
        "settings": with_current_defaults(TrainingSettings, inputs["settings"]),
    }
