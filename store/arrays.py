"""Stored arrays: plain sharded Zarr v3 arrays, packed and read here, with metadata written by zarr.

The data of an array are one shard, hence one object. Its chunks are cut along the first axis only, so that
one timestep can be read and checked by itself. zarr-python can read these arrays too; this reader exists because
training waits for reads: it decodes every chunk directly into the caller's memory, which takes half the time
(docs/decisions/0007-own-reader.md), and it reports a missing chunk as damage where zarr would fill in zeros.

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
"""Lossless codecs: LZ4 of the bytes as they are, or LZ4 or Zstandard after a bit shuffle."""

_CODECS: dict[str, dict[str, Any]] = {
    "lz4": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle"},
    "lz4-bits": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle"},
    "zstd-bits": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "blocksize": 1 << 20},
}
_ADVICE = "`store verify --repair` makes the entry again"


@dataclass(frozen=True)
class ArrayToWrite:
    """An array to be stored, with the names of its axes, its chunking and its compression.

    Attributes:
        values: numbers of any type.
        axes: a name for each axis.
        by_row: whether each index of the first axis is a chunk; otherwise the whole array is one chunk.
        compressor: lossless codec.
        attributes: stored with the array's metadata.
    """

    values: NDArray[np.generic]
    axes: tuple[str, ...]
    by_row: bool = False
    compressor: Compressor = "lz4-bits"
    attributes: Mapping[str, Any] = field(default_factory=dict)


def packed(array: ArrayToWrite) -> dict[str, list[bytes]]:
    """Pack an array into its objects, {path below it: bytes in parts}: zarr's own metadata and the shard.

    The shard is the one that zarr would write, byte for byte, but made without zarr's copies and without its event
    loop, for which all writers of a process would have to wait.
    """
    values = np.require(array.values, array.values.dtype.newbyteorder("<"), requirements=("C",))
    described = _description(values.shape, values.dtype.str, array.axes, array.by_row, array.compressor)
    metadata = json.dumps({**described, "attributes": dict(array.attributes)})
    return {"zarr.json": [metadata.encode()], f"c{'/0' * values.ndim}": _shard(values, array)}


@lru_cache(maxsize=256)
def _description(
    shape: tuple[int, ...], dtype: str, axes: tuple[str, ...], by_row: bool, compressor: str
) -> Mapping[str, Any]:
    """The metadata that zarr writes for such an array; cached, since a spec's entries differ only in attributes."""
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
        objects: the objects of its store.
        path: path of the array.
        metadata: contents of its zarr.json.
        stored_bytes: size of its shard in bytes when it was written.

    Raises:
        DamagedEntry: the metadata do not describe an array that this package wrote.
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
        """Read and check the chunks of some rows, in the given order.

        Args:
            rows: indices of the first axis for an array that was written ``by_row``; every other array is one row.
                All rows if None.
            out: C-contiguous array that receives the values.

        Raises:
            DamagedEntry: bytes are missing or differ from those that were written.
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
        """The bytes of the chunks of some rows, CRC included."""
        index_bytes = 16 * self._rows + 4
        if len(rows) == self._rows:
            shard = self._objects.get_range(self._key, 0, self._stored_bytes)
            index = self._index(shard[-index_bytes:])
            return [shard[start : start + length] for start, length in index[rows]]
        index = self._index(self._objects.get_range(self._key, self._stored_bytes - index_bytes, index_bytes))
        return [self._objects.get_range(self._key, int(start), int(length)) for start, length in index[rows]]

    def _index(self, data: NDArray[np.uint8]) -> NDArray[np.int64]:
        """(offset, length) of every chunk, int64 (rows, 2)."""
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
        """The bytes before the CRC-32C that ends ``data``, which is checked."""
        body = data[:-4]
        if len(data) < 4 or google_crc32c.value(body) != int(data[-4:].view("<u4")[0]):
            raise self._damaged("the checksum differs")
        return body

    def _damaged(self, reason: str) -> DamagedEntry:
        return DamagedEntry(f"{self._where} is damaged ({reason}); {_ADVICE}")
