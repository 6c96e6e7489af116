"""Losses of logits against the ground truth, over the pixels that count.

b  images    n  scores    ...  pixels in any shape
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from interpreter.heads.head import Loss
from interpreter.task import Task


def loss_of(task: Task, known: torch.Tensor) -> Loss:
    """The loss that a task is trained with; for ``known`` see ``overlapping_loss``."""
    return partial(overlapping_loss, known=known) if task.overlapping else segmentation_loss


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice of the foreground classes.

    Args:
        logits: (b, n, ...).
        labels: class ids (b, ...).
        inside: bool (b, ...), the pixels that count.
    """
    from monai.losses import DiceCELoss  # imported late: takes seconds

    scores = logits.movedim(1, 0)[:, inside][None]  # (1, n, pixels)
    loss: torch.Tensor = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)(
        scores, labels[inside].long()[None, None]
    )
    return loss


def overlapping_loss(
    logits: torch.Tensor, bits: torch.Tensor, inside: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy plus soft Dice of each class.

    Args:
        logits: (b, n, ...).
        bits: uint8 (b, ...), bit i for class i (``Task.labels``).
        inside: bool (b, ...), the pixels that count.
        known: bool (b, n), whether it is known where a class is in an image; classes that are not known are left out.
    """
    from monai.losses import DiceLoss  # imported late: takes seconds

    scores = logits.movedim(1, 0)[:, inside]  # (n, pixels)
    shifts = torch.arange(len(scores), device=bits.device, dtype=torch.uint8)[:, None]
    truth = (bits[inside][None].bitwise_right_shift(shifts) & 1).to(scores.dtype)
    if known.all():
        dice: torch.Tensor = DiceLoss(sigmoid=True)(scores[None], truth[None])
        return functional.binary_cross_entropy_with_logits(scores, truth) + dice
    counted = known.T.repeat_interleave(inside.flatten(1).sum(dim=1), dim=1)  # (n, pixels)
    of_class = [
        DiceLoss(sigmoid=True)(s[c][None, None], t[c][None, None])
        for s, t, c in zip(scores, truth, counted, strict=True)
        if c.any()
    ]
    return functional.binary_cross_entropy_with_logits(scores[counted], truth[counted]) + torch.stack(of_class).mean()
