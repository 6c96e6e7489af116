"""The contents of an entry of the store, in memory and on disk.

t timesteps kept    c channels of a block    k stored planes: c, or components    h, w size of its map
R side of the network's square
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.arrays import ArrayToWrite, Compressor, StoredArray
from store.encoded import Encoded
from store.entries import Entry
from store.errors import SpecError
from store.geometry import Geometry
from store.spec import Block, FeatureSpec, TransformEncoding
from store.uses import Uses
from store.views import IDENTITY

if TYPE_CHECKING:  # importing torch takes seconds, and inspecting a store does not need it
    from store.codecs import Codec

RESIDUALS = "residuals"
STORED_TYPES = {"float32": "float32", "float16": "float16", "int8": "int8", "compact": "uint8"}
COMPRESSORS: dict[str, Compressor] = {
    "float32": "lz4-bits",
    "float16": "lz4-bits",
    "int8": "lz4",
    "compact": "zstd-bits",
}
"""Compressor of each encoding, chosen from the table in docs/benchmarks.md."""


class Key(NamedTuple):
    """One view of one image, which identifies an entry among those of a spec."""

    image_id: str
    view: str = IDENTITY


@dataclass(frozen=True)
class Features:
    """The contents of one entry, in memory.

    Attributes:
        maps: {block: Encoded (t, k, h, w)}, timesteps in the spec's order.
        fov: bool (R, R), True inside the field of view.
        geometry: the crop and resize, which it also undoes.
        residuals: {grid timestep: mean squared difference, inside the field of view, between the photograph in
            [-1, 1] and the network's estimate of it at that timestep}; empty where none was computed or kept.
    """

    maps: Mapping[str, Encoded]
    fov: NDArray[np.bool_]
    geometry: Geometry
    residuals: Mapping[int, float] = field(default_factory=dict)

    def with_timesteps(self, spec: FeatureSpec, timesteps: Sequence[int]) -> Features:
        """The features at some of the timesteps of their spec; unchanged if these are all of them.

        Raises:
            SpecError: the spec does not keep one of them.
        """
        if tuple(timesteps) == spec.timesteps:
            return self
        rows = timestep_indices(spec, timesteps)
        return replace(self, maps={name: maps[rows] for name, maps in self.maps.items()})


class FeatureEntry:
    """A stored entry, whose maps are read on request.

    Args:
        entry: the entry, opened.
        spec: the spec of its contents.
        codec: decodes what is stored to feature maps.
        uses: the uses of its store, stamped whenever maps are read.
    """

    def __init__(self, entry: Entry, spec: FeatureSpec, codec: Codec, uses: Uses) -> None:
        self._entry, self._uses = entry, uses
        self.spec, self.codec = spec, codec
        self.geometry = Geometry.model_validate(entry.attributes["geometry"])

    @property
    def bytes(self) -> int:
        """Stored size in bytes."""
        return self._entry.bytes

    @property
    def fov(self) -> NDArray[np.bool_]:
        """bool (R, R), True inside the field of view."""
        return self._entry.array("fov").read().astype(np.bool_)

    @property
    def residuals(self) -> dict[int, float]:
        """Residuals, as in ``Features``; empty for entries of versions that did not keep them."""
        return {int(t): float(value) for t, value in self._entry.attributes.get(RESIDUALS, {}).items()}

    def encoded(self, block: str, timesteps: Sequence[int] | None = None, out: NDArray[Any] | None = None) -> Encoded:
        """One block as it is stored, (t, k, h, w), at the given timesteps (all of the spec's if None).

        Args:
            out: C-contiguous array that receives the values.

        Raises:
            DamagedEntry: stored bytes are damaged; the message names image and block.
            SpecError: the spec has no such block or timestep.
        """
        self.spec.block(block)
        self._uses.stamp(self._entry.path)
        rows = None if timesteps is None else timestep_indices(self.spec, timesteps)
        array = self._entry.array(block)
        values = array.read(rows, out)
        return Encoded(values, _of_rows(array, "scale", rows), _of_rows(array, "offset", rows))

    def read(self, block: str, timesteps: Sequence[int] | None = None) -> NDArray[np.float32]:
        """Feature maps of one block, float32 (t, c, h, w), at the given timesteps (all of the spec's if None).

        Raises:
            DamagedEntry: stored bytes are damaged; the message names image and block.
            SpecError: the spec has no such block or timestep.
        """
        maps: NDArray[np.float32] = self.codec.decode(block, self.encoded(block, timesteps)).numpy()
        return maps

    def features(self) -> Features:
        """The whole entry, read and checked."""
        maps = {block.name: self.encoded(block.name) for block in self.spec.blocks}
        return Features(maps, self.fov, self.geometry, self.residuals)


def timestep_indices(spec: FeatureSpec, timesteps: Sequence[int]) -> list[int]:
    """Positions of timesteps in those of the spec; SpecError names any that it does not keep."""
    if missing := [t for t in timesteps if t not in spec.timesteps]:
        raise SpecError(f"timesteps {missing} are not kept by this spec; it keeps {spec.timesteps}")
    return [spec.timesteps.index(t) for t in timesteps]


def entry_path(spec: FeatureSpec, key: Key) -> str:
    """Path of an entry below the store."""
    return f"{spec.digest}/{key.image_id}/{key.view}"


def arrays_of(features: Features, spec: FeatureSpec) -> dict[str, ArrayToWrite]:
    """The arrays to write for an entry; SpecError if they do not match the spec."""
    if set(features.maps) != {block.name for block in spec.blocks}:
        raise SpecError(f"expected blocks {[b.name for b in spec.blocks]}, got {sorted(features.maps)}")
    arrays = {}
    for block in spec.blocks:
        encoded = features.maps[block.name]
        shape, dtype = spec.stored_shape(block.name), np.dtype(STORED_TYPES[spec.encoding.kind])
        if encoded.values.shape != shape or encoded.values.dtype != dtype:
            raise SpecError(
                f"{block.name}: expected {dtype} {shape}, got {encoded.values.dtype} {encoded.values.shape}"
            )
        scaled = shape[:2] if spec.encoding.kind == "int8" else None
        for name, numbers in (("scale", encoded.scale), ("offset", encoded.offset)):
            if (None if numbers is None else numbers.shape) != scaled:
                raise SpecError(f"{block.name}: expected a {name} of shape {scaled}")
        arrays[block.name] = _to_write(encoded, block, spec)
    side = spec.resolution
    if features.fov.shape != (side, side) or features.geometry.resolution != side:
        raise SpecError(f"expected field of view and geometry of {side} x {side} pixels, got {features.fov.shape}")
    arrays["fov"] = ArrayToWrite(features.fov, dimensions(spec.resolution, spec.resolution))
    return arrays


def attributes_of(features: Features, spec: FeatureSpec) -> dict[str, Any]:
    """The attributes to write next to an entry's arrays."""
    attributes: dict[str, Any] = {"geometry": features.geometry.model_dump(), "timesteps": list(spec.timesteps)}
    if features.residuals:
        attributes[RESIDUALS] = {str(t): value for t, value in features.residuals.items()}
    return attributes


def dimensions(height: int, width: int) -> tuple[str, str]:
    """Names of the axes of a map; arrays of a group that share a name must have the same length along it."""
    return f"y_{height}", f"x_{width}"


def _to_write(encoded: Encoded, block: Block, spec: FeatureSpec) -> ArrayToWrite:
    parameters = {"scale": encoded.scale, "offset": encoded.offset}
    attributes = {name: values.tolist() for name, values in parameters.items() if values is not None}
    planes = "k" if isinstance(spec.encoding, TransformEncoding) else "c"
    axes = ("t", f"{planes}_{block.name}", *dimensions(block.height, block.width))
    return ArrayToWrite(encoded.values, axes, True, COMPRESSORS[spec.encoding.kind], attributes)


def _of_rows(array: StoredArray, name: str, rows: list[int] | None) -> NDArray[np.float32] | None:
    if name not in array.attributes:
        return None
    values = np.asarray(array.attributes[name], dtype=np.float32)
    return values if rows is None else values[rows]
