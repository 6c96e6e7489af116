"""Photographs as features of their own: the input of the plain control, beside the features in the store.

The map ``pixels`` is the photograph as the backbone was shown it (``store.preparing``), RGB in [-1, 1]: cropped as the
entry of its features was, equalised and without colour where theirs is. So networks on pixels are given nothing less,
and are trained, stored and scored by the same code as those on features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from interpreter.errors import TrainingDataError
from interpreter.heads.photometric import PIXELS
from store.encoded import Encoded
from store.feature_store import FeatureStore
from store.features import Features, Key
from store.preparing import in_network_range, prepare
from store.spec import Block, FeatureSpec, FloatEncoding
from store.views import fixed_rendering, flipped_axes, is_fixed


def spec_of_pixels(spec: FeatureSpec) -> FeatureSpec:
    """The spec of photographs prepared as those of a spec of features; no network made them.

    Its ``backbone`` changes whenever what is stored does: those of the first edition were not equalised.
    """
    side = spec.resolution
    return FeatureSpec(
        backbone=hashlib.sha256(b"photographs as prepared").hexdigest(),
        schedule="none-1",
        trajectory="anchored",
        grid=(0,),
        timesteps=(0,),
        blocks=(Block(name=PIXELS, channels=3, height=side, width=side),),
        resolution=side,
        preprocessing=spec.preprocessing,
        encoding=FloatEncoding(kind="float16"),
    )


def write_pixels(store: FeatureStore, spec: FeatureSpec, keys: Sequence[Key], folders: Iterable[Path]) -> FeatureSpec:
    """Write the photographs of some entries, found by their sha256 among the files below some folders.

    Args:
        spec: of the features, whose entries say how each photograph is cropped.
        keys: their entries; what is written already is left as it is.

    Returns:
        The spec of the photographs.

    Raises:
        TrainingDataError: a photograph is not below the folders.
    """
    pixels = spec_of_pixels(spec)
    missing = [key for key in keys if not store.has(pixels, key)]
    if missing:
        store.register(pixels, PIXELS)
        files = _find({key.image_id for key in missing}, folders)
        for key in missing:
            axes = flipped_axes(key.view)
            if not (axes or is_fixed(key.view)):
                raise TrainingDataError(
                    f"photographs are stored as they are, flipped, or as a fixed view has them, not {key.view}"
                )
            entry = store.entry(spec, key)
            photograph, upright = _read(files[key.image_id]), np.ascontiguousarray(np.flip(entry.fov, axes))
            shown = prepare(photograph, entry.geometry, upright, spec.preprocessing, fixed_rendering(key.view))
            values = np.flip(in_network_range(shown)[None], axes).astype(np.float16)
            store.write(pixels, key, Features({PIXELS: Encoded(values)}, entry.fov, entry.geometry))
    return pixels


def _find(wanted: set[str], folders: Iterable[Path]) -> dict[str, Path]:
    """{image id: file}"""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if len(found) == len(wanted):
                return found
            name = hashlib.sha256(path.read_bytes()).hexdigest()
            if name in wanted:
                found[name] = path
    if lost := sorted(wanted - set(found)):
        raise TrainingDataError(f"{len(lost)} photographs are not below {', '.join(map(str, folders))}: {lost[0][:12]}")
    return found


def _read(path: Path) -> NDArray[np.uint8]:
    """uint8 (H, W, 3), upright."""
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise TrainingDataError(
                f"{path}: of more than 8 bits; networks on pixels read 8-bit photographs, save it so"
            )
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise TrainingDataError(f"{path}: transparent in places; networks on pixels read opaque ones, save it so")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
