"""Logging of a training to TensorBoard: loss, metrics, pictures."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from interpreter.data import LabelledImage
from interpreter.prediction import Segmentation
from interpreter.rendering import draw_comparison
from interpreter.task import Task

if TYPE_CHECKING:
    from interpreter.evaluation import Compared, OnImage, Scores

PICTURES = 4


class Recorder:
    """Logs to ``tensorboard/`` in a folder; without a folder (in processes other than the first) it logs nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # imported late: takes a second

            self._writer = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def loss(self, loss: float, step: int) -> None:
        self._scalar("loss", loss, step)

    def epoch(self, epoch: int, data_wait_share: float, learning_rate: float) -> None:
        self._scalar("data_wait_share", data_wait_share, epoch)
        self._scalar("learning_rate", learning_rate, epoch)

    def scores(self, scores: Scores, epoch: int) -> None:
        """Log every figure of ``Scores.figures`` as ``validation/NAME``."""
        for name, value in scores.figures().items():
            self._scalar(f"validation/{name}", value, epoch)

    def pictures(self, epoch: int, task: Task) -> OnImage:
        """Return a callback that logs pictures of the first few predictions against their ground truth."""
        left = iter(range(PICTURES))

        def draw(image: LabelledImage, _: Segmentation, compared: Compared) -> None:
            if self._writer is not None and next(left, None) is not None:
                known = image.known(task)
                picture = draw_comparison(compared.masks[known], compared.truth[known], compared.inside)
                self._writer.add_image(image.name, picture, epoch, dataformats="HWC")

        return draw

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)
