"""Formats in which answers are written. To add one, add an ``Output`` to ``OUTPUTS``."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

import numpy as np

from interpreter.rendering import encode_labels, encode_picture, overlay
from service.answers import Answer
from service.dicom_seg import SegmentedBy, check_source, encode_segmentation
from service.errors import UnsupportedAnswer
from service.options import Options
from service.photographs import decode_photograph
from service.responses import to_response
from store.geometry import Interpolation


@dataclass(frozen=True)
class SourcePhotograph:
    """The photograph that an answer is about.

    Attributes:
        data: its bytes; None if the request had a key instead.
        max_pixels: larger photographs are refused.
    """

    data: bytes | None
    max_pixels: int

    def bytes_for(self, what: str) -> bytes:
        """The bytes of the photograph; UnsupportedAnswer, naming the output ``what``, if there are none."""
        if self.data is None:
            raise UnsupportedAnswer(f"{what} needs the photograph; send it instead of its key")
        return self.data


class Output(NamedTuple):
    """A format in which answers are written.

    Attributes:
        media_type: media type of the answer.
        suffix: suffix of files in this format.
        render: (answer, options, source) -> bytes.
        by_accept: whether ``Accept`` can ask for it by its media type; of outputs that share a type, only one can.
        check: raises UnsupportedAnswer if this output cannot be made for a source, before any work is done.
    """

    media_type: str
    suffix: str
    render: Callable[[Answer, Options, SourcePhotograph], bytes]
    by_accept: bool = True
    check: Callable[[SourcePhotograph], object] = lambda _source: None


def _json(answer: Answer, options: Options, _source: SourcePhotograph) -> bytes:
    return to_response(answer, options).model_dump_json().encode()


def _png(answer: Answer, _options: Options, _source: SourcePhotograph) -> bytes:
    return encode_labels(answer.labels, answer.colours)


def _overlay(answer: Answer, options: Options, source: SourcePhotograph) -> bytes:
    pixels = decode_photograph(source.bytes_for("an overlay"), source.max_pixels)
    return encode_picture(overlay(pixels, answer.labels, answer.colours, options.opacity))


def _has_pixels(source: SourcePhotograph) -> None:
    source.bytes_for("an overlay")


def _npz(answer: Answer, options: Options, _source: SourcePhotograph) -> bytes:
    """Labels, probabilities, masks of overlapping classes, and the maps that the options ask for, at native size.

    The file can be read with ``numpy.load``.
    """
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "labels": answer.labels,
        "probabilities": answer.native_probabilities().astype(np.float16),
        "classes": np.array(answer.classes),
        "timesteps": np.array(answer.timesteps, dtype=np.int64),
        "mirrored": np.array(answer.mirrored),
    }
    if answer.layers is not None:
        arrays["masks"] = answer.layers
    if options.uncertainty:
        arrays["uncertainty"] = answer.native_map(answer.uncertainty, Interpolation.LINEAR).astype(np.float16)
    if options.by_timestep:
        maps = [answer.native_map(one, Interpolation.NEAREST) for one in answer.prediction.labels_by_voter]
        arrays["by_timestep"] = np.stack(maps)
        arrays["voters"] = np.array(answer.voters)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stub mistakes the arrays for allow_pickle
    return buffer.getvalue()


def _dicom_seg(answer: Answer, options: Options, source: SourcePhotograph) -> bytes:
    made_by = SegmentedBy(
        answer.model,
        answer.version,
        metadata.version("diffdgss"),
        answer.mirrored,
        answer.timesteps,
        options.threshold,
        answer.abstain,
    )
    data = source.bytes_for("a DICOM SEG")
    asked = [i for i, name in enumerate(answer.classes) if i and name in (options.labels or answer.classes)]
    if not asked:
        raise UnsupportedAnswer("a DICOM SEG has no segment of the background; name another class in labels")
    masks = np.stack([answer.mask(i) for i in asked])
    classes = [answer.classes[0], *(answer.classes[i] for i in asked)]
    return encode_segmentation(data, masks, classes, [answer.colours[i - 1] for i in asked], made_by)


def _is_dicom(source: SourcePhotograph) -> None:
    check_source(source.bytes_for("a DICOM SEG"))


OUTPUTS: dict[str, Output] = {
    "json": Output("application/json", ".json", _json),
    "png": Output("image/png", ".png", _png),
    "overlay": Output("image/png", ".png", _overlay, by_accept=False, check=_has_pixels),
    "npz": Output("application/x-npz", ".npz", _npz),
    "dicom-seg": Output("application/dicom", ".dcm", _dicom_seg, check=_is_dicom),
}


def negotiate_output(output: str | None, accept: str) -> tuple[str, Output]:
    """The name and output that a client asked for: by name, or the one that its ``Accept`` prefers.

    Raises:
        UnsupportedAnswer: there is no such output.
    """
    if output is not None:
        if output not in OUTPUTS:
            raise UnsupportedAnswer(f"no output {output!r}; there are {', '.join(OUTPUTS)}")
        return output, OUTPUTS[output]
    ranges = _ranges(accept)
    wanted = {name: _preference(ranges, one.media_type) for name, one in OUTPUTS.items() if one.by_accept}
    best = max(wanted, key=lambda name: wanted[name])  # the first of equally preferred ones
    if wanted[best].quality > 0:
        return best, OUTPUTS[best]
    types = ", ".join(one.media_type for one in OUTPUTS.values() if one.by_accept)
    raise UnsupportedAnswer(f"cannot answer with {accept[:100]}; available are {types}")


class _Preference(NamedTuple):
    """How much a client prefers a media type: by quality, and among equal ones by their order in ``Accept``."""

    quality: float
    place: int


def _ranges(accept: str) -> list[tuple[str, float]]:
    """The (media range, quality) pairs of an ``Accept`` header, in its order."""
    ranges = []
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        ranges.append((media_type or "*/*", quality))
    return ranges


def _preference(ranges: Sequence[tuple[str, float]], media_type: str) -> _Preference:
    """The preference of the most specific range that matches a media type (RFC 9110, 12.5.1); quality 0 if none."""
    for pattern in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        for place, (found, quality) in enumerate(ranges):
            if found == pattern:
                return _Preference(quality, -place)
    return _Preference(0.0, 0)
