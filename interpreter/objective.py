"""What a training minimises, as one module: the loss of a batch. Several processes wrap it as a whole."""

from __future__ import annotations

import torch
from torch import nn

from interpreter.heads.head import Maps
from interpreter.losses import loss_of
from interpreter.network import Interpreter
from interpreter.task import Task


class Objective(nn.Module):
    """The loss of an interpreter on a batch.

    Args:
        interpreter: what is trained.
        task: decides the loss.
        precision: of the head's arithmetic.
    """

    def __init__(self, interpreter: Interpreter, task: Task, precision: str) -> None:
        super().__init__()
        self.interpreter = interpreter
        self._measure = loss_of(task)
        self._half = precision == "bfloat16"

    def forward(self, maps: Maps, t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Loss; arguments as of ``Head.loss``."""
        with torch.autocast(truth.device.type, dtype=torch.bfloat16, enabled=self._half):
            loss: torch.Tensor = self.interpreter.head.loss(maps, t, truth, inside, self._in_float32)
        return loss

    def _in_float32(self, logits: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        with torch.autocast(truth.device.type, enabled=False):
            return self._measure(logits.float(), truth, inside)
