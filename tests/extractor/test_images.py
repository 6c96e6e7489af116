"""Bytes to pixels, for every kind of file that photographs and masks are found in."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from extractor.errors import ImageError, ImageTooLarge, naming
from extractor.images import decode_image, decode_mask, image_id, is_indexed, read_bytes

RGB = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "BMP"])
def test_lossless_formats_give_back_every_pixel(kind: str) -> None:
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(RGB), kind)), RGB)


def test_jpeg_is_close() -> None:
    smooth = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[:, None, None], (1, 48, 3))
    decoded = decode_image(encoded(Image.fromarray(smooth), "JPEG", quality=95))
    assert np.abs(decoded.astype(int) - smooth).max() < 8


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_is_repeated(kind: str) -> None:
    grey = RGB[..., 0]
    decoded = decode_image(encoded(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_the_high_byte(kind: str) -> None:
    deep = RGB[..., 0].astype(np.uint16) * 256 + 17
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(deep), kind))[..., 1], RGB[..., 0])


@pytest.mark.parametrize("suffix", [".tiff", ".png"])
def test_16_bit_colour_keeps_the_high_byte(suffix: str) -> None:
    ok, data = cv2.imencode(suffix, cv2.cvtColor(RGB, cv2.COLOR_RGB2BGR).astype(np.uint16) * 256 + 99)
    assert ok
    np.testing.assert_array_equal(decode_image(data.tobytes()), RGB)


def test_alpha_is_laid_over_black() -> None:
    half = np.dstack([np.full((4, 4, 3), 200, np.uint8), np.full((4, 4), 128, np.uint8)])
    decoded = decode_image(encoded(Image.fromarray(half), "PNG"))
    assert np.abs(decoded.astype(int) - 100).max() <= 1


def test_cmyk_becomes_rgb() -> None:
    assert decode_image(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG")).shape == RGB.shape


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to stand upright
    decoded = decode_image(encoded(Image.fromarray(RGB), "PNG", exif=exif))
    np.testing.assert_array_equal(decoded, np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("L", "TIFF"), ("P", "GIF"), ("L", "PPM"), ("RGB", "PNG")]
)
def test_masks_of_every_kind(mode: str, kind: str) -> None:
    mask = RGB[..., 0] > 128
    image = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    np.testing.assert_array_equal(decode_mask(encoded(image, kind)), mask)


def test_masks_of_0_and_1_and_of_16_bit() -> None:
    mask = RGB[..., 0] > 128
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask.astype(np.uint8)), "PNG")), mask)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask.astype(np.uint16) * 65535), "PNG")), mask)
    assert not decode_mask(encoded(Image.fromarray(np.zeros((5, 5), np.uint8)), "PNG")).any()
    assert decode_mask(encoded(Image.fromarray(np.full((5, 5), 255, np.uint8)), "PNG")).all()


def test_masks_in_any_two_values_and_any_colour() -> None:
    mask = RGB[..., 0] > 128
    red = Image.fromarray(mask.astype(np.uint8))
    red.putpalette([0, 0, 0, 255, 0, 0])
    painted = np.dstack([mask * 255, mask * 0, mask * 0]).astype(np.uint8)
    kinds = {
        "palette": encoded(red, "TIFF"),
        "red": encoded(Image.fromarray(painted), "PNG"),
        "16 bit of 255": encoded(Image.fromarray(mask.astype(np.uint16) * 255), "PNG"),
        "32 bit": encoded(Image.fromarray(mask.astype(np.int32) * 255), "TIFF"),
        "two": encoded(Image.fromarray(mask.astype(np.uint8) * 2), "PNG"),
    }
    for kind, data in kinds.items():
        np.testing.assert_array_equal(decode_mask(data), mask, err_msg=kind)
    soft = np.where(mask, 191, 64).astype(np.uint8)
    soft[0, 0] = 0
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(soft), "PNG"))[1:], mask[1:])


def test_a_mask_that_is_drawn_in_its_transparency_is_told() -> None:
    layer = np.zeros((5, 5, 4), np.uint8)
    layer[1:3, :, 3] = 255  # black on nothing, as paint programs save a layer
    with pytest.raises(ImageError, match="found one that only its transparency shows"):
        decode_mask(encoded(Image.fromarray(layer), "PNG"))
    indexed = Image.fromarray((layer[..., 3] > 0).astype(np.uint8), "P")
    indexed.putpalette([0, 0, 0, 0, 0, 0])
    indexed.info["transparency"] = b"\x00\xff"
    with pytest.raises(ImageError, match="found one that only its transparency shows"):
        decode_mask(encoded(indexed, "PNG"))
    layer[..., 3] = 255
    assert not decode_mask(encoded(Image.fromarray(layer), "PNG")).any()


def test_colours_of_one_brightness_are_no_binary_mask() -> None:
    painted = np.full((5, 5, 3), 255, np.uint8)
    painted[2, 2] = 255, 0, 0  # a red lesion on white: which of both is meant?
    with pytest.raises(ImageError, match=r"^expected a binary mask, found several colours of one brightness"):
        decode_mask(encoded(Image.fromarray(painted), "PNG"))


def test_class_ids_are_no_binary_mask() -> None:
    with pytest.raises(ImageError, match=r"^expected a binary mask, found 4 values from 0 to 3"):
        decode_mask(encoded(Image.fromarray(RGB[..., 0] // 64), "PNG"))


def areas_of(*colours: int | tuple[int, int, int]) -> Image.Image:
    """An image of 40 rows whose columns are divided among some values or colours."""
    columns = np.repeat(np.array(colours, np.uint8), 20, axis=0)
    return Image.fromarray(np.broadcast_to(columns, (40, *columns.shape)).copy())


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (areas_of(0, 128, 255), "3 values"),  # background, cup and disc
        (areas_of(255, 128, 0), "3 values"),
        (areas_of(0, 85, 170, 255), "4 values"),
        (areas_of((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)), "4 values"),  # all of one brightness but one
        (areas_of((0, 0, 0), (255, 0, 0), (0, 255, 0)).quantize(3), "3 values"),
        (areas_of(0, 1, 255), "3 values"),  # a class, and what is not to be learnt
    ],
)
def test_classes_painted_in_one_file_are_no_binary_mask(image: Image.Image, found: str) -> None:
    with pytest.raises(ImageError, match=rf"^expected a binary mask, found areas of {found} or colours; save"):
        decode_mask(encoded(image, "PNG"))


def test_deep_classes_are_no_binary_mask() -> None:
    deep = np.repeat(np.array([0, 30_000, 65_535], np.uint16), 20)
    with pytest.raises(ImageError, match="areas of 3 values"):
        decode_mask(encoded(Image.fromarray(np.broadcast_to(deep, (40, 60)).copy()), "PNG"))


@pytest.mark.parametrize("quality", [20, 75])
def test_soft_masks_and_those_kept_as_jpeg_are_binary(quality: int) -> None:
    """Rims of every grey are no areas, at whatever width they were drawn."""
    disc = Image.fromarray((np.hypot(*(np.indices((240, 240)) - 120)) < 80).astype(np.uint8) * 255)
    soft = disc.resize((60, 60), Image.Resampling.BOX).resize((480, 480), Image.Resampling.BICUBIC)
    expected = np.asarray(soft) > 127
    for image in (soft, Image.merge("RGB", [soft, soft.point(lambda _: 0), soft.point(lambda _: 0)])):
        np.testing.assert_array_equal(decode_mask(encoded(image, "PNG")), expected)
        kept = decode_mask(encoded(image, "JPEG", quality=quality))
        assert (kept != expected).mean() < 0.01


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_a_file_of_16_are_told(bits: int) -> None:
    deep = RGB[..., 0].astype(np.uint16) << (bits - 8)
    told = r"^16 bits a channel, but no value above \d+: a photograph with values of 10, 12 or 14 bits"
    with pytest.raises(ImageError, match=told):
        decode_image(encoded(Image.fromarray(deep), "PNG"))
    for suffix in (".png", ".tiff"):
        ok, colours = cv2.imencode(suffix, cv2.cvtColor(RGB, cv2.COLOR_RGB2BGR).astype(np.uint16) << (bits - 8))
        assert ok
        with pytest.raises(ImageError, match=told):
            decode_image(colours.tobytes())
    assert not decode_image(encoded(Image.fromarray(np.zeros_like(deep)), "PNG")).any()  # said to be dark elsewhere


def with_tag(tiff: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a 16-bit tag that it has."""
    place = tiff.index(struct.pack("<HHI", tag, 3, 1))
    return tiff[: place + 8] + struct.pack("<H", value) + tiff[place + 10 :]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("side", [24, 48])
def test_a_tiff_of_several_pages_is_read_if_the_first_is_the_photograph(side: int, big: bool) -> None:
    first, other = (Image.fromarray(np.full((height, 64, 3), 90, np.uint8)) for height in (48, side))
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=[other], big_tiff=big)
    if side == 24:
        assert decode_image(buffer.getvalue()).shape == (48, 64, 3)
    else:
        with pytest.raises(ImageError, match="page 2 is as large as the first"):
            decode_image(buffer.getvalue())


def test_a_deep_tiff_whose_zero_is_white_is_turned_round() -> None:
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    plain, negative = encoded(Image.fromarray(grey), "TIFF"), encoded(Image.fromarray(65535 - grey), "TIFF")
    np.testing.assert_array_equal(decode_image(with_tag(negative, 262, 0)), decode_image(plain))


def test_a_deep_tiff_of_separate_planes_is_refused() -> None:
    ok, data = cv2.imencode(".tiff", np.full((8, 8, 3), 60000, np.uint16))
    assert ok
    with pytest.raises(ImageError, match="channels in separate planes; save them interleaved"):
        decode_image(with_tag(data.tobytes(), 284, 2))


def test_a_deep_tiff_that_lies_about_its_size_is_refused() -> None:
    ok, data = cv2.imencode(".tiff", np.zeros((8, 8, 3), np.uint16))
    assert ok
    with pytest.raises(ImageTooLarge, match="8 x 8 pixels are more than 10"):
        decode_image(data.tobytes(), max_pixels=10)
    with pytest.raises(ImageError):
        decode_image(data.tobytes()[:40])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        (b"II*\x00 not a tiff", "image"),
        (encoded(Image.fromarray(RGB), "PNG")[:200], "damaged or truncated"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_image_is_refused_and_named_by_who_knows_its_name(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=f"^eye.png: .*{message}"), naming("eye.png"):
        decode_image(data)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(ImageTooLarge, match="34 x 21 pixels are more than 100"):
        decode_image(encoded(Image.fromarray(RGB), "PNG")[:120], max_pixels=100)


def test_identity_is_that_of_the_bytes(tmp_path: Path) -> None:
    assert image_id(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(ImageError, match=r"nowhere\.png: cannot be read"):
        read_bytes(tmp_path / "nowhere.png")


def test_masks_of_one_bit_or_with_a_palette_are_told_from_others(tmp_path: Path) -> None:
    mask = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    for mode, indexed in (("1", True), ("P", True), ("L", False), ("RGB", False)):
        mask.convert(mode).save(tmp_path / f"{mode}.png")
        assert is_indexed(tmp_path / f"{mode}.png") == indexed
    ok, unknown = cv2.imencode(".tiff", np.ones((8, 8, 3), np.float32))
    assert ok
    (tmp_path / "unknown.tiff").write_bytes(unknown.tobytes())
    assert not is_indexed(tmp_path / "unknown.tiff")  # OpenCV knows it, Pillow does not


@pytest.mark.parametrize("grey", [False, True])
def test_a_photograph_is_no_mask(grey: bool) -> None:
    photograph = np.random.default_rng(0).normal((130, 90, 40), 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(photograph).convert("L" if grey else "RGB")
    with pytest.raises(ImageError, match=r"found a photograph \(swapped files\?\)"):
        decode_mask(encoded(image, "PNG"))


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    assert decode_image(data).shape == RGB.shape
    first = data.index(b"\xff\xda")
    scan = b"\xff\xda\x00\x02" + b"a few bytes \xff\x00"
    with pytest.raises(ImageError, match="a JPEG of more than 100 scans"):
        decode_image(data[:first] + scan * 100 + data[first:])
    appended = data + b"\xff\xda" * 200  # a film, say, which no decoder looks at
    np.testing.assert_array_equal(decode_image(appended), decode_image(data))


def test_a_tiff_of_giant_tiles_is_refused_before_room_is_made_for_them() -> None:
    pixels = zlib.compress(bytes(32 * 32))
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32, 323: 32, 324: 8, 325: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode_image(data, max_pixels=1024).shape == (16, 16, 3)
    with pytest.raises(ImageTooLarge, match="tiles of 1024 pixels, more than 1000"):
        decode_image(data, max_pixels=1000)
