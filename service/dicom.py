"""Decoding of DICOM Ophthalmic Photography (PS3.3 A.41 and A.42) to pixels. H, W rows and columns.

Nothing in a file is trusted before it is checked: the header is parsed from the first bytes alone, the
sizes that it claims are compared with the limit and with the sizes in the pixel data themselves, and only
then is anything decompressed.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import ImageTooLarge
from extractor.images import require_few_scans
from service.errors import DicomError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

HEADER_BYTES = 1_000_000
"""Most bytes that are parsed as the header. The pixel data of a photograph begin earlier; parsing more costs time."""

PHOTOGRAPHS = {
    "1.2.840.10008.5.1.4.1.1.77.1.5.1": "Ophthalmic Photography 8 Bit",
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": "Ophthalmic Photography 16 Bit",
}
_IMPLICIT = "1.2.840.10008.1.2"
_CODESTREAM = b"\xff\x4f\xff\x51"
"""The markers SOC and SIZ, with which a JPEG 2000 codestream begins (ISO 15444-1, A.4 and A.5)."""
_OFFSETS = slice(16, 24)
"""The bytes of XOsiz and YOsiz, the offset of the image area, in a codestream."""
_UNCOMPRESSED = (_IMPLICIT, "1.2.840.10008.1.2.1")
_JPEG = "1.2.840.10008.1.2.4.50"
_J2K = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_COLOURS = {
    1: ("MONOCHROME1", "MONOCHROME2"),
    3: ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
}
_PIXEL_DATA = 0x7FE00010
_LARGEST_SIDE = 65535  # Rows and Columns are unsigned 16-bit numbers


def is_dicom(data: bytes) -> bool:
    """Return whether data begin as a DICOM file: 'DICM' after a preamble of 128 bytes (PS3.10 7.1)."""
    return data[128:132] == b"DICM"


def is_dicom_file(path: Path) -> bool:
    """Return whether a file begins as DICOM; OSError if it cannot be read."""
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def decode_dicom(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an ophthalmic photograph.

    Args:
        data: contents of a DICOM file: uncompressed, JPEG baseline or JPEG 2000; RGB, YBR or monochrome; 8 or
            16 bit; one frame.
        max_pixels: larger images are refused before their pixels are decoded.

    Returns:
        uint8 (H, W, 3), RGB. Of more than 8 stored bits the highest 8 are kept; grey is repeated in all channels.

    Raises:
        DicomError: the file is not such a photograph, is damaged, or contradicts itself.
        ImageTooLarge: it has more than ``max_pixels``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns about invalid values; the checks below decide
            header, at = _read_header(data)
            _check_shape(header, max_pixels)
            _read_pixel_data(header, data[at:])
            pixels = _decoded(header)
            return _to_rgb8(pixels, header)
    except (DicomError, ImageTooLarge):
        raise
    except Exception as error:  # parsers and decoders raise almost anything on damaged files
        raise DicomError(f"damaged DICOM file ({type(error).__name__})") from error


def read_header(data: bytes) -> Dataset:
    """Read the header, which is everything before the pixel data.

    Raises:
        DicomError: the file is not DICOM, not a photograph, or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _read_header(data)[0]
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"damaged DICOM file ({type(error).__name__})") from error


def _read_header(data: bytes) -> tuple[Dataset, int]:
    """The header, and the offset in bytes at which the pixel data begin."""
    try:
        from pydicom.filereader import dcmread, read_dataset, read_preamble
    except ImportError as error:
        raise DicomError("DICOM is not supported by this installation; install the extra `dicom`") from error
    if not is_dicom(data):
        raise DicomError("not a DICOM file; expected 'DICM' after a preamble of 128 bytes")
    file = io.BytesIO(data[:HEADER_BYTES])
    read_preamble(file, force=False)
    # The transfer syntax is checked first, on its own: dcmread would inflate a deflated file as a whole.
    meta = read_dataset(
        file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2
    )
    syntax = meta.get("TransferSyntaxUID")
    if syntax not in (*_UNCOMPRESSED, _JPEG, *_J2K):
        found = "none" if syntax is None else getattr(syntax, "name", str(syntax))[:80]
        raise DicomError(f"expected uncompressed little endian, JPEG baseline or JPEG 2000, found {found}")
    file.seek(0)
    header = dcmread(file, stop_before_pixels=True)
    if (kind := header.get("SOPClassUID")) not in PHOTOGRAPHS:
        found = "none" if kind is None else getattr(kind, "name", str(kind))[:80]
        raise DicomError(f"expected Ophthalmic Photography (8 or 16 bit), found the SOP class {found}")
    header.PixelRepresentation = header.get("PixelRepresentation", 0)
    return header, file.tell()


def _check_shape(header: Dataset, max_pixels: int) -> None:
    """Check the size, colours and bits that the header claims, before anything is allocated by them."""
    frames = _whole(header, "NumberOfFrames", 1)
    if frames != 1:
        raise DicomError(f"expected one frame, found {frames}; send each frame as a file of its own")
    rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
    if not (0 < rows <= _LARGEST_SIDE and 0 < columns <= _LARGEST_SIDE):
        raise DicomError(f"expected 1 to {_LARGEST_SIDE} rows and columns, found {rows} x {columns}")
    if rows * columns > max_pixels:
        raise ImageTooLarge(f"{columns} x {rows} pixels are more than {max_pixels}")
    samples, colours = _whole(header, "SamplesPerPixel"), str(header.get("PhotometricInterpretation"))
    if colours not in _COLOURS.get(samples, ()):
        expected = ", ".join(name for names in _COLOURS.values() for name in names)
        raise DicomError(f"expected one of {expected}, found {colours[:40]} with {samples} samples a pixel")
    allocated, stored = _whole(header, "BitsAllocated"), _whole(header, "BitsStored")
    if allocated not in (8, 16) or not 8 <= stored <= allocated:
        raise DicomError(f"expected 8 to 16 stored bits in 8 or 16 allocated bits, found {stored} in {allocated}")
    if _whole(header, "HighBit", stored - 1) != stored - 1:
        raise DicomError(f"expected the highest bit at {stored - 1}, found it at {header.HighBit}")
    if _whole(header, "PixelRepresentation", 0) != 0:
        raise DicomError("expected unsigned pixel values, found signed ones")
    if allocated == 16 and colours in ("YBR_FULL", "YBR_FULL_422"):
        raise DicomError(f"expected 8 bits of {colours}, found {allocated}")


def _whole(header: Dataset, keyword: str, default: int | None = None) -> int:
    """The integer value of a header element; DicomError if it has none."""
    value = header.get(keyword, default)
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise DicomError(f"expected a number as {keyword}, found {str(value)[:40]!r}") from error


def _read_pixel_data(header: Dataset, rest: bytes) -> None:
    """Add the pixel data to the header, and nothing that follows them in the file."""
    from pydicom.dataelem import DataElement, RawDataElement
    from pydicom.filereader import read_dataset

    syntax = header.file_meta.TransferSyntaxUID
    found = read_dataset(
        io.BytesIO(rest),
        is_implicit_VR=syntax == _IMPLICIT,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag > _PIXEL_DATA,
    )
    raw: DataElement | RawDataElement | None = found.get_item(_PIXEL_DATA)  # with the length that the file declares
    if not isinstance(raw, RawDataElement) or not raw.value:
        raise DicomError(f"no pixel data; expected them after at most {HEADER_BYTES // 1_000_000} MB of header")
    if syntax in _UNCOMPRESSED and raw.length != len(raw.value):
        raise DicomError(f"cut off: {raw.length} bytes of pixel data are declared, {len(raw.value)} follow")
    header.PixelData = found.PixelData
    header["PixelData"].is_undefined_length = syntax not in _UNCOMPRESSED


def _decoded(header: Dataset) -> NDArray[np.generic]:
    """Decode the pixel data to (H, W) or (H, W, 3), RGB, after checking that their size is what the header says."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import get_expected_length

    syntax = header.file_meta.TransferSyntaxUID
    if syntax in _UNCOMPRESSED:
        expected, found = get_expected_length(header), len(header.PixelData)
        if found not in (expected, expected + expected % 2):
            raise DicomError(f"expected {expected} bytes of pixel data, found {found}")
        pixels, _ = get_decoder(syntax).as_array(header)
        return pixels
    _check_codestream(header)
    plugin = "pillow" if syntax == _JPEG else "pylibjpeg"
    pixels, _ = get_decoder(syntax).as_array(header, decoding_plugin=plugin)
    return pixels


def _check_codestream(header: Dataset) -> None:
    """Check compressed data against the header: they have a size of their own, by which a decoder allocates."""
    from pydicom.encaps import get_frame

    frame = get_frame(header.PixelData, 0, number_of_frames=1)
    kind = "JPEG" if header.file_meta.TransferSyntaxUID == _JPEG else "JPEG2000"
    if kind == "JPEG2000" and (frame[:4] != _CODESTREAM or any(frame[_OFFSETS])):
        raise DicomError(
            "expected a JPEG 2000 codestream whose image begins at (0, 0), as DICOM requires; a decoder would "
            "allocate memory for everything before it"
        )
    if kind == "JPEG":
        require_few_scans(frame)
    try:
        with Image.open(io.BytesIO(frame), formats=(kind,)) as image:
            size, bands = image.size, len(image.getbands())
    except Exception as error:  # Pillow's parsers raise almost anything on damaged files
        raise DicomError(f"the pixel data are not {kind}, or damaged") from error
    if size != (header.Columns, header.Rows) or bands != header.SamplesPerPixel:
        raise DicomError(
            f"the header says {header.Columns} x {header.Rows} with {header.SamplesPerPixel} samples a pixel, "
            f"the pixel data say {size[0]} x {size[1]} with {bands}"
        )


def _to_rgb8(pixels: NDArray[np.generic], header: Dataset) -> NDArray[np.uint8]:
    samples, stored = int(header.SamplesPerPixel), int(header.BitsStored)
    shape = (int(header.Rows), int(header.Columns), samples)[: 2 if samples == 1 else 3]
    if pixels.shape != shape or pixels.dtype.kind != "u" or pixels.size != math.prod(shape):
        raise DicomError(f"expected pixels of shape {shape}, found {pixels.shape} of {pixels.dtype}")
    eight = ((pixels.astype(np.uint16) & ((1 << stored) - 1)) >> (stored - 8)).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        eight = np.asarray(255 - eight, dtype=np.uint8)
    if samples == 1:
        eight = np.repeat(eight[..., None], 3, axis=2)
    return np.ascontiguousarray(eight)
