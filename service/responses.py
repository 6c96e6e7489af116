"""Conversion of answers to the JSON response."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from interpreter.domain import DomainScore
from interpreter.rendering import encode_labels, encode_picture
from service.answers import Answer
from service.options import Options
from service.schemas import ClassResult, DomainResult, FieldOfView, RunLengths, SegmentResponse
from store.geometry import Interpolation

T = TypeVar("T")


def to_response(answer: Answer, options: Options) -> SegmentResponse:
    """The response to an answer, with the mask encoded and the maps included as the options say."""
    height, width = answer.labels.shape
    domain, fov = answer.domain, answer.fov
    mask = options.mask

    def as_png(i: int, one: NDArray[np.uint8]) -> str:
        return _base64(encode_labels(one, [answer.colours[i]]))

    return SegmentResponse(
        image_id=answer.image_id,
        key=answer.key,
        width=width,
        height=height,
        model=answer.model,
        version=answer.version,
        spec=answer.spec,
        timesteps=list(answer.timesteps),
        mirrored=answer.mirrored,
        classes=_classes(answer),
        mean_agreement=answer.mean_agreement,
        mean_uncertainty=float(answer.uncertainty[fov].mean()),
        domain=None if domain is None else _domain(domain),
        abstain=answer.abstain,
        field_of_view=FieldOfView(**answer.box._asdict()),
        cached=answer.cached,
        forwards=answer.forwards,
        seconds={stage: round(seconds, 4) for stage, seconds in answer.seconds.items()},
        mask_png=_base64(encode_labels(answer.labels, answer.colours)) if mask == "png" else None,
        mask_rle=run_lengths(answer.labels) if mask == "rle" else None,
        masks_png=_of_each(answer, as_png) if mask == "png" else None,
        masks_rle=_of_each(answer, lambda _, one: run_lengths(one)) if mask == "rle" else None,
        by_timestep=_by_timestep(answer) if options.by_timestep else None,
        uncertainty_png=_uncertainty(answer) if options.uncertainty else None,
        warnings=list(answer.warnings),
    )  # fmt: skip


def run_lengths(labels: NDArray[np.uint8]) -> RunLengths:
    """Encode a label map (H, W) as run lengths in row-major order."""
    flat = labels.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    height, width = labels.shape
    return RunLengths(height=height, width=width, values=flat[starts].tolist(), lengths=lengths.tolist())


def _classes(answer: Answer) -> list[ClassResult]:
    colours, fov, areas = answer.colours, answer.fov, answer.areas
    prediction, steps = answer.prediction, len(answer.prediction.labels_by_voter)
    expected = (None, *answer.expected_dice.values())
    results = []
    for i, name in enumerate(answer.classes):
        here = (prediction.masks[i - 1] if i else prediction.labels == 0)[fov]
        some = bool(here.any())
        results.append(
            ClassResult(
                id=i,
                name=name,
                colour=colours[i - 1] if i else None,
                pixels=areas[name].pixels,
                share=areas[name].share,
                score=float(prediction.probabilities[i][fov][here].mean()) if some else None,
                agreement=float(prediction.votes[i][fov][here].mean() / steps) if some else None,
                expected_dice=expected[i],
            )
        )
    return results


def _of_each(answer: Answer, written: Callable[[int, NDArray[np.uint8]], T]) -> dict[str, T] | None:
    """{class: its own mask, 0 and 1, as encoded by ``written``}; None for models whose classes cannot overlap."""
    if answer.layers is None:
        return None
    layers = enumerate(answer.layers.astype(np.uint8))
    return {name: written(i, layer) for name, (i, layer) in zip(answer.classes[1:], layers, strict=True)}


def _domain(score: DomainScore) -> DomainResult:
    return DomainResult(
        distance=score.distance,
        threshold=score.threshold,
        residual=score.residual,
        residual_range=score.residual_range,
        abstain=score.abstain,
    )


def _by_timestep(answer: Answer) -> dict[str, str]:
    masks = {}
    for voter, labels in zip(answer.voters, answer.prediction.labels_by_voter, strict=True):
        native = answer.native_map(labels, Interpolation.NEAREST).astype(np.uint8)
        masks[voter] = _base64(encode_labels(native, answer.colours))
    return masks


def _uncertainty(answer: Answer) -> str:
    native = answer.native_map(answer.uncertainty, Interpolation.LINEAR)
    return _base64(encode_picture((255 * native).clip(0, 255).round().astype(np.uint8)))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
