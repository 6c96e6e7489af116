"""Export of features to other programs: the authors' .npy files, a plain Zarr group, an xarray Dataset.

i  images (each view is one)      t  timesteps      c, h, w  channels and size of a block's map
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from store.batches import Plan, lazy_maps
from store.errors import FormatError, MissingEntry
from store.feature_store import FeatureStore
from store.features import Key, dimensions
from store.files import read_json, replace_json, replaced
from store.spec import Block, FeatureSpec

if TYPE_CHECKING:
    import xarray

Advance = Callable[[], None]

AUTHORS_LEVELS = {
    "first": (0, 1),
    "second": (2, 3, 4),
    "third": (5, 6, 7),
    "fine": (8, 9, 10),
    "low": (11, 12, 13),
    "mid": (14, 15, 16),
    "high": (17, 18, 19, 20),
}
"""How the authors' later code groups the 21 decoder blocks of ADM-512 (Xyporz/DiffDGSSv2)."""


COMPLETE = "complete"
"""Attribute of an export, and key of an index: whether all of it is there. What an unfinished one lacks reads as 0."""


def export_npy(
    store: FeatureStore, spec: FeatureSpec, keys: Sequence[Key], folder: Path, advance: Advance | None = None
) -> None:
    """Write X_{t}_{level}_{row}.npy, float32 (c, h, w), as the authors' code writes and reads them.

    A level is the concatenation of the blocks that the authors group, provided that their maps have
    one size; every other block is a level of its own, named after the block. ``index.json`` says which
    image and view each row is.

    Raises:
        FormatError: the folder holds something else.
    """
    levels = authors_levels(spec)
    index = {
        "spec": spec.model_dump(mode="json"),
        "levels": {name: [block.name for block in blocks] for name, blocks in levels.items()},
        "rows": [{"image_id": key.image_id, "view": key.view} for key in keys],
    }
    _require_same(folder / "index.json", index, lambda path: read_json(path, FormatError))
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / "index.json", index | {COMPLETE: False})
    for row, key in enumerate(keys):
        files_of = {level: [folder / f"X_{t}_{level}_{row}.npy" for t in spec.timesteps] for level in levels}
        # Files that exist were written by an export that was interrupted.
        if missing := [level for level, files in files_of.items() if not all(file.is_file() for file in files)]:
            entry = store.entry(spec, key)
            for level in missing:
                maps = np.concatenate([entry.read(block.name) for block in levels[level]], axis=1)
                for file, of_t in zip(files_of[level], maps, strict=True):
                    _save(file, of_t)
        if advance is not None:
            advance()
    replace_json(folder / "index.json", index | {COMPLETE: True})


def authors_levels(spec: FeatureSpec) -> dict[str, list[Block]]:
    """The spec's blocks by level: the authors' levels where they apply, else one for each block."""
    levels: dict[str, list[Block]] = {}
    for block in spec.blocks:
        number = block.name.rpartition("_")[2]
        name = next((n for n, indices in AUTHORS_LEVELS.items() if number.isdecimal() and int(number) in indices), None)
        levels.setdefault(name or block.name, []).append(block)
    named: dict[str, list[Block]] = {}
    for name, blocks in levels.items():
        if len({(block.height, block.width) for block in blocks}) == 1 and _like_adm(spec):
            named[name] = blocks
        else:
            named |= {block.name: [block] for block in blocks}
    return named


def _like_adm(spec: FeatureSpec) -> bool:
    """Return whether the decoder may be that of ADM-512: some block has a number above 10."""
    return any(int(b.name.rpartition("_")[2]) > 10 for b in spec.blocks if b.name.rpartition("_")[2].isdecimal())


def export_zarr(
    store: FeatureStore, spec: FeatureSpec, keys: Sequence[Key], folder: Path, advance: Advance | None = None
) -> None:
    """Write one Zarr v3 group with a decoded array, float32 (image, t, c, h, w), for each block.

    ``xarray.open_zarr(folder)`` and any other reader of Zarr v3 can read it. The group's attributes name
    the image and view of each index; the timesteps are the coordinate ``t``.

    Raises:
        FormatError: the folder holds something else.
    """
    names = _names(spec, keys)
    _require_same(folder / "zarr.json", names, lambda path: read_json(path, FormatError)["attributes"])
    group = zarr.open_group(str(folder), mode="a", attributes=names | {COMPLETE: False})
    group.update_attributes({COMPLETE: False})
    _array(group, "t", np.asarray(spec.timesteps, dtype=np.int64).shape, "int64", ("t",))[...] = spec.timesteps
    arrays = {}
    for block in spec.blocks:
        shape = (len(keys), len(spec.timesteps), block.channels, block.height, block.width)
        arrays[block.name] = _array(group, block.name, shape, "float32", ("image", "t", *_axes(block)))
    for row, key in enumerate(keys):
        entry = store.entry(spec, key)
        for block in spec.blocks:
            arrays[block.name][row] = entry.read(block.name)
        if advance is not None:
            advance()
    group.update_attributes({COMPLETE: True})


def to_xarray(
    store: FeatureStore, spec: FeatureSpec, keys: Sequence[Key] | None = None, blocks: Sequence[str] | None = None
) -> xarray.Dataset:
    """A Dataset of lazily read feature maps, float32 (image, t, c, h, w) for each block.

    Args:
        keys: images and views; every complete entry if None.
        blocks: names; all of the spec's if None.

    Raises:
        FormatError: xarray is not installed.
        MissingEntry: the spec has no complete entry; or, when its maps are read, an image is not stored.
    """
    try:
        import xarray
    except ImportError as error:
        raise FormatError("an xarray Dataset needs xarray; `pip install xarray`") from error
    chosen = list(store.keys(spec) if keys is None else keys)
    if not chosen:
        raise MissingEntry(f"{store.location}: no complete entry of spec {spec.digest[:12]}")
    plan = Plan(tuple(chosen), np.tile(np.asarray(spec.timesteps, dtype=np.int64), (len(chosen), 1)))
    maps = lazy_maps(store, spec, plan, blocks)
    return xarray.Dataset(
        {name: (("image", "t", *_axes(spec.block(name))), array) for name, array in maps.items()},
        coords={
            "t": list(spec.timesteps),
            "image_id": ("image", [key.image_id for key in chosen]),
            "view": ("image", [key.view for key in chosen]),
        },
        attrs={"spec": spec.digest},
    )


def _axes(block: Block) -> tuple[str, str, str]:
    """Names of the axes (c, y, x) of a block's maps; blocks of the same size share those of y and x."""
    return f"c_{block.name}", *dimensions(block.height, block.width)


def _array(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: str, axes: tuple[str, ...]) -> Any:
    if name in group:
        return group[name]
    chunks = (1,) * min(2, len(shape) - 1) + shape[2:] if len(shape) > 1 else shape
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    return group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, dimension_names=axes, compressors=[codec])


def _names(spec: FeatureSpec, keys: Sequence[Key]) -> dict[str, Any]:
    images = {"image_id": [key.image_id for key in keys], "view": [key.view for key in keys]}
    return {"spec": json.loads(spec.canonical_json), "spec_digest": spec.digest} | images


def _require_same(path: Path, index: dict[str, Any], read: Callable[[Path], Any]) -> None:
    """Raise FormatError unless the folder is new, empty, or holds an unfinished export of the same features."""
    if path.is_file():
        if {name: value for name, value in read(path).items() if name != COMPLETE} != index:
            raise FormatError(f"{path.parent}: holds an export of other features; choose another folder")
    elif path.parent.is_dir() and any(path.parent.iterdir()):
        raise FormatError(f"{path.parent}: is not empty; choose another folder")
    elif path.parent.exists() and not path.parent.is_dir():
        raise FormatError(f"{path.parent}: is a file; choose a folder")


def _save(path: Path, maps: np.ndarray) -> None:
    with replaced(path) as partial, partial.open("wb") as file:
        np.save(file, maps)
