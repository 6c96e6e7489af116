"""Temperature scaling (Guo et al. 2017): one number that calibrates the probabilities.

It does not change any voter's choice, and changes the vote only where it is tied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional

from interpreter.data import LabelledImage, network_truth
from interpreter.network import Interpreter
from interpreter.rules import STRICT, Rules
from interpreter.task import Task
from store.feature_store import FeatureStore

PIXELS = 20_000  # drawn from each image
COLDEST, HOTTEST = 0.05, 20.0


@torch.inference_mode()
def fit_temperature(
    interpreter: Interpreter,
    store: FeatureStore,
    task: Task,
    images: Sequence[LabelledImage],
    rules: Rules = STRICT,
) -> float:
    """Fit the temperature that maximises the likelihood of the mean over voters, on SOURCE validation images.

    Args:
        images: labelled images with features in the store; none of them from the domain that is tested.

    Returns:
        The number to divide logits by, between 0.05 and 20.
    """
    interpreter.eval()
    logits, truths, counted = [], [], []
    for number, image in enumerate(images):
        entry = store.entry(interpreter.spec, image.key)
        truth = network_truth(store, entry, image, task, rules)
        features = entry.features()
        candidates = np.flatnonzero(rules.counted(features.fov))
        pixels = np.random.default_rng([number, len(candidates)]).choice(
            candidates, min(PIXELS, len(candidates)), False
        )
        read = interpreter.votes(features.maps, features.fov)
        votes = torch.cat([one.float().flatten(2) for one in read])  # (t, n, R R)
        logits.append(votes[..., torch.from_numpy(pixels).to(votes.device)].cpu().double())
        truths.append(torch.from_numpy(truth.ravel()[pixels]))
        counted.append(torch.from_numpy(image.known(task))[:, None].expand(-1, len(pixels)))
    scores, truth_of_all, known_of_all = torch.cat(logits, dim=2), torch.cat(truths), torch.cat(counted, dim=1)
    fitted = minimize_scalar(
        lambda log_t: _negative_log_likelihood(scores / math.exp(log_t), truth_of_all, known_of_all, task),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
    )
    return round(math.exp(fitted.x), 4)


def _negative_log_likelihood(logits: torch.Tensor, truth: torch.Tensor, known: torch.Tensor, task: Task) -> float:
    """Mean negative log-likelihood of the ground truth under the mean probability over voters.

    Args:
        logits: (t, n, pixels).
        truth: uint8 (pixels), as made by ``Task.labels``.
        known: bool (n, pixels), where it is known whether a class is present; used only if classes overlap.
    """
    if task.overlapping:
        shifts = torch.arange(logits.shape[1], dtype=torch.uint8)[:, None]
        bits = (truth[None].bitwise_right_shift(shifts) & 1).double()
        mean = torch.sigmoid(logits).mean(0).clamp(1e-12, 1 - 1e-12)
        return float(functional.binary_cross_entropy(mean[known], bits[known]))
    mean = torch.softmax(logits, dim=1).mean(0).clamp(min=1e-12)
    return float(functional.nll_loss(mean.log().T, truth.long()))
