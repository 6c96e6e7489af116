"""What a training minimises, as one module: the loss of a batch. With several processes it is wrapped as a whole."""

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
        interpreter: the network that is trained.
        task: decides which loss is used.
        precision: ``float32`` or ``bfloat16``, for the head's arithmetic; losses are always float32.
    """

    def __init__(self, interpreter: Interpreter, task: Task, precision: str) -> None:
        super().__init__()
        self.interpreter = interpreter
        self._task = task
        self._half = precision == "bfloat16"

    def forward(
        self, maps: Maps, t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """The loss of a batch; for the arguments see ``Head.loss``, and for ``known`` ``overlapping_loss``."""
        loss_of_logits = loss_of(self._task, known)

        def in_float32(logits: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
            with torch.autocast(truth.device.type, enabled=False):
                return loss_of_logits(logits.float(), truth, inside)

        with torch.autocast(truth.device.type, dtype=torch.bfloat16, enabled=self._half):
            loss: torch.Tensor = self.interpreter.head.loss(maps, t, truth, inside, in_float32)
        return loss
