"""Arrays as they are stored: plain sharded Zarr v3, one object each, packed and read here, described by zarr.

An array is one shard; its chunks are cut along the first axis alone, so that one timestep can be
read and checked by itself. zarr-python reads these arrays too; this reader exists because reading is
what training waits for: it decodes every chunk straight into the caller's memory, which takes half the time
(docs/decisions/0007-own-reader.md), and it takes a chunk that is gone for damage where zarr fills in zeros.

    shard = chunk 0, chunk 1, ..., index, CRC-32C of the index
    index = (offset, length) of every chunk, uint64
    chunk = Blosc frame, CRC-32C of the frame
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from store.errors import DamagedEntry, MissingEntry
from store.objects import Objects

Compressor = Literal["lz4", "lz4-bits", "zstd-bits"]
"""Lossless codecs: LZ4 of the bytes as they are, LZ4 or Zstandard behind a shuffle of their bits."""

_CODECS: dict[str, dict[str, Any]] = {
    "lz4": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle"},
    "lz4-bits": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"},
    "zstd-bits": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 1 << 20},
}
_ADVICE = "`store verify --repair` makes the entry anew"


@dataclass(frozen=True)
class ArrayToWrite:
    """An array, the names of its axes, and how it is cut and packed.

    Attributes:
        values: any numbers.
        axes: a name for each axis.
        by_row: a chunk for each index of the first axis; else one chunk.
        compressor: lossless codec.
        attributes: kept beside the array.
    """

    values: NDArray[np.generic]
    axes: tuple[str, ...]
    by_row: bool = False
    compressor: Compressor = "lz4-bits"
    attributes: Mapping[str, Any] = field(default_factory=dict)


def packed(array: ArrayToWrite) -> dict[str, list[bytes]]:
    """The objects of an array, {path below it: bytes in parts}: its metadata, as zarr has them, and its shard.

    The shard is the one that zarr would write, byte for byte, made without its copies and its event loop, which
    all writers of a process would wait for.
    """
    values = np.require(array.values, array.values.dtype.newbyteorder("<"), requirements=("C",))
    described = _description(values.shape, values.dtype.str, array.axes, array.by_row, array.compressor)
    metadata = json.dumps({**described, "attributes": dict(array.attributes)})
    return {"zarr.json": [metadata.encode()], f"c{'/0' * values.ndim}": _shard(values, array)}


@lru_cache(maxsize=256)
def _description(
    shape: tuple[int, ...], dtype: str, axes: tuple[str, ...], by_row: bool, compressor: str
) -> Mapping[str, Any]:
    """zarr's own metadata of such an array: those of a spec's entries differ in their attributes alone."""
    kept: dict[str, Buffer] = {}
    zarr.create_array(
        MemoryStore(kept),
        name="array",
        shape=shape,
        dtype=dtype,
        shards=shape,
        chunks=(1, *shape[1:]) if by_row else shape,
        compressors=[BloscCodec(**_CODECS[compressor]), Crc32cCodec()],
        dimension_names=axes,
        fill_value=False if np.dtype(dtype) == np.bool_ else 0,
        config={"write_empty_chunks": True},
    )
    described: dict[str, Any] = json.loads(kept["array/zarr.json"].to_bytes())
    return described


def _shard(values: NDArray[Any], array: ArrayToWrite) -> list[bytes]:
    settings = dict(_CODECS[array.compressor])
    settings["shuffle"] = {"noshuffle": Blosc.NOSHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}[settings["shuffle"]]
    blosc = Blosc.from_config(settings)
    parts: list[bytes] = []
    index = np.empty((len(values) if array.by_row else 1, 2), dtype="<u8")
    offset = 0
    for i, chunk in enumerate(values if array.by_row else values[None]):
        frame = blosc.encode(chunk)
        parts += [frame, _crc(frame)]
        index[i] = offset, len(frame) + 4
        offset += len(frame) + 4
    return [*parts, index.tobytes(), _crc(index.tobytes())]


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


class StoredArray:
    """An array of a complete entry, opened for reading.

    Args:
        objects: where it is.
        path: of the array.
        metadata: contents of its zarr.json.
        stored_bytes: size of its shard when it was written.

    Raises:
        DamagedEntry: the metadata are not those of an array that was written here.
    """

    def __init__(self, objects: Objects, path: str, metadata: bytes, stored_bytes: int) -> None:
        self._objects = objects
        self._where = f"{objects.location}: {path}"
        try:
            described = json.loads(metadata)
            self.shape = tuple(described["shape"])
            self.dtype = np.dtype(described["data_type"])
            self.attributes: dict[str, Any] = described.get("attributes", {})
            self.axes: tuple[str, ...] = tuple(described["dimension_names"])
            self._rows = self.shape[0] // described["codecs"][0]["configuration"]["chunk_shape"][0]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedEntry(f"{self._where}: cannot be opened ({error}); {_ADVICE}") from error
        self._key = f"{path}/c{'/0' * len(self.shape)}"
        self._stored_bytes = stored_bytes

    def read(self, rows: Sequence[int] | None = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read and check some indices of the first axis, in the order given; all of them if None.

        Args:
            out: C-contiguous, receives the values.

        Raises:
            DamagedEntry: bytes are gone or differ from those that were written.
        """
        wanted = list(range(self._rows)) if rows is None else list(rows)
        height = self.shape[0] // self._rows
        values = np.empty((len(wanted) * height, *self.shape[1:]), self.dtype) if out is None else out
        try:
            for i, chunk in enumerate(self._chunks(wanted)):
                self._decode(chunk, values[i * height : (i + 1) * height])
        except MissingEntry as error:
            raise DamagedEntry(f"{self._where}: the object is gone; {_ADVICE}") from error
        return values

    def _chunks(self, rows: list[int]) -> list[NDArray[np.uint8]]:
        """The chunks' bytes, CRC included."""
        index_bytes = 16 * self._rows + 4
        if len(rows) == self._rows:
            shard = self._objects.get_range(self._key, 0, self._stored_bytes)
            index = self._index(shard[-index_bytes:])
            return [shard[start : start + length] for start, length in index[rows]]
        index = self._index(self._objects.get_range(self._key, self._stored_bytes - index_bytes, index_bytes))
        return [self._objects.get_range(self._key, int(start), int(length)) for start, length in index[rows]]

    def _index(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(offset, length) of every chunk, (rows, 2)."""
        if len(data) != 16 * self._rows + 4:
            raise self._damaged("it was cut short")
        return self._checked(data).view("<u8").reshape(self._rows, 2).astype(np.int64)

    def _decode(self, chunk: NDArray[np.uint8], out: NDArray[Any]) -> None:
        frame = self._checked(chunk)
        try:
            Blosc().decode(frame, out)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def _checked(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes before their CRC-32C."""
        body = data[:-4]
        if len(data) < 4 or google_crc32c.value(body) != int(data[-4:].view("<u4")[0]):
            raise self._damaged("the checksum differs")
        return body

    def _damaged(self, reason: str) -> DamagedEntry:
        return DamagedEntry(f"{self._where} is damaged ({reason}); {_ADVICE}")
