"""DICOM photographs are read as they were written, or refused with a reason; never anything else."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import ImageTooLarge
from service.dicom import HEADER_BYTES, decode_dicom, is_dicom
from service.errors import DicomError

pytest.importorskip("pydicom", reason="the extra dicom is not installed")

from pydicom.encaps import encapsulate
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from tests.conftest import draw_fundus
from tests.service.dicom_files import LIMIT, compressed, fundus, jpeg, jpeg2000, photograph, written


def decoded(data: bytes) -> NDArray[np.uint8]:
    return decode_dicom(data, LIMIT)


def sixteen(pixels: NDArray[np.uint8], low: int = 0x5A) -> NDArray[np.uint16]:
    """16 bits a channel with this high byte."""
    return (pixels.astype(np.uint16) << 8) | low


def test_uncompressed_colour_is_returned_byte_by_byte() -> None:
    for syntax in ("1.2.840.10008.1.2.1", ImplicitVRLittleEndian):
        found = decoded(written(photograph(fundus(), syntax)))  # type: ignore[arg-type]
        assert found.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(found, fundus())


def test_planes_of_colour_are_the_same_picture() -> None:
    planar = photograph(fundus(), PlanarConfiguration=1, PixelData=fundus().transpose(2, 0, 1).tobytes())
    np.testing.assert_array_equal(decoded(written(planar)), fundus())


def test_ybr_is_converted() -> None:
    ybr = convert_color_space(fundus(), "RGB", "YBR_FULL")
    found = decoded(written(photograph(ybr, PhotometricInterpretation="YBR_FULL")))
    assert np.abs(found.astype(int) - fundus()).max() <= 2


def test_jpeg_baseline_is_what_pillow_reads_of_it() -> None:
    expected = np.asarray(Image.open(io.BytesIO(jpeg(fundus()))))
    found = decoded(written(compressed(fundus())))
    assert np.abs(found.astype(int) - expected).max() <= 3  # the conversion from YBR rounds differently
    grey = np.ascontiguousarray(fundus()[..., 1])
    expected = np.asarray(Image.open(io.BytesIO(jpeg(grey))))
    np.testing.assert_array_equal(decoded(written(compressed(grey))), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("deep", [False, True])
def test_jpeg_2000_without_loss_is_returned_byte_by_byte(deep: bool) -> None:
    for eight in (fundus(), np.ascontiguousarray(fundus()[..., 1])):
        found = decoded(written(jpeg2000(sixteen(eight) if deep else eight)))
        np.testing.assert_array_equal(found, eight if eight.ndim == 3 else np.stack([eight] * 3, axis=-1))


def test_jpeg_2000_of_pillow() -> None:
    buffer = io.BytesIO()
    Image.fromarray(fundus()).save(buffer, "JPEG2000", no_jp2=True, irreversible=False, mct=1)
    ds = photograph(fundus(), JPEG2000, PhotometricInterpretation="YBR_RCT")
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    np.testing.assert_array_equal(decoded(written(ds)), fundus())


def test_room_is_not_made_for_what_lies_before_a_jpeg_2000_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("a decoder makes room for Xsiz x Ysiz, whatever the image's size is")

    monkeypatch.setattr("openjpeg.decode_pixel_data", decode)
    data = bytearray(written(jpeg2000(fundus())))
    frame = data.index(b"\xff\x4f\xff\x51")
    for at in (8, 16):  # Xsiz and XOsiz, of one size still
        value = int.from_bytes(data[frame + at : frame + at + 4], "big")
        data[frame + at : frame + at + 4] = (value + 100_000).to_bytes(4, "big")
    with pytest.raises(DicomError, match=r"begins at \(0, 0\)"):
        decoded(bytes(data))


@pytest.mark.parametrize("stored", [8, 10, 12, 16])
def test_the_highest_bits_in_use_are_kept(stored: int) -> None:
    grey = np.ascontiguousarray(fundus()[..., 1])
    values = (grey.astype(np.uint16) << (stored - 8)) | ((1 << (stored - 8)) - 1)
    found = decoded(written(photograph(values, BitsStored=stored, HighBit=stored - 1)))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=-1))


def test_monochrome1_is_a_negative() -> None:
    grey = np.ascontiguousarray(fundus()[..., 1])
    found = decoded(written(photograph(grey, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_array_equal(found[..., 0], 255 - grey)


def test_odd_sizes_are_padded_and_read() -> None:
    odd = np.ascontiguousarray(fundus()[:79, :95])
    np.testing.assert_array_equal(decoded(written(photograph(odd))), odd)


def test_pixels_reach_beyond_the_bytes_that_may_be_header() -> None:
    large = draw_fundus(700)[0]
    assert large.nbytes > HEADER_BYTES
    np.testing.assert_array_equal(decode_dicom(written(photograph(large)), large.size), large)


REFUSED = {
    "no pixel data": (photograph(fundus(), PixelData=None), "no pixel data"),
    "empty pixel data": (photograph(fundus(), PixelData=b""), "no pixel data"),
    "pixel data too short": (photograph(fundus(), PixelData=b"ab"), "expected 23040 bytes of pixel data, found 2"),
    "pixel data too long": (photograph(fundus(), PixelData=bytes(30_000)), "found 30000"),
    "more rows than there are": (photograph(fundus(), Rows=81), "expected 23328 bytes"),
    "no rows": (photograph(fundus(), Rows=0), "expected 1 to 65535 rows"),
    "rows not said": (photograph(fundus(), Rows=None), "a number as Rows"),
    "frames": (photograph(fundus(), NumberOfFrames=2), "expected one frame, found 2"),
    "frames without end": (photograph(fundus(), NumberOfFrames=2**31 - 1), "expected one frame"),
    "palette": (photograph(fundus()[..., 0], PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
    "colour of one sample": (photograph(fundus(), SamplesPerPixel=1), "RGB with 1 samples"),
    "bits": (photograph(fundus(), BitsAllocated=32), "in 32"),
    "more bits stored": (photograph(fundus(), BitsStored=12), "found 12 in 8"),
    "high bit": (photograph(fundus(), HighBit=3), "highest bit"),
    "signed": (photograph(fundus(), PixelRepresentation=1), "signed"),
    "16-bit YBR": (photograph(sixteen(fundus()), PhotometricInterpretation="YBR_FULL"), "8 bits of YBR_FULL"),
    "another kind": (photograph(fundus(), SOPClassUID=SecondaryCaptureImageStorage), "Secondary Capture"),
    "no kind": (photograph(fundus(), SOPClassUID="1.2.3"), "1.2.3"),
    "compressed by name only": (compressed(fundus(), PixelData=encapsulate([b"nothing"])), "not JPEG"),
    "JPEG cut off": (compressed(fundus(), PixelData=encapsulate([jpeg(fundus())[:700]])), "damaged"),
    "JPEG of another size": (compressed(fundus(), Rows=96, Columns=80), "the pixel data say 96 x 80"),
    "JPEG of one channel": (compressed(fundus(), SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2"), "with 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_reason(case: str) -> None:
    ds, reason = REFUSED[case]
    with pytest.raises(DicomError, match=reason):
        decoded(written(ds))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGExtended12Bit, ExplicitVRBigEndian])
def test_other_transfer_syntaxes_are_named(syntax: str) -> None:
    data = written(photograph(fundus())).replace(
        b"UI\x14\x001.2.840.10008.1.2.1\0", b"UI" + struct.pack("<H", len(_even(syntax))) + _even(syntax), 1
    )
    with pytest.raises(DicomError, match="expected uncompressed little endian"):
        decoded(data)


def _even(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def test_a_deflated_bomb_is_not_inflated() -> None:
    """100 MB of zeros in 100 kB."""
    ds = photograph(fundus())
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = written(ds)
    head = head[: 132 + 12 + struct.unpack("<I", head[140:144])[0]]
    packer = zlib.compressobj(wbits=-15)
    with pytest.raises(DicomError, match="found Deflated"):
        decoded(head + packer.compress(bytes(100_000_000)) + packer.flush())


def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ImageTooLarge, match="65000 x 65000 pixels are more than 100000"):
        decoded(written(photograph(fundus(), Rows=65_000, Columns=65_000)))


def test_a_codestream_that_is_a_bomb_is_refused_by_its_own_header() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(buffer, "JPEG")
    bomb = compressed(fundus(), PixelData=encapsulate([buffer.getvalue()]))
    with pytest.raises(DicomError, match="the pixel data say 9000 x 9000"):
        decoded(written(bomb))


def test_a_header_without_end_is_refused() -> None:
    ds = photograph(fundus())
    ds.add_new(0x00420011, "OB", bytes(5_000_000))  # an encapsulated document in front of the pixels
    with pytest.raises(DicomError):
        decoded(written(ds))


def test_a_value_that_claims_four_gigabytes() -> None:
    data = written(photograph(fundus()))
    at = data.index(b"\xe0\x7f\x10\x00OB\0\0") + 8
    with pytest.raises(DicomError, match="4294967294 bytes of pixel data are declared, 23040 follow"):
        decoded(data[:at] + b"\xfe\xff\xff\xff" + data[at + 4 :])


def test_sequences_in_sequences_without_end() -> None:
    data = written(photograph(fundus()))
    at = data.index(b"\x08\x00\x16\x00UI")
    nested = (b"\x08\x00\x06\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 20_000
    with pytest.raises(DicomError):
        decoded(data[:at] + nested)


WHOLE = {
    "plain": written(photograph(fundus())),
    "jpeg": written(compressed(fundus())),
    "j2k": written(jpeg2000(fundus())),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_every_way_to_be_cut_off_is_told(kind: str) -> None:
    data = WHOLE[kind]
    body = data.index(b"\xe0\x7f\x10\x00")
    for end in [*range(0, body + 12, 13), body, body + 8, body + 12, body + 40, len(data) // 2]:
        with pytest.raises(DicomError):
            decoded(data[:end])


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), where=st.floats(0, 1), junk=st.binary(min_size=1, max_size=8))
def test_damage_anywhere_is_pixels_or_the_typed_error(kind: str, where: float, junk: bytes) -> None:
    data = WHOLE[kind]
    at = int(where * (min(len(data), 1800) - len(junk)))  # the header and the beginning of the pixels
    try:
        found = decoded(data[:at] + junk + data[at + len(junk) :])
    except (DicomError, ImageTooLarge):
        return
    assert found.dtype == np.uint8
    assert found.shape[2] == 3


def test_dicom_is_known_by_its_signature() -> None:
    assert is_dicom(WHOLE["plain"])
    for other in (b"", b"DICM", jpeg(fundus()), bytes(200)):
        assert not is_dicom(other)
        with pytest.raises(DicomError, match="not a DICOM file"):
            decoded(other)
