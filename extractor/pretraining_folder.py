"""The folder of a pre-training run: which run it belongs to, the state to resume from, and its results."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import PretrainingError
from extractor.photographs import PreparedPhotographs
from extractor.pretraining_settings import PretrainingSettings
from store.files import read_json, replace_json, require_same_json

STATE_FOLDER = "state"
BACKBONE_FOLDER = "backbone"
PICTURES_FOLDER = "pictures"
SETTINGS_FILE = "settings.json"
PHOTOGRAPHS_FILE = "photographs.json"


class PretrainingFolder:
    """The files of one pre-training run.

    Args:
        path: created if missing.

    Attributes:
        new_state: folder to write a state to, which ``keep_new_state`` then makes the one to resume from.
        backbone: folder of the averaged backbone.
        tensorboard: folder of TensorBoard's events.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._state, self._former = path / STATE_FOLDER, path / f"{STATE_FOLDER}.old"
        self.new_state = path / f"{STATE_FOLDER}.new"
        self.backbone, self.tensorboard = path / BACKBONE_FOLDER, path / "tensorboard"

    def require_same_settings(self, settings: PretrainingSettings) -> None:
        """Raise PretrainingError if the folder's run has other settings, and record them; it may be longer, however."""
        mine = settings.model_dump(mode="json")
        free = {"steps", "checkpoint_every"}
        if settings.initial is not None:
            free.add("unet")  # the fingerprint stands for it; the configuration's keys vary with diffusers' version
        usual = PretrainingSettings(unet={}).model_dump(mode="json")  # for settings that former versions lacked
        require_same_json(
            self.path / SETTINGS_FILE,
            mine,
            lambda theirs: usual | theirs | {name: mine[name] for name in free},
            other=PretrainingError,
            damaged=PretrainingError,
        )

    def require_same_photographs(self, photographs: PreparedPhotographs) -> None:
        """Raise PretrainingError for other photographs than at the start: the same draws would give other crops."""
        file = self.path / PHOTOGRAPHS_FILE
        mine = {"photographs": len(photographs), "sha256": photographs.digest}
        if file.is_file() and (theirs := read_json(file, PretrainingError)) != mine:
            raise PretrainingError(
                f"{self.path} was begun with {theirs['photographs']} photographs, but not with these "
                f"{mine['photographs']}; give it the same, or choose another folder to start anew"
            )
        replace_json(file, mine)

    def complete_state(self) -> Path | None:
        """The folder of the last complete state, which a run killed while it renamed states left as the former one."""
        return next((folder for folder in (self._state, self._former) if folder.is_dir()), None)

    def keep_new_state(self) -> None:
        """Make the new state the one to resume from. At every moment one of two names has a complete state."""
        if self._state.is_dir():  # else the last complete state is the former one
            shutil.rmtree(self._former, ignore_errors=True)
            self._state.rename(self._former)
        self.new_state.rename(self._state)
        shutil.rmtree(self._former, ignore_errors=True)

    def save_picture(self, picture: NDArray[np.uint8], name: str, step: int) -> None:
        """Save a picture, uint8 (H, W, 3), drawn at a step."""
        pictures = self.path / PICTURES_FOLDER
        pictures.mkdir(exist_ok=True)
        Image.fromarray(picture).save(pictures / f"{name}_{step:07d}.png")
