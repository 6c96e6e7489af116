"""An entry: a Zarr group whose arrays are written first and whose own metadata is written last.

The group's attributes are the completion marker. They name every object of the entry with its
size and sha256; a group without them does not exist. Each array is one storage object (one shard);
its inner chunks carry a CRC-32C of their own, so that a part can be read and still be trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore

from store.errors import DamagedEntry, FormatError, MissingEntry
from store.objects import Objects, held_in_memory

FORMAT_VERSION = 1
MARKER = "diffdgss"
_ADVICE = "`store verify` lists all damage; `extractor run --overwrite` makes the entry anew"


@dataclass(frozen=True)
class ArrayToWrite:
    """An array, the names of its axes, and how it is cut into chunks that are read alone."""

    values: NDArray[np.generic]
    axes: tuple[str, ...]
    chunks: tuple[int, ...]


def write_entry(objects: Objects, path: str, arrays: Mapping[str, ArrayToWrite], attributes: Mapping[str, Any]) -> int:
    """Write all arrays, then the marker. Writing the same entry again replaces it object by object.

    Returns:
        Bytes written.

    Raises:
        StoreFull: no room; what was written has no marker and does not count.
    """
    staged = MemoryStore()
    for name, array in arrays.items():
        _encode(staged, name, array)
    objects.remove(f"{path}/zarr.json")  # while objects are replaced, the entry does not exist
    checksums: dict[str, dict[str, int | str]] = {}
    written = 0
    for key, data in held_in_memory(staged):
        if key == "zarr.json":
            continue  # the root of the staging store
        objects.put(f"{path}/{key}", data)
        checksums[key] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        written += len(data)
    marker = dict(attributes) | {MARKER: {"format": FORMAT_VERSION, "objects": checksums}}
    return written + write_group(objects, path, marker)


def write_group(objects: Objects, path: str, attributes: Mapping[str, Any]) -> int:
    """Write a group's metadata in one object; returns its size in bytes."""
    data = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=1).encode()
    objects.put(f"{path}/zarr.json", data)
    return len(data)


def read_group(objects: Objects, path: str) -> dict[str, Any]:
    """A group's attributes; MissingEntry if it does not exist, DamagedEntry if they cannot be read."""
    raw = objects.get(f"{path}/zarr.json")
    try:
        attributes: dict[str, Any] = json.loads(raw)["attributes"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedEntry(f"{objects.location}: {path}/zarr.json is damaged ({error})") from error
    return attributes


class Entry:
    """A complete entry, opened for reading.

    Raises:
        MissingEntry: nothing complete at ``path``.
        FormatError: written by a newer version.
    """

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self.path = path
        self.attributes = read_group(objects, path)
        marker = self.attributes.get(MARKER)
        if marker is None or "objects" not in marker:
            raise MissingEntry(f"{objects.location}: {path} was begun and never completed; extract it again")
        if marker["format"] > FORMAT_VERSION:
            raise FormatError(
                f"{objects.location}: {path} has format {marker['format']}, this version reads up to {FORMAT_VERSION}; "
                "upgrade diffdgss"
            )
        self._checksums: dict[str, dict[str, Any]] = marker["objects"]

    @property
    def bytes(self) -> int:
        """Stored bytes of all arrays."""
        return sum(int(entry["bytes"]) for entry in self._checksums.values())

    def array(self, name: str) -> CheckedArray:
        """One array; nothing but metadata is read yet.

        Raises:
            DamagedEntry: its metadata is gone or damaged.
        """
        where = f"{self._objects.location}: {self.path}/{name}"
        try:
            array = zarr.open_array(self._objects.zarr_store, path=f"{self.path}/{name}", mode="r")
        except Exception as error:  # zarr raises many types for metadata that is gone or damaged
            raise DamagedEntry(f"{where} cannot be opened ({error}); {_ADVICE}") from error
        return CheckedArray(array, where, lambda: self._missing(name))

    def verify(self) -> list[str]:
        """Read every object and compare; one line for each that is damaged or gone."""
        problems = []
        for key, expected in self._checksums.items():
            try:
                data = self._objects.get(f"{self.path}/{key}")
            except MissingEntry:
                problems.append(f"{self.path}/{key}: gone")
                continue
            if len(data) != expected["bytes"]:
                problems.append(f"{self.path}/{key}: {len(data)} bytes, {expected['bytes']} were written")
            elif hashlib.sha256(data).hexdigest() != expected["sha256"]:
                problems.append(f"{self.path}/{key}: the bytes differ from those that were written")
        return problems

    def _missing(self, name: str) -> list[str]:
        """Objects of an array that are not there any more."""
        keys = [key for key in self._checksums if key.startswith(f"{name}/")]
        return [key for key in keys if not self._objects.exists(f"{self.path}/{key}")]


class CheckedArray:
    """A Zarr array whose damage is told with the name of its entry; sliced like a NumPy array.

    Damaged bytes fail their CRC-32C. Bytes that are gone would read as zeros, so zeros alone are
    believed only after a look for the object.
    """

    def __init__(self, array: zarr.Array[Any], where: str, missing: Callable[[], list[str]]) -> None:
        self._array = array
        self._where = where
        self._missing = missing
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        self.ndim = len(array.shape)
        self.chunks: tuple[int, ...] = array.chunks
        self.attributes: dict[str, Any] = dict(array.attrs)

    def __getitem__(self, selection: Any) -> NDArray[Any]:
        try:
            values = np.asarray(self._array[selection])
        except Exception as error:  # the codecs raise many types on damaged bytes
            raise DamagedEntry(f"{self._where} is damaged ({error}); {_ADVICE}") from error
        if not values.any() and (gone := self._missing()):
            raise DamagedEntry(f"{self._where}: {', '.join(gone)} is gone; {_ADVICE}")
        return values


def _encode(staged: MemoryStore, name: str, array: ArrayToWrite) -> None:
    values = array.values
    target = zarr.create_array(
        staged,
        name=name,
        shape=values.shape,
        dtype=values.dtype,
        shards=values.shape,
        chunks=array.chunks,
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
        dimension_names=array.axes,
        fill_value=False if values.dtype == np.bool_ else 0,
        config={"write_empty_chunks": True},
    )
    target[...] = values
