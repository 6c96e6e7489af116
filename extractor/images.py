"""Decoding of image files to pixels.

Every image is returned as uint8 (H, W, 3), RGB, upright: EXIF orientation is applied, grey is
repeated, alpha is laid over black, CMYK is converted, 16 bits become 8 by keeping the high byte.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from extractor.errors import ImageError, ImageTooLarge

FORMATS = ("PNG", "JPEG", "TIFF", "PPM", "GIF", "BMP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".gif", ".bmp"})
MAX_PIXELS = 120_000_000
MAX_SCANS = 100
"""Most scans accepted in a JPEG. A progressive one has about ten; each is decoded over the whole image, however few
bytes it has."""
MAX_PAGES = 100
"""Most pages of a TIFF that are looked at; a damaged one may seem to have no end of them."""
_NEW_SUBFILE_TYPE = 254
TIFF_SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""First bytes of TIFFs, the last two of BigTIFFs."""
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker of a JPEG that begins a segment with a length; restarts and escaped bytes within a scan do not match."""
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_DIMMEST = 1 << 14
"""Least maximum of a 16-bit photograph: if it is below a quarter of the range, the values have fewer bits."""
_ONE_EACH = "save one mask for each target, with two values"


def is_image_name(path: PurePath, suffixes: Collection[str] = SUFFIXES) -> bool:
    """Return whether a name is that of an image; hidden files, such as the ``._a.png`` of macOS, are none."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def image_id(data: bytes) -> str:
    """The sha256 of a file's bytes, which identifies the photograph in the store."""
    return hashlib.sha256(data).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Read a file; ImageError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode a photograph.

    Args:
        data: contents of a PNG, JPEG, TIFF, PPM, GIF or BMP file.
        max_pixels: larger images are refused before their pixels are decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ImageError: not an image of these formats, truncated, or empty.
        ImageTooLarge: more than ``max_pixels``.
    """
    image = _open(data, max_pixels)
    deep = image.mode.startswith("I") or image.mode == "F"
    pixels = _deep_to_8_bit(np.asarray(image)) if deep else np.asarray(_to_rgb(image))
    if not deep and _has_16_bits(data):  # Pillow has already reduced 16-bit colours to their high byte
        _require_lit(int(pixels.max(initial=0)) << 8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels, dtype=np.uint8)


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """Decode a binary mask to bool (H, W).

    Data sets have masks of any two values, in any colour, with one bit or with a palette. Of two values the larger is
    True (of two colours, the one whose brightest channel is larger). If there are more, as at the rims of JPEG and soft
    masks, values above the middle of 0..255 are True (in 16-bit masks, values above half of the largest).

    Raises:
        ImageError: the file is a photograph; only its transparency shows a mask; it has several classes, as areas of
            more than two values or colours or as class ids; or its colours are all equally bright.
    """
    image = _open(data, MAX_PIXELS)
    colours = np.asarray(image)[..., None] if image.mode.startswith("I") else np.asarray(_to_rgb(image))
    pixels = colours.max(axis=2)
    levels = np.unique(pixels)
    binary = len(levels) <= 2 and (colours == pixels[..., None]).all()
    if not binary and (areas := _areas(colours)) > 2:
        raise ImageError(f"expected a binary mask, found areas of {areas} values or colours; {_ONE_EACH}")
    if not binary and _is_photograph(colours):
        raise ImageError(
            "expected a binary mask, found a photograph (swapped files?) or probabilities (threshold them)"
        )
    if len(levels) == 1 and (colours != colours[0, 0]).any():
        raise ImageError("expected a binary mask, found several colours of one brightness; save it in black and white")
    if len(levels) == 1 and _shows_by_transparency(image):
        raise ImageError(
            "expected a binary mask, found one that only its transparency shows; save it in black and white"
        )
    if len(levels) <= 2:
        return np.asarray(pixels > (levels[0] if len(levels) == 2 else 0))
    middle = 127 if levels[-1] <= 255 else int(levels[-1]) // 2
    if levels[-1] <= middle:
        raise ImageError(
            f"expected a binary mask, found {len(levels)} values from {levels[0]} to {levels[-1]}; {_ONE_EACH}"
        )
    return np.asarray(pixels > middle)


def _shows_by_transparency(image: Image.Image) -> bool:
    return image.has_transparency_data and len(np.unique(np.asarray(image.convert("RGBA").getchannel("A")))) > 1


def _is_photograph(colours: NDArray[np.generic]) -> bool:
    """Return whether a channel of (H, W, c) has many values, and many pixels in the middle half of its range.

    The bound is a quarter of the pixels: all but two of 1376 photographs have as many there. Masks have only their rims
    there, which are at most a fifth of the pixels in masks that were shrunk to a fifth.
    """
    for channel in np.moveaxis(colours, -1, 0):
        low, high = int(channel.min()), int(channel.max())
        quarter = (high - low) / 4
        between = np.mean((channel > low + quarter) & (channel < high - quarter))
        if between > 0.25 and len(np.unique(channel)) > 24:
            return True
    return False


def _areas(colours: NDArray[np.generic]) -> int:
    """Count the values or colours of (H, W, c) that fill areas and differ by a fifth of the range in some channel.

    A pixel is part of an area if its 3 x 3 neighbours equal it, which excludes the rims of soft masks and the artefacts
    of JPEG; an area covers more than a ten-thousandth of the image. If every value in the image fills an area, as class
    ids do, all of them count, however close they are.
    """
    if (colours == colours[..., :1]).all():
        colours = colours[..., :1]
    comparable = colours.astype(np.float32) if colours.dtype == np.int32 else np.ascontiguousarray(colours)
    around = np.ones((3, 3), np.uint8)
    alike = (cv2.erode(comparable, around) == cv2.dilate(comparable, around)).reshape(colours.shape).all(axis=2)
    codes = _as_one(colours)
    found, counts = np.unique(codes[alike], return_counts=True)
    many = counts > alike.size // 10_000
    wide = found[many][np.argsort(-counts[many])]
    if np.isin(codes, wide).all():
        return len(wide)
    channels = np.stack([wide >> 8 * c & 255 for c in range(3)] if colours.shape[2] == 3 else [wide], axis=1)
    apart = max(255, int(colours.max(initial=0))) / 5
    distinct: list[NDArray[np.int64]] = []
    for colour in channels.astype(np.int64):
        if all(np.abs(colour - other).max() > apart for other in distinct):
            distinct.append(colour)
    return len(distinct)


def _as_one(colours: NDArray[np.generic]) -> NDArray[np.integer]:
    """One number (H, W) for each pixel of (H, W, c): its value, or red, green and blue in a byte each."""
    if colours.shape[2] == 1:
        return np.asarray(colours[..., 0])
    codes: NDArray[Any] = colours[..., 2].astype(np.uint32)
    for channel in (1, 0):
        codes = codes << 8 | colours[..., channel].astype(np.uint32)
    return codes


def is_indexed(path: Path) -> bool:
    """Return whether a decodable image file has one bit for each pixel or a palette; only its header is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's size warning: ``_open`` has checked the size
            with Image.open(path, formats=FORMATS) as image:
                return image.mode in ("1", "P")
    except UnidentifiedImageError:  # a 16-bit TIFF that only OpenCV can read
        return False


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Open ``data`` with Pillow: decoded and upright; every failure is raised as an ImageError."""
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning: the limit below replaces it
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageTooLarge(f"{image.width} x {image.height} pixels are more than {max_pixels}")
            if image.format in ("JPEG", "MPO"):
                require_few_scans(data)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _require_small_tiles(image.tag_v2, max_pixels)
                _require_one_plane(image.tag_v2)
                _require_one_photograph(data, image.width * image.height)
            image.load()
            negative = image.mode.startswith("I;16") and _is_negative(image)
            return ImageOps.exif_transpose(Image.fromarray(65535 - np.asarray(image)) if negative else image)
    except UnidentifiedImageError as error:
        deep = _decode_deep_tiff(data, max_pixels)
        if deep is None:
            raise ImageError(f"not an image; expected one of {', '.join(FORMATS)}") from error
        return Image.fromarray(deep)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"more pixels than the limit of {max_pixels}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ImageError(f"damaged or truncated image ({error})") from error


def require_few_scans(jpeg: bytes) -> None:
    """Raise ImageError for a JPEG with more than ``MAX_SCANS`` scans, whose few bytes could take minutes to decode."""
    place, scans = 2, 0
    while (marker := _MARKER.search(jpeg, place)) and (kind := jpeg[marker.end() - 1]) != _END_OF_IMAGE:
        place = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
        scans += kind == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise ImageError(f"a JPEG of more than {MAX_SCANS} scans; save it again with an image editor")


def _require_small_tiles(directory: TiffImagePlugin.ImageFileDirectory_v2, max_pixels: int) -> None:
    """Raise ImageTooLarge for tiles larger than an image may be: a decoder allocates whole tiles."""
    tile = int(directory.get(TiffImagePlugin.TILEWIDTH, 0)) * int(directory.get(TiffImagePlugin.TILELENGTH, 0))
    if tile > max_pixels:
        raise ImageTooLarge(f"tiles of {tile} pixels, more than {max_pixels}")


def _require_one_photograph(data: bytes, pixels: int) -> None:
    """Raise ImageError for a TIFF that has another page as large as the first: which one is meant is not known.

    Smaller ones are thumbnails or the levels of a pyramid.
    """
    file, seen = io.BytesIO(data), list[int]()
    directory = _directories(file)
    while (place := directory.next) and place not in seen and place < len(data) and len(seen) < MAX_PAGES:
        file.seek(place)
        directory.load(file)
        seen.append(place)
        size = int(directory.get(TiffImagePlugin.IMAGEWIDTH, 0)) * int(directory.get(TiffImagePlugin.IMAGELENGTH, 0))
        accessory = int(directory.get(_NEW_SUBFILE_TYPE, 0)) & 5  # of less resolution, or a transparency mask
        if len(seen) > 1 and size >= pixels and not accessory:
            raise ImageError(f"a TIFF whose page {len(seen)} is as large as the first; save the photograph alone")


def _require_one_plane(directory: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Raise ImageError for colours of 16 bits in a plane each, which Pillow and OpenCV take for others."""
    separate = directory.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
    if separate and 16 in np.atleast_1d(directory.get(TiffImagePlugin.BITSPERSAMPLE, 8)):
        raise ImageError("a TIFF with 16 bits a channel and its channels in separate planes; save them interleaved")


def _is_negative(image: Image.Image) -> bool:
    """Return whether zero is white in a TIFF; Pillow takes that into account for 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return bool(tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over_black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(over_black, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _deep_to_8_bit(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Reduce 16 bits per channel to 8 by keeping the high byte, which does not depend on the image's contents."""
    if pixels.dtype == np.float32:
        raise ImageError("floating-point pixels have no defined range; save the image as 8 or 16 bit")
    if pixels.dtype != np.uint16 and pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise ImageError("expected 8 or 16 bits a channel, found values outside 0..65535")
    _require_lit(int(pixels.max(initial=0)))
    return np.right_shift(pixels.astype(np.uint16, copy=False), 8).astype(np.uint8)


def _require_lit(brightest: int) -> None:
    """Raise ImageError if 16-bit values use the range of fewer bits only; black images are reported elsewhere."""
    if 0 < brightest < _DIMMEST:
        raise ImageError(
            f"16 bits a channel, but no value above {brightest}: a photograph with values of 10, 12 or 14 bits "
            "would be nearly black; save it with its values scaled to 0..65535"
        )


def _has_16_bits(data: bytes) -> bool:
    """Return whether the header of a decodable PNG or TIFF says that its channels have 16 bits."""
    if data.startswith(b"\x89PNG"):
        return data[24] == 16
    if data.startswith(TIFF_SIGNATURES):
        return 16 in np.atleast_1d(_first_directory(data).get(TiffImagePlugin.BITSPERSAMPLE, 8))
    return False


def _decode_deep_tiff(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """Decode a 16-bit RGB TIFF, which Pillow does not identify, with OpenCV; None if ``data`` is no such file."""
    if not data.startswith(TIFF_SIGNATURES):
        return None
    try:
        directory = _first_directory(data)
        width, height = int(directory[TiffImagePlugin.IMAGEWIDTH]), int(directory[TiffImagePlugin.IMAGELENGTH])
        if width * height > max_pixels:
            raise ImageTooLarge(f"{width} x {height} pixels are more than {max_pixels}")
        _require_small_tiles(directory, max_pixels)
        _require_one_plane(directory)
        _require_one_photograph(data, width * height)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except ImageError:
        raise
    except Exception as error:  # damaged directories, and files that OpenCV rejects
        raise ImageError(f"damaged or truncated image ({type(error).__name__})") from error
    if pixels is None or pixels.dtype != np.uint16:
        return None
    eight_bit = _deep_to_8_bit(pixels)
    if eight_bit.ndim == 2:
        return eight_bit
    order = cv2.COLOR_BGRA2RGBA if eight_bit.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(eight_bit, order), dtype=np.uint8)


def _first_directory(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Read the tags of the first image in a TIFF."""
    file = io.BytesIO(data)
    directory = _directories(file)
    file.seek(directory.next)
    directory.load(file)
    return directory


def _directories(file: io.BytesIO) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The directories of a TIFF, none of which is loaded yet: ``next`` is the place of the first."""
    header = file.read(8)
    return TiffImagePlugin.ImageFileDirectory_v2(header + file.read(8) if b"+" in header[2:4] else header)
