"""The folder of a training: whose it is, and the state from which it goes on."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from interpreter.config import InterpreterConfig, with_current_defaults
from interpreter.errors import CheckpointError, ConfigurationError
from interpreter.settings import TrainingRecord
from store.files import read_json, replace_json, replaced

STATE_FILE = "state.pt"
RUN_FILE = "run.json"


class RunFolder:
    """One training's files.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def require_same_run(self, mine: dict[str, Any]) -> None:
        """A folder belongs to one spec, task, network, training and set of images.

        What the version that began it did not note cannot be compared.

        Raises:
            ConfigurationError: names what differs.
            CheckpointError: its record is damaged.
        """
        path = self.path / RUN_FILE
        if path.is_file():
            theirs = read_json(path, CheckpointError)
            if "config" in theirs:
                theirs["config"] = with_current_defaults(InterpreterConfig, theirs["config"])
            if "training" in theirs:
                theirs["training"] = with_current_defaults(TrainingRecord, theirs["training"])
            if differing := [field for field in mine if mine[field] != theirs.get(field, mine[field])]:
                listed = "; ".join(
                    line for field in differing for line in _differences(field, theirs[field], mine[field])
                )
                raise ConfigurationError(
                    f"{self.path} holds a training with other {', '.join(differing)} ({listed}); "
                    "choose another folder to start anew"
                )
        replace_json(path, mine)

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state; a process that is killed meanwhile leaves the former one."""
        with replaced(self.path / STATE_FILE) as partial:
            torch.save(state, partial)

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """What was saved last; None if nothing was. CheckpointError if it cannot be read."""
        path = self.path / STATE_FILE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:  # torch's ways to say that a file is damaged
            reason = next(iter(str(error).splitlines()), "it is empty")
            raise CheckpointError(
                f"{path}: damaged ({reason}); restore it, or choose another folder to start anew"
            ) from error
        return state


def _differences(name: str, former: Any, now: Any) -> list[str]:
    """What differs between two JSON values, each part by its path; of long lists their lengths."""
    if isinstance(former, dict) and isinstance(now, dict):
        keys = [key for key in {**former, **now} if former.get(key) != now.get(key)]
        return [line for key in keys for line in _differences(f"{name}.{key}", former.get(key), now.get(key))]
    if isinstance(former, (list, tuple)) and isinstance(now, (list, tuple)) and max(len(former), len(now)) > 5:
        others = len(set(map(str, former)) ^ set(map(str, now)))
        return [f"{name}: {len(former)}, now {len(now)}, {others} of them in one only"]
    return [f"{name}: {former}, now {now}"]
