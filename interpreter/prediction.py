"""One prediction for each timestep, and the vote among them. Evaluation and service end here alike.

t  timesteps    n  classes    R  network's square    H, W  native size
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from interpreter.network import Interpreter
from store.encoded import Encoded
from store.features import Features
from store.geometry import Geometry, Interpolation


@dataclass(frozen=True)
class Prediction:
    """What the timesteps agree on.

    Attributes:
        labels: uint8 (R, R), the class with most votes; ties go to the larger mean probability.
        probabilities: float32 (n, R, R), mean over timesteps.
        votes: uint8 (n, R, R), how many timesteps chose each class.
        disagreement: float32 (R, R), entropy of the votes in nats, 0 where all agree.
        by_timestep: uint8 (t, R, R), each timestep's own labels.
    """

    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    votes: NDArray[np.uint8]
    disagreement: NDArray[np.float32]
    by_timestep: NDArray[np.uint8]


def vote(probabilities: NDArray[np.float32]) -> Prediction:
    """Majority over timesteps.

    Args:
        probabilities: float32 (t, n, R, R), summing to one over n.
    """
    steps, classes = probabilities.shape[:2]
    by_timestep = probabilities.argmax(axis=1).astype(np.uint8)
    votes = np.stack([(by_timestep == c).sum(axis=0) for c in range(classes)]).astype(np.uint8)
    mean = probabilities.mean(axis=0, dtype=np.float32)
    leading = votes == votes.max(axis=0)
    labels = np.where(leading, mean, -1).argmax(axis=0).astype(np.uint8)
    shares = votes / np.float32(steps)
    disagreement = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=0)
    return Prediction(labels, mean, votes, disagreement.astype(np.float32) + 0.0, by_timestep)


@torch.inference_mode()
def predict(interpreter: Interpreter, maps: Mapping[str, Encoded]) -> Prediction:
    """Read stored maps {block: Encoded (t, k, h, w)} at every timestep of the spec and vote."""
    interpreter.eval()
    probabilities = []
    for i, t in enumerate(interpreter.spec.timesteps):
        logits = interpreter.read({name: m[i : i + 1] for name, m in maps.items()}, torch.tensor([t]))
        probabilities.append(torch.softmax(logits, dim=1)[0].cpu().numpy())
    return vote(np.stack(probabilities))


def segment(interpreter: Interpreter, features: Features) -> tuple[Prediction, NDArray[np.uint8]]:
    """The vote at the network's size, and the label map at native size."""
    prediction = predict(interpreter, features.maps)
    return prediction, native_labels(prediction, features.fov, features.geometry)


def native_labels(prediction: Prediction, fov: NDArray[np.bool_], geometry: Geometry) -> NDArray[np.uint8]:
    """Labels uint8 (H, W), background outside the field of view.

    Votes plus mean probability order the classes as the vote does; carried to native size as
    numbers, they give smooth outlines where resized labels would give steps.
    """
    scores = np.moveaxis(prediction.votes + prediction.probabilities, 0, -1)
    native = geometry.restore(np.ascontiguousarray(scores, dtype=np.float32), Interpolation.LINEAR)
    labels: NDArray[np.uint8] = native.argmax(axis=-1).astype(np.uint8)
    labels[~geometry.restore(fov).astype(np.bool_)] = 0
    return labels
