"""Linear probes: how much each timestep, block and encoding by itself tells about a target.

A probe is a logistic regression from the channels of one feature map to one target, pixel by pixel; probes are a usual
way to ask what a representation holds (Alain and Bengio 2016; for diffusion features, Baranchuk et al. 2022). Maps are
read at pixels of the network's square by bilinear interpolation, as if they had been upsampled.

    n  pixels    c  channels of a block    t  timesteps    h, w  size of a map    R  network's square
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional

from interpreter.bilinear import at_pixels
from interpreter.curves import PooledPixels
from interpreter.data import LabelledImage, network_truth
from interpreter.errors import DataError
from interpreter.rules import STRICT
from interpreter.splits import split_off
from interpreter.stored import require_features
from interpreter.task import Task
from store.codecs import Codec
from store.feature_store import FeatureStore
from store.features import FeatureEntry
from store.spec import FeatureSpec

PENALTY = 1e-3


class ProbeSettings(BaseModel):
    """How probes are fitted and scored.

    Attributes:
        pixels: number drawn from each training image, half of them from the target if it has so many.
        scored_pixels: number drawn uniformly from each held-out image, so that the target stays as rare as it is.
        held_out: share of the images, in whole groups, that probes are scored on if no others are named.
        seed: decides which images are held out and which pixels are drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pixels: int = Field(default=2000, ge=2)
    scored_pixels: int = Field(default=20_000, ge=2)
    held_out: float = Field(default=0.4, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class ProbeResult:
    """The score of one probe.

    Attributes:
        average_precision: over the pixels drawn from the held-out images, 0..1; guessing scores ``prevalence``.
        prevalence: share of these pixels that belong to the target.
    """

    target: str
    encoding: str
    timestep: int
    block: str
    average_precision: float
    prevalence: float


@dataclass(frozen=True)
class _Drawn:
    """Pixels of one image.

    Attributes:
        entry: its features.
        pixels: for each target that is known there, flat indices (n) into (R, R).
        truth: whether these pixels belong to the target, bool (n).
    """

    entry: FeatureEntry
    pixels: Mapping[str, NDArray[np.intp]]
    truth: Mapping[str, NDArray[np.bool_]]


def probe(
    store: FeatureStore,
    spec: FeatureSpec,
    targets: Sequence[str],
    images: Sequence[LabelledImage],
    encodings: Mapping[str, Codec | None],
    settings: ProbeSettings | None = None,
    scored_on: Sequence[LabelledImage] = (),
) -> list[ProbeResult]:
    """Fit and score a probe for every target, encoding, timestep and block.

    Args:
        targets: names of targets of the data sets. An image without a mask of one is taken to have none of it, and is
            not used for it if no image of its data set has such a mask (``LabelledImage.known``).
        images: labelled images; some are held out by seed if ``scored_on`` is empty.
        encodings: {name: codec that maps are encoded and decoded with first}; None reads maps as they are stored.
        scored_on: score on these images, such as those of another camera, and fit to all of ``images``.

    Raises:
        DataError: features are missing, no image can be held out, an image is both in ``images`` and in ``scored_on``,
            or a target has no pixel in the training images or none in the held-out ones.
    """
    settings = settings or ProbeSettings()
    require_features(store, spec, [*images, *scored_on])
    train, held_out = (images, scored_on) if scored_on else split_off(images, settings.held_out, settings.seed)
    if not held_out:
        raise DataError(f"{len(images)} image(s) are too few for a probe; one has to be held out")
    if both := {one.key for one in train} & {one.key for one in held_out}:
        names = sorted(one.name for one in train if one.key in both)
        raise DataError(f"{names[0]} is both fitted to and scored on; take it out of one of them")
    fitted = [_draw(store, spec, image, targets, settings, balanced=True) for image in train]
    scored = [_draw(store, spec, image, targets, settings, balanced=False) for image in held_out]
    fitted_truth = {target: _truth(target, fitted, "training") for target in targets}
    scored_truth = {target: _truth(target, scored, "held-out") for target in targets}
    results = defaultdict[tuple[str, str], list[ProbeResult]](list)
    for block, (encoding, codec) in product(spec.blocks, encodings.items()):
        x, unseen = _sampled(block.name, fitted, codec), _sampled(block.name, scored, codec)
        for target in targets:
            y, truth = fitted_truth[target], scored_truth[target]
            for t, mine, theirs in zip(spec.timesteps, x[target], unseen[target], strict=True):
                precision = _precision(mine, y, theirs, truth)
                result = ProbeResult(target, encoding, t, block.name, precision, float(truth.mean()))
                results[target, encoding].append(result)
    return [result for place in product(targets, encodings) for result in results[place]]


def fit_logistic(
    x: torch.Tensor, y: torch.Tensor, penalty: float = PENALTY, iterations: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and offset that minimise mean cross-entropy + penalty / 2 |w|^2, by L-BFGS.

    Args:
        x: float64 (n, c), standardised.
        y: bool (n).

    Returns:
        w float64 (c), b float64 ().
    """
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-6)
    labels = y.to(x.dtype)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(x @ w + b, labels) + penalty / 2 * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]  # it takes what backward was called on, too
    return w.detach(), b.detach()


def _precision(x: torch.Tensor, y: NDArray[np.bool_], unseen: torch.Tensor, truth: NDArray[np.bool_]) -> float:
    """Fit a probe to x (n, c) and y (n), and return its average precision on ``unseen`` pixels with their ``truth``."""
    mean, deviation = x.double().mean(dim=0), x.double().std(dim=0).clamp_min(1e-6)
    w, b = fit_logistic((x.double() - mean) / deviation, torch.from_numpy(y))
    scores = ((unseen.double() - mean) / deviation) @ w + b
    pooled = PooledPixels()
    pooled.add(scores.float().numpy(), truth, np.ones_like(truth))
    return pooled.average_precision()


def _draw(
    store: FeatureStore,
    spec: FeatureSpec,
    image: LabelledImage,
    targets: Sequence[str],
    settings: ProbeSettings,
    *,
    balanced: bool,
) -> _Drawn:
    """Draw pixels of an image inside its field of view for each target; the seed includes the image's id."""
    entry, task = store.entry(spec, image.key), Task(name="probed", targets=tuple(targets), overlapping=True)
    masks = np.zeros((len(targets), *entry.fov.shape), dtype=np.bool_)
    if task.takes(image.sample.masks):
        masks = task.members(network_truth(store, entry, image, task, STRICT))
    inside, pixels, truth = entry.fov.ravel(), dict[str, NDArray[np.intp]](), dict[str, NDArray[np.bool_]]()
    for target, known, mask in zip(targets, image.known(task), masks, strict=True):
        if known:
            random = np.random.default_rng([settings.seed, int(image.key.image_id[:16], 16)])
            pixels[target] = (
                _drawn_from_both(inside, mask.ravel(), settings.pixels, random)
                if balanced
                else _drawn_from(inside, settings.scored_pixels, random)
            )
            truth[target] = mask.ravel()[pixels[target]]
    return _Drawn(entry, pixels, truth)


def _drawn_from(there: NDArray[np.bool_], count: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Draw the indices of ``count`` pixels of a region, or of all if it has fewer."""
    found = np.flatnonzero(there)
    return random.choice(found, min(len(found), count), replace=False)


def _drawn_from_both(
    inside: NDArray[np.bool_], target: NDArray[np.bool_], count: int, random: np.random.Generator
) -> NDArray[np.intp]:
    """Draw the indices of ``count`` pixels, half of them from the target if it has so many."""
    there = _drawn_from(inside & target, count // 2, random)
    return np.concatenate([there, _drawn_from(inside & ~target, count - len(there), random)])


def _truth(target: str, drawn: Sequence[_Drawn], where: str) -> NDArray[np.bool_]:
    """Whether the drawn pixels of all images belong to the target, bool (n of all images)."""
    found = [one.truth[target] for one in drawn if target in one.truth]
    if not any(truth.any() for truth in found):
        raise DataError(f"no pixel of {target} in the {where} images; name more images or another --seed")
    return np.concatenate(found)


def _sampled(block: str, drawn: Sequence[_Drawn], through: Codec | None) -> dict[str, torch.Tensor]:
    """Read one block of all images, each once: {target: (t, n of all images, c)} at the drawn pixels."""
    parts = defaultdict[str, list[torch.Tensor]](list)
    for one in drawn:
        maps = one.entry.codec.decode(block, one.entry.encoded(block))
        if through is not None:
            maps = through.decode(block, through.encode(block, maps))
        for target, pixels in one.pixels.items():
            parts[target].append(at_pixels(maps, torch.from_numpy(pixels)[None], one.entry.spec.resolution))
    return {target: torch.cat(parts.pop(target), dim=1) for target in list(parts)}
