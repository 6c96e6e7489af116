"""The folder of a training: which training it belongs to, and the state to resume from."""

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
    """The files of one training.

    Args:
        path: created if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ConfigurationError(f"{path}: is a file; expected a folder for the training")
        path.mkdir(parents=True, exist_ok=True)

    def require_same_run(self, mine: dict[str, Any]) -> None:
        """Check that the folder belongs to this training, and record it there.

        A folder belongs to one spec, task, network, training and set of images. Fields that were not recorded by the
        version which began the training are not compared.

        Raises:
            ConfigurationError: the folder holds another training; the message names what differs.
            CheckpointError: the folder's record is damaged.
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
        """Replace the saved state atomically; a process that is killed meanwhile leaves the former one."""
        with replaced(self.path / STATE_FILE) as partial:
            torch.save(state, partial)

    def load_state(self) -> dict[str, Any] | None:
        """Return the state saved last, on the CPU; None if there is none; raises CheckpointError if it is damaged."""
        path = self.path / STATE_FILE
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:  # what torch raises for damaged files
            reason = next(iter(str(error).splitlines()), "it is empty")
            raise CheckpointError(
                f"{path}: damaged ({reason}); restore it, or choose another folder to start anew"
            ) from error
        return state


def _differences(name: str, former: Any, now: Any) -> list[str]:
    """Describe where two JSON values differ, a line for each part, by its path; for long lists give their lengths."""
    if isinstance(former, dict) and isinstance(now, dict):
        keys = [key for key in {**former, **now} if former.get(key) != now.get(key)]
        return [line for key in keys for line in _differences(f"{name}.{key}", former.get(key), now.get(key))]
    if isinstance(former, (list, tuple)) and isinstance(now, (list, tuple)) and max(len(former), len(now)) > 5:
        others = len(set(map(str, former)) ^ set(map(str, now)))
        return [f"{name}: {len(former)}, now {len(now)}, {others} of them in one only"]
    return [f"{name}: {former}, now {now}"]
