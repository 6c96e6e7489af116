"""Drawing label maps as pictures. H, W: native size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from interpreter.task import Task


def encode_labels(labels: NDArray[np.uint8], colours: Sequence[str]) -> bytes:
    """A PNG whose pixel values are the class ids and whose palette shows them in colour.

    Args:
        labels: uint8 (H, W), class ids.
        colours: of classes 1, 2, ...; class 0 is black.
    """
    shown = colours[: int(labels.max(initial=0)) or 1]
    palette = [0, 0, 0, *(value for colour in shown for value in ImageColor.getrgb(colour)[:3])]
    image = Image.fromarray(labels)
    image.putpalette(palette)
    return _png(image)


def write_label_maps(
    folder: Path, name: str, labels: NDArray[np.uint8], masks: NDArray[np.bool_] | None, task: Task
) -> Path:
    """Write the segmentation of an image as PNG of native size, and return the path of the label map.

    Args:
        folder: created if missing.
        name: name of the image; slashes in it make subfolders.
        labels: uint8 (H, W), class ids.
        masks: bool (n - 1, H, W) if classes overlap: each is also written to a file of its own, in a folder with the
            image's name.
        task: names and colours of the classes.
    """
    file = label_map_path(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode_labels(labels, task.palette))
    if masks is not None:
        layers = file.with_suffix("")
        layers.mkdir(exist_ok=True)
        for target, mask in zip(task.targets, masks, strict=True):
            (layers / f"{target}.png").write_bytes(encode_labels(mask.astype(np.uint8), ["white"]))
    return file


def label_map_path(folder: Path, name: str) -> Path:
    """The path of an image's PNG below a folder, such as stare/im0001.png; never outside the folder."""
    *places, last = [part for part in name.split("/") if part not in ("", ".", "..")]
    return folder.joinpath(*places, f"{last}.png")


def overlay(
    photograph: NDArray[np.uint8], labels: NDArray[np.uint8], colours: Sequence[str], opacity: float = 0.55
) -> NDArray[np.uint8]:
    """The photograph, uint8 (H, W, 3), with every class but the background tinted."""
    tinted = photograph.astype(np.float32)
    for class_id in range(1, int(labels.max(initial=0)) + 1):
        here = labels == class_id
        colour = np.array(ImageColor.getrgb(colours[class_id - 1])[:3], dtype=np.float32)
        tinted[here] = (1 - opacity) * tinted[here] + opacity * colour
    return tinted.round().astype(np.uint8)


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture, uint8 (H, W, 3), as PNG."""
    return _png(Image.fromarray(picture))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def draw_comparison(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], inside: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """Draw a segmentation against its ground truth: found white, missed blue, wrongly found orange, not counted grey.

    Args:
        predicted, truth: bool (n - 1, H, W), each class but the background; all are drawn in the same colours.
        inside: bool (H, W), the pixels that count.

    Returns:
        uint8 (H, W, 3).
    """
    found, real = predicted.any(axis=0), truth.any(axis=0)
    picture = np.zeros((*found.shape, 3), dtype=np.uint8)
    picture[(predicted & truth).any(axis=0)] = 255
    picture[real & ~found] = (60, 130, 255)
    picture[found & ~real] = (255, 130, 30)
    if inside is not None:
        picture[~inside] = 60
    return picture
