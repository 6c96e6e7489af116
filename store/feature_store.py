"""The feature store: feature maps under the spec that made them and the image they belong to.

    <store>/<spec digest>/                  group; attributes hold the spec
    <store>/<spec digest>/<image_id>/<view>/   entry: one array (t, c, h, w) for each block, and fov
    <store>/datasets/<name>/                collections
    <store>/labels/<digest>/                masks

t timesteps kept      c, h, w  channels and size of a block's map      R  network's square
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store

from store.collection import Collections
from store.entries import ArrayToWrite, CheckedArray, Entry, read_group, write_entry, write_group
from store.errors import DamagedEntry, MissingEntry, NonFiniteFeatures, SpecError, SpecMismatch
from store.geometry import Geometry
from store.objects import open_objects
from store.spec import FeatureSpec
from store.views import IDENTITY

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Key(NamedTuple):
    """One rendering of one image."""

    image_id: str
    view: str = IDENTITY


@dataclass(frozen=True)
class Features:
    """What one entry holds, in memory.

    Attributes:
        maps: {block: float (t, c, h, w)} in the spec's order of timesteps.
        fov: bool (R, R).
        geometry: undoes crop and resize.
    """

    maps: Mapping[str, NDArray[np.floating]]
    fov: NDArray[np.bool_]
    geometry: Geometry


class FeatureEntry:
    """A stored entry; maps are read when asked for."""

    def __init__(self, entry: Entry, spec: FeatureSpec) -> None:
        self._entry = entry
        self.spec = spec
        self.geometry = Geometry.model_validate(entry.attributes["geometry"])

    @property
    def bytes(self) -> int:
        """Stored bytes."""
        return self._entry.bytes

    @property
    def fov(self) -> NDArray[np.bool_]:
        """bool (R, R), True inside the field of view."""
        return self._entry.array("fov")[...].astype(np.bool_)

    def array(self, block: str) -> CheckedArray:
        """The stored array (t, c, h, w) of a block, read in slices."""
        self.spec.block(block)
        return self._entry.array(block)

    def read(self, block: str, timesteps: Sequence[int] | None = None) -> NDArray[np.floating]:
        """Maps of one block, (t, c, h, w), at the given timesteps (all of the spec's if None).

        Raises:
            DamagedEntry: names image and block.
            SpecError: the spec has no such block or timestep.
        """
        array = self.array(block)
        if timesteps is None:
            return array[...]
        return np.concatenate([array[i : i + 1] for i in timestep_indices(self.spec, timesteps)])

    def features(self) -> Features:
        """Everything, read and checked."""
        return Features({block.name: self.read(block.name) for block in self.spec.blocks}, self.fov, self.geometry)

    def verify(self) -> list[str]:
        """One line for each damaged object."""
        return self._entry.verify()


class FeatureStore:
    """Features of any number of specs and images at one location.

    Args:
        location: a folder, ``memory://`` or a Zarr store.
        read_only: refuse to create or change anything.

    Attributes:
        collections: the data sets and masks that are kept beside the features.
    """

    def __init__(self, location: str | Path | Store, *, read_only: bool = False) -> None:
        self.objects = open_objects(location, read_only=read_only)
        self.collections = Collections(self.objects)

    @property
    def location(self) -> str:
        return self.objects.location

    def register(self, spec: FeatureSpec, backbone: str | None = None) -> None:
        """Write the spec beside its features; entries may follow.

        Args:
            backbone: name or place of the backbone, for those who have to find it again.
        """
        if not self.objects.exists(f"{spec.digest}/zarr.json"):
            write_group(self.objects, spec.digest, {"spec": spec.model_dump(mode="json"), "backbone": backbone})

    def backbone_of(self, spec: FeatureSpec) -> str | None:
        """Name or place of the backbone that a registered spec was read from, if it was told."""
        backbone: str | None = read_group(self.objects, spec.digest).get("backbone")
        return backbone

    def specs(self) -> list[FeatureSpec]:
        """Every spec that has been registered, by digest."""
        return [self.spec(name) for name in self.objects.names("") if _DIGEST.fullmatch(name)]

    def spec(self, digest: str) -> FeatureSpec:
        """The spec with this digest, or whose digest begins so.

        Raises:
            MissingEntry: no such spec, or several.
        """
        found = [n for n in self.objects.names("") if _DIGEST.fullmatch(n) and n.startswith(digest)]
        if len(found) != 1:
            raise MissingEntry(
                f"{self.location}: {len(found) or 'no'} specs begin with {digest[:12]!r}; see `store info`"
            )
        attributes = read_group(self.objects, found[0])
        try:
            spec = FeatureSpec.model_validate(attributes["spec"])
        except (KeyError, ValueError) as error:
            raise DamagedEntry(f"{self.location}: the spec {found[0][:12]} cannot be read ({error})") from error
        if spec.digest != found[0]:
            raise DamagedEntry(f"{self.location}: the spec under {found[0][:12]} has the digest {spec.digest[:12]}")
        return spec

    def has(self, spec: FeatureSpec, key: Key) -> bool:
        """Whether a complete entry is there."""
        try:
            Entry(self.objects, _path(spec, key))
        except (MissingEntry, DamagedEntry):
            return False
        return True

    def entry(self, spec: FeatureSpec, key: Key) -> FeatureEntry:
        """A stored entry.

        Raises:
            MissingEntry: never completed; if the image is there under other specs, their difference is told.
        """
        try:
            return FeatureEntry(Entry(self.objects, _path(spec, key)), spec)
        except MissingEntry as error:
            for other in self.specs():
                if other.digest != spec.digest and self.has(other, key):
                    raise SpecMismatch(
                        f"{self.location}: image {key.image_id[:12]} is here, but under another spec; they differ in\n"
                        f"{spec.difference(other)}"
                    ) from error
            raise MissingEntry(
                f"{self.location}: no features of image {key.image_id[:12]}, view {key.view}, spec {spec.digest[:12]}; "
                "`extractor run` makes them"
            ) from error

    def write(self, spec: FeatureSpec, key: Key, features: Features) -> int:
        """Store one entry; the marker is written last.

        Args:
            features: maps of exactly the spec's blocks, shapes (t, c, h, w), in any float type.

        Returns:
            Bytes written.

        Raises:
            NonFiniteFeatures: a map holds NaN or infinity, or overflows the encoding.
            SpecError: blocks or shapes differ from the spec.
            StoreFull: no room left.
        """
        if set(features.maps) != {block.name for block in spec.blocks}:
            raise SpecError(f"expected blocks {[b.name for b in spec.blocks]}, got {sorted(features.maps)}")
        arrays = {}
        for block in spec.blocks:
            shape = (len(spec.timesteps), block.channels, block.height, block.width)
            encoded = encode(features.maps[block.name], spec, block.name)
            if encoded.shape != shape:
                raise SpecError(f"{block.name}: expected maps of shape {shape}, got {encoded.shape}")
            arrays[block.name] = ArrayToWrite(encoded, ("t", "c", "h", "w"), (1, *shape[1:]))
        arrays["fov"] = ArrayToWrite(features.fov, ("h", "w"), features.fov.shape)
        self.register(spec)
        attributes = {"geometry": features.geometry.model_dump(), "timesteps": list(spec.timesteps)}
        return write_entry(self.objects, _path(spec, key), arrays, attributes)

    def delete(self, spec: FeatureSpec, key: Key) -> None:
        """Remove one entry: the marker first, so that it never exists half."""
        self.objects.remove(_path(spec, key) + "/zarr.json")
        self.objects.delete(_path(spec, key))

    def keys(self, spec: FeatureSpec) -> Iterator[Key]:
        """Keys of all entries below a spec, complete or not, by image and view."""
        for image_id in self.objects.names(spec.digest):
            if _DIGEST.fullmatch(image_id):
                for view in self.objects.names(f"{spec.digest}/{image_id}"):
                    if view != "zarr.json":
                        yield Key(image_id, view)

    def verify(self, spec: FeatureSpec, key: Key) -> list[str]:
        """Read everything of one entry; one line for each problem."""
        try:
            return Entry(self.objects, _path(spec, key)).verify()
        except MissingEntry:
            return [f"{_path(spec, key)}: incomplete, never finished"]
        except DamagedEntry as error:
            return [str(error)]


def encode(maps: NDArray[np.floating], spec: FeatureSpec, block: str) -> NDArray[np.floating]:
    """Maps in the spec's element type; NonFiniteFeatures if a number does not survive it."""
    with np.errstate(over="ignore"):
        encoded = np.asarray(maps, dtype=spec.encoding.kind)
    if not np.isfinite(encoded).all():
        largest = float(np.abs(np.asarray(maps, dtype=np.float64)).max())
        raise NonFiniteFeatures(
            f"{block}: features hold NaN, infinity or numbers beyond {spec.encoding.kind} (largest {largest:.3g}); "
            "encode as float32"
        )
    return encoded


def timestep_indices(spec: FeatureSpec, timesteps: Sequence[int]) -> list[int]:
    """Positions of timesteps in the spec; SpecError names those it does not keep."""
    if missing := [t for t in timesteps if t not in spec.timesteps]:
        raise SpecError(f"timesteps {missing} are not kept by this spec; it keeps {spec.timesteps}")
    return [spec.timesteps.index(t) for t in timesteps]


def _path(spec: FeatureSpec, key: Key) -> str:
    return f"{spec.digest}/{key.image_id}/{key.view}"
