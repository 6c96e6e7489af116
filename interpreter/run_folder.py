"""The folder of a training: which training it belongs to, and the state to resume from."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import BaseModel

from interpreter.config import InterpreterConfig, with_current_defaults
from interpreter.errors import CheckpointError, ConfigurationError
from interpreter.settings import TrainingRecord
from store.files import replaced, require_same_json

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
        require_same_json(self.path / RUN_FILE, mine, _completed, other=ConfigurationError, damaged=CheckpointError)

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


def _completed(theirs: dict[str, Any]) -> dict[str, Any]:
    """A record that an earlier version may have written, with the defaults of the fields added since."""
    kinds: dict[str, type[BaseModel]] = {"config": InterpreterConfig, "training": TrainingRecord}
    completed = {name: with_current_defaults(kinds[name], theirs[name]) for name in kinds if name in theirs}
    return theirs | completed
