"""Files that are no photographs, or hardly: truncated, lying, huge, tiny, animated, odd in depth and colour, bombs."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.conftest import draw_fundus
from tests.service.dicom_files import compressed, photograph, written

Case = tuple[str, bytes]


def eye(side: int = 64, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(draw_fundus(side, 3)[0]).convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corpus() -> Iterator[Case]:
    """Named cases, always the same ones, more than 500."""
    whole = {kind: saved(eye(), kind) for kind in ("PNG", "JPEG", "TIFF", "PPM", "GIF", "BMP", "WEBP")}
    whole |= {
        "DICOM": written(photograph(draw_fundus(64, 3)[0])),
        "DICOM of JPEG": written(compressed(draw_fundus(64, 3)[0])),
    }
    yield from truncated(whole)
    yield from flipped(whole)
    yield from modes()
    yield from lying()
    yield from strange(whole)


def truncated(whole: dict[str, bytes]) -> Iterator[Case]:
    for kind, data in whole.items():
        for part in range(20):
            yield f"{kind} cut at {part}/20", data[: len(data) * part // 20]
        for length in (1, 2, 4, 8, 16, 33):
            yield f"{kind} first {length} bytes", data[:length]
        yield f"{kind} without its beginning", data[len(data) // 3 :]
        yield f"{kind} with a tail", data + b"\x00" * 1000


def flipped(whole: dict[str, bytes]) -> Iterator[Case]:
    """Bytes changed at random, in the head where they lie and in the body where they damage."""
    random = np.random.default_rng(7)
    for kind, data in whole.items():
        for i in range(24):
            damaged = bytearray(data)
            reach = min(len(data), 100) if i % 2 else len(data)
            for position in random.integers(0, reach, 1 + i // 4):
                damaged[position] ^= int(random.integers(1, 256))
            yield f"{kind} damaged {i}", bytes(damaged)


def modes() -> Iterator[Case]:
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I", "F"):
        grey = eye(mode="L")
        if mode == "I;16":
            image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        elif mode in ("I", "F"):
            image = grey.convert(mode)
        else:
            image = eye().convert(mode)
        for kind in ("PNG", "JPEG", "TIFF", "PPM"):
            try:
                data = saved(image, kind)
            except (OSError, KeyError, ValueError):  # this format has no such mode
                continue
            yield f"{mode} as {kind}", data
    frames = [eye(), eye().rotate(90), eye().rotate(180)]
    yield "animated GIF", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    yield "animated PNG", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "TIFF of several pages", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"JPEG turned {orientation}", saved(eye(), "JPEG", exif=exif.tobytes())
    for side in (1, 2, 3, 5, 9, 17):
        for value in (0, 255):
            yield f"{side} pixels of {value}", saved(Image.new("RGB", (side, side), (value,) * 3), "PNG")
    for size in ((1, 3000), (3000, 1), (2, 900), (900, 2)):
        yield f"{size[0]} x {size[1]}", saved(Image.new("RGB", size, (200, 90, 40)), "PNG")


def png_of(width: int, height: int, body: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that says what it likes, with right checksums."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def lying() -> Iterator[Case]:
    """Headers that promise other pixels than come, and bombs."""
    for width, height in (
        (0, 0),
        (0, 9),
        (1, 2**31 - 1),
        (2**31 - 1, 1),
        (65535, 65535),
        (100_000, 100_000),
        (400, 400),
    ):
        yield f"PNG of {width} x {height} without pixels", png_of(width, height, b"")
        yield f"PPM of {width} x {height} without pixels", b"P6 %d %d 255\n" % (width, height)
    yield "PNG bomb", png_of(20_000, 20_000, b"\x00" * 3_000_000)
    yield "PNG with more pixels than it says", png_of(8, 8, b"\x00" * 1_000_000)
    for depth, colour in ((3, 2), (16, 3), (1, 6), (8, 7), (255, 255)):
        yield f"PNG of depth {depth}, colour {colour}", png_of(8, 8, b"\x00" * 400, depth, colour)
    text = zlib.compress(b"a" * 5_000_000)
    chunk = b"zTXt" + b"k\x00\x00" + text
    bomb = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    good = saved(eye(), "PNG")
    yield "PNG with a text bomb", good[:33] + bomb + good[33:]
    for size in (
        b"P6 -1 -1 255\n",
        b"P6 99999999999999999999 1 255\n",
        b"P6 8 8 0\n",
        b"P6 8 8 99999\n",
        b"P3 8 8 255\nx",
        b"P6",
    ):
        yield f"PPM {size!r}", size + b"\x00" * 50
    for kind in (b"II*\x00", b"MM\x00*"):
        for offset in (0, 1, 8, 2**31, 2**32 - 1):
            yield f"TIFF whose directory is at {offset} ({kind!r})", kind + struct.pack("<I", offset) + b"\x01\x00" * 20
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in ((256, 90_000), (257, 90_000), (258, 8))
    )
    yield "TIFF of 90000 x 90000", b"II*\x00" + struct.pack("<IH", 8, 3) + entries + b"\x00" * 4


def strange(whole: dict[str, bytes]) -> Iterator[Case]:
    """What is no image at all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("eye.png", b"\x00" * 5_000_000)
    yield "ZIP bomb", buffer.getvalue()
    yield "gzip bomb", zlib.compress(b"\x00" * 5_000_000)
    for name, data in {
        "nothing": b"",
        "text": b"hello",
        "HTML": b"<html><script>alert(1)</script></html>",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "XML entities": b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><x>&b;</x>",
        "PDF": b"%PDF-1.7\n1 0 obj",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
        "pickle": b"\x80\x04\x95\x00",
        "NumPy": b"\x93NUMPY\x01\x00",
        "ELF": b"\x7fELF\x02\x01\x01",
        "DICOM preamble alone": b"\x00" * 128 + b"DICM",
        "DICOM without pixels": b"\x00" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00",
        "DICOM of garbage": b"\x00" * 128 + b"DICM" + bytes(range(256)) * 4,
        "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
        "path": b"../../../../etc/passwd",
        "zeros": b"\x00" * 50_000,
        "ones": b"\xff" * 50_000,
    }.items():
        yield name, data
    random = np.random.default_rng(11)
    for length in (1, 10, 100, 1000, 10_000):
        for i in range(6):
            yield f"{length} random bytes, {i}", random.bytes(length)
    heads = [data[:20] for data in whole.values()]
    for i, head in enumerate(heads):
        for j, data in enumerate(whole.values()):
            if i != j:
                yield f"head of {list(whole)[i]}, body of {list(whole)[j]}", head + data[20:]
