"""How an answer is written. One more format is one more ``Output`` in ``OUTPUTS``."""

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
        data: its bytes; None where the answer was asked for by key.
        name: for messages.
        max_pixels: of one image.
    """

    data: bytes | None
    name: str
    max_pixels: int

    def bytes_for(self, what: str) -> bytes:
        """The bytes; UnsupportedAnswer where there are none."""
        if self.data is None:
            raise UnsupportedAnswer(f"{what} needs the photograph; send it instead of its key")
        return self.data


class Output(NamedTuple):
    """One way to write an answer.

    Attributes:
        media_type: of the answer, and by which ``Accept`` asks for it.
        suffix: of files.
        render: (answer, options, source) -> bytes.
        by_accept: whether the media type means this output; two may share one.
        check: raises UnsupportedAnswer for a source that cannot be answered so, before any work is done.
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
    pixels = decode_photograph(source.bytes_for("an overlay"), source.name, source.max_pixels)
    return encode_picture(overlay(pixels, answer.labels, answer.colours, options.opacity))


def _has_pixels(source: SourcePhotograph) -> None:
    source.bytes_for("an overlay")


def _npz(answer: Answer, options: Options, _source: SourcePhotograph) -> bytes:
    """Labels, probabilities and masks of overlapping classes at native size, and what else was asked for.

    ``numpy.load`` reads it.
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
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stub takes its own option for an array
    return buffer.getvalue()


def _dicom_seg(answer: Answer, _options: Options, source: SourcePhotograph) -> bytes:
    made_by = SegmentedBy(answer.model, answer.version, metadata.version("diffdgss"), answer.mirrored)
    data = source.bytes_for("a DICOM SEG")
    masks = np.stack([answer.mask(i) for i in range(1, len(answer.classes))])
    return encode_segmentation(data, source.name, masks, answer.classes, answer.colours, made_by)


def _is_dicom(source: SourcePhotograph) -> None:
    check_source(source.bytes_for("a DICOM SEG"), source.name)


OUTPUTS: dict[str, Output] = {
    "json": Output("application/json", ".json", _json),
    "png": Output("image/png", ".png", _png),
    "overlay": Output("image/png", ".png", _overlay, by_accept=False, check=_has_pixels),
    "npz": Output("application/x-npz", ".npz", _npz),
    "dicom-seg": Output("application/dicom", ".dcm", _dicom_seg, check=_is_dicom),
}


def negotiated(output: str | None, accept: str) -> tuple[str, Output]:
    """The output that a client asked for: by name, or the best of its ``Accept``.

    Raises:
        UnsupportedAnswer: nobody here writes it.
    """
    if output is not None:
        if output not in OUTPUTS:
            raise UnsupportedAnswer(f"no output {output!r}; there are {', '.join(OUTPUTS)}")
        return output, OUTPUTS[output]
    ranges = _ranges(accept)
    wanted = {name: _preference(ranges, one.media_type) for name, one in OUTPUTS.items() if one.by_accept}
    best = max(wanted, key=lambda name: wanted[name])  # of equal ones the first
    if wanted[best].quality > 0:
        return best, OUTPUTS[best]
    types = ", ".join(one.media_type for one in OUTPUTS.values() if one.by_accept)
    raise UnsupportedAnswer(f"cannot answer with {accept[:100]}; these can be had: {types}")


class _Preference(NamedTuple):
    """How much a media type is wanted: by its quality, and of equal ones by which the client named first."""

    quality: float
    place: int


def _ranges(accept: str) -> list[tuple[str, float]]:
    """(media range, quality) of an ``Accept`` header, as they stand there."""
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
    """That of the most specific range which has a media type (RFC 9110, 12.5.1); quality 0 where none has."""
    for pattern in (media_type, media_type.split("/")[0] + "/*", "*/*"):
        for place, (found, quality) in enumerate(ranges):
            if found == pattern:
                return _Preference(quality, -place)
    return _Preference(0.0, 0)
