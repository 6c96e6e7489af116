"""Decoding of photographs in the formats that the operator allows, and warnings about their quality.

Each kind of file has a decoder in ``DECODERS``; the first one that recognises the bytes decodes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from extractor.errors import ImageError
from extractor.images import SUFFIXES as IMAGE_SUFFIXES
from extractor.images import TIFF_SIGNATURES, decode_image
from service.dicom import decode_dicom, is_dicom
from service.settings import FORMATS as FORMATS

Pixels = NDArray[np.uint8]
SUFFIXES = IMAGE_SUFFIXES | {".dcm", ".dicom"}


class Decoder(NamedTuple):
    """Decoder of one kind of file.

    Attributes:
        name: name of the format, as in the setting ``formats``.
        recognises: returns whether bytes are of this format, judged by the first of them.
        decode: (bytes, most pixels) -> uint8 (H, W, 3); raises ImageError.
    """

    name: str
    recognises: Callable[[bytes], bool]
    decode: Callable[[bytes, int], Pixels]


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(signatures)


# DICOM first: its preamble may hold the signature of another format, most often TIFF.
DECODERS: list[Decoder] = [
    Decoder("DICOM", is_dicom, decode_dicom),
    Decoder("PNG", _starts(b"\x89PNG\r\n\x1a\n"), decode_image),
    Decoder("JPEG", _starts(b"\xff\xd8\xff"), decode_image),
    Decoder("TIFF", _starts(*TIFF_SIGNATURES), decode_image),
    Decoder("PPM", _starts(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), decode_image),
    Decoder("GIF", _starts(b"GIF87a", b"GIF89a"), decode_image),
    Decoder("BMP", _starts(b"BM"), decode_image),
]


def decode_photograph(data: bytes, max_pixels: int, formats: Sequence[str] = FORMATS) -> Pixels:
    """Decode a photograph to uint8 (H, W, 3), RGB, upright.

    Raises:
        ImageError: the file is of none of the formats, or damaged.
        ImageTooLarge: the photograph has more than ``max_pixels``.
    """
    if not data:
        raise ImageError("the file is empty")
    for decoder in DECODERS:
        if decoder.recognises(data):
            if decoder.name not in formats:
                raise ImageError(f"{decoder.name} is not accepted here; expected one of {', '.join(formats)}")
            return decoder.decode(data, max_pixels)
    raise ImageError(f"not an image of a known format; expected one of {', '.join(formats)}")


QUALITY_SIDE = 512
DARK_BELOW = 35.0
SATURATED_ABOVE = 0.10
BLURRED_BELOW = 0.022
SMALL_BELOW = 256


def quality_warnings(pixels: Pixels, fov: NDArray[np.bool_]) -> list[str]:
    """Return warnings about the quality of a photograph, which is segmented all the same.

    A photograph is small if its longer side has fewer than 256 pixels. The rest is measured inside the field of view at
    512 pixels or less: median brightness (dark), share of saturated pixels (over-exposed), and the standard deviation
    of the green channel's Laplacian divided by its mean brightness (blurred).

    Args:
        pixels: uint8 (H, W, 3).
        fov: field of view, bool (H, W).
    """
    height, width = fov.shape
    found = []
    if max(height, width) < SMALL_BELOW:
        found.append(f"small: {width} x {height} pixels; it lacks the detail of the training photographs")
    shrink = min(1.0, QUALITY_SIDE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    inside = cv2.resize(fov.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    inside = cv2.erode(inside, np.ones((9, 9), np.uint8)).astype(np.bool_)
    if not inside.any():
        return found
    brightness = small.max(axis=2)
    level = float(np.median(brightness[inside]))
    if level < DARK_BELOW:
        found.append(f"dark: the median brightness inside the field of view is {level:.0f} of 255")
    saturated = float((small.min(axis=2)[inside] >= 250).mean())
    if saturated > SATURATED_ABOVE:
        found.append(f"over-exposed: {100 * saturated:.0f} % of the field of view is saturated")
    detail = float(cv2.Laplacian(small[..., 1], cv2.CV_32F)[inside].std()) / max(
        1.0, float(small[..., 1][inside].mean())
    )
    if detail < BLURRED_BELOW:
        found.append("blurred: there is little fine detail inside the field of view")
    return found
