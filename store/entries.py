"""An entry: a Zarr group whose arrays are written first and whose own metadata is written last.

The group's attributes hold the completion marker, which lists every object of the entry with its
size and sha256; a group without it does not count as an entry. The data of each array are one object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from store.arrays import ArrayToWrite, StoredArray, packed
from store.errors import DamagedEntry, FormatError, MissingEntry, StoreError, StoreFull, StoreUnavailable
from store.objects import Objects

FORMAT_VERSION = 2
"""Format 2 seals the attributes; format 1 did not, and can still be read."""
MARKER = "diffdgss"
SEAL = "seal"
_SHA256 = re.compile("[0-9a-f]{64}")


def write_entry(objects: Objects, path: str, arrays: Mapping[str, ArrayToWrite], attributes: Mapping[str, Any]) -> int:
    """Write all arrays, then the marker. Writing an entry again replaces it object by object.

    What a killed writer has left of an incomplete entry is removed first.

    Returns:
        Bytes written.

    Raises:
        StoreFull: there is no room; what was written is removed. An entry that was there stays as it was if that can be
            known beforehand.
    """
    objects_of = {name: packed(array) for name, array in arrays.items()}
    there = objects.names(path)
    # Without its marker the entry does not exist while its objects are replaced. The marker is only removed if there is
    # one: a removal that object storage carries out late, after its client has given up, would take the new marker.
    if "zarr.json" in there:
        _require_room_to_replace(objects, path, objects_of)
        objects.remove(f"{path}/zarr.json")
    elif there:
        objects.delete(path)
    try:
        return _written(objects, path, objects_of, attributes)
    except StoreFull:
        with suppress(StoreError, OSError):  # it would only take the room of others
            objects.delete(path)
        raise


def _written(
    objects: Objects, path: str, objects_of: Mapping[str, Mapping[str, list[bytes]]], attributes: Mapping[str, Any]
) -> int:
    """Write all objects of an entry, then its marker; returns the bytes written."""
    checksums: dict[str, dict[str, int | str]] = {}
    written = 0
    for name, parts in sorted(objects_of.items()):
        for below, data in parts.items():
            objects.put(f"{path}/{name}/{below}", *data)
            size = sum(map(len, data))
            checksums[f"{name}/{below}"] = {"bytes": size, "sha256": _sha256(data)}
            written += size
    contents = {"format": FORMAT_VERSION, "objects": checksums}
    marker = contents | {SEAL: _seal(attributes, contents)}
    return written + write_group(objects, path, dict(attributes) | {MARKER: marker})


def write_group(objects: Objects, path: str, attributes: Mapping[str, Any]) -> int:
    """Write a group's metadata as one object and return its size in bytes."""
    data = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=1).encode()
    objects.put(f"{path}/zarr.json" if path else "zarr.json", data)
    return len(data)


def read_group(objects: Objects, path: str) -> dict[str, Any]:
    """The attributes of a group; MissingEntry if it does not exist, DamagedEntry if they cannot be read."""
    key = f"{path}/zarr.json" if path else "zarr.json"
    raw = objects.get(key)
    try:
        attributes: dict[str, Any] = json.loads(raw)["attributes"]
        if not isinstance(attributes, dict):
            raise TypeError("its attributes are not an object")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedEntry(f"{objects.location}: {key} is damaged ({error})") from error
    return attributes


def write_sealed(objects: Objects, path: str, attributes: Mapping[str, Any]) -> None:
    """Write a group that is nothing but attributes, plain JSON values, with a seal that tells when they change."""
    write_group(objects, path, dict(attributes) | {SEAL: _seal(attributes, {})})


def read_sealed(objects: Objects, path: str) -> dict[str, Any]:
    """The attributes that ``write_sealed`` wrote; those of earlier versions have no seal.

    Raises:
        MissingEntry: there is no such group.
        DamagedEntry: the attributes cannot be read, or differ from those that were written.
    """
    attributes = read_group(objects, path)
    seal = attributes.pop(SEAL, None)
    if seal is not None and seal != _seal(attributes, {}):
        raise DamagedEntry(f"{objects.location}: {path}/zarr.json differs from what was written")
    return attributes


def _require_room_to_replace(objects: Objects, path: str, objects_of: Mapping[str, Mapping[str, list[bytes]]]) -> None:
    """Raise StoreFull if the disk would fill up while the objects of an entry are replaced one by one."""
    free = objects.free_bytes()
    if free is None:
        return
    former = find_entry(objects, path)
    replaced = {} if former is None else {key: int(one["bytes"]) for key, one in former.checksums.items()}
    for name, parts in sorted(objects_of.items()):
        for below, data in parts.items():
            size = sum(map(len, data))
            if free < size:
                raise StoreFull(
                    f"{objects.location}: no room left for what is to replace {path}, which stays as it was; free some "
                    "space and run the same command again"
                )
            free += replaced.get(f"{name}/{below}", 0) - size


class Entry:
    """A complete entry, opened for reading.

    Raises:
        MissingEntry: there is no complete entry at ``path``.
        DamagedEntry: the marker differs from the one that was written.
        FormatError: the entry was written by a newer version.
    """

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self.path = path
        self.attributes = read_group(objects, path)
        marker = self.attributes.pop(MARKER, None)
        if marker is None:
            raise MissingEntry(f"{objects.location}: {path} was begun and never completed; extract it again")
        seal = marker.pop(SEAL, None) if isinstance(marker, dict) else None
        if seal is not None and seal != _seal(self.attributes, marker):  # first, since the format may be what differs
            raise DamagedEntry(f"{objects.location}: {path}/zarr.json differs from what was written")
        require_format(marker, f"{objects.location}: {path}")
        if (marker["format"] > 1 and seal is None) or not _are_checksums(marker.get("objects")):
            raise DamagedEntry(f"{objects.location}: {path}/zarr.json differs from what was written")
        self.checksums: dict[str, dict[str, Any]] = marker["objects"]

    @property
    def bytes(self) -> int:
        """Stored size of all arrays in bytes."""
        return sum(int(entry["bytes"]) for entry in self.checksums.values())

    def array(self, name: str) -> StoredArray:
        """Open one array, reading only its metadata.

        Raises:
            DamagedEntry: its metadata are missing or damaged.
        """
        key = f"{name}/zarr.json"
        path = f"{self.path}/{name}"
        try:
            metadata = self._objects.get(f"{self.path}/{key}")
            expected = self.checksums[key]["sha256"]
        except (MissingEntry, KeyError) as error:
            raise DamagedEntry(f"{self._objects.location}: {path} is gone") from error
        if hashlib.sha256(metadata).hexdigest() != expected:
            raise DamagedEntry(f"{self._objects.location}: {path}/zarr.json differs from what was written")
        shard = sum(int(o["bytes"]) for k, o in self.checksums.items() if k.startswith(f"{name}/c/"))
        return StoredArray(self._objects, path, metadata, shard)

    def verify(self) -> list[str]:
        """Read every object and compare it with its checksum; returns one line for each that is damaged or missing."""
        problems = []
        for key, expected in self.checksums.items():
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


def is_sha256(name: str) -> bool:
    """Return whether a name has the form of a sha256, as those of images, specs and masks have."""
    return _SHA256.fullmatch(name) is not None


def find_entry(objects: Objects, path: str) -> Entry | None:
    """The complete entry at ``path``; None if there is none, or its marker is damaged."""
    try:
        return Entry(objects, path)
    except (MissingEntry, DamagedEntry):
        return None


def verify_entry(objects: Objects, path: str) -> list[str]:
    """Read an entry completely and check it; returns one line for each problem, files that cannot be read among them.

    Raises:
        StoreUnavailable: the object storage does not answer.
    """
    try:
        return Entry(objects, path).verify()
    except MissingEntry:
        return [f"{path}: incomplete, never finished"]
    except (DamagedEntry, FormatError) as error:
        return [str(error)]
    except StoreUnavailable:
        raise
    except OSError as error:  # of one file: a bad sector, permissions
        return [f"{path}: cannot be read ({error.strerror or error})"]


def require_format(marker: Any, where: str) -> None:
    """Raise unless this version can read the format that a marker names.

    Raises:
        FormatError: the format is newer than this version.
        DamagedEntry: the marker names no format.
    """
    version = marker.get("format") if isinstance(marker, dict) else None
    if not isinstance(version, int):
        raise DamagedEntry(f"{where}: the marker in zarr.json is damaged, it names no format")
    if version > FORMAT_VERSION:
        raise FormatError(f"{where} has format {version}, this version reads up to {FORMAT_VERSION}; upgrade diffdgss")


def _are_checksums(found: Any) -> bool:
    """Return whether a value has the form of a marker's checksums: {key: {"bytes": int, "sha256": str}}."""
    return isinstance(found, dict) and all(
        isinstance(one, dict)
        and isinstance(one.get("bytes"), int)
        and isinstance(one.get("sha256"), str)
        and not {"", ".."} & set(key.split("/"))  # it is a path in the store to which the entry is copied
        for key, one in found.items()
    )


def _sha256(parts: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()


def _seal(attributes: Mapping[str, Any], marker: Mapping[str, Any]) -> str:
    """sha256 of an entry's attributes and of its marker without the seal."""
    return hashlib.sha256(json.dumps([dict(attributes), dict(marker)], sort_keys=True).encode()).hexdigest()
