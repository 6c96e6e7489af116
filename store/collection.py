"""Collections: the images of a named data set, with their splits, groups and masks.

The extractor writes them next to the features, so that a trainer needs nothing but the store.
Each mask is stored once, at native size, under the sha256 of its shape and pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Self
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from store.arrays import ArrayToWrite
from store.claims import LEASE, Claims
from store.entries import Entry, find_entry, is_sha256, read_sealed, write_entry, write_sealed
from store.errors import DamagedEntry, MissingEntry
from store.objects import Objects

COLLECTIONS = "datasets"
LABELS = "labels"

UNNAMED_TARGET = "mask"
"""Target of the masks of a folder that does not name their target."""

LONGEST_NAME = 150
"""Bytes of the longest name that a collection may have."""


def is_name(name: str) -> bool:
    """Return whether a collection may have this name: letters, digits, ``_``, ``-`` and ``.``, not starting with ``.``.

    It may have at most ``LONGEST_NAME`` bytes, since files are named after it, with something added.
    """
    plain = bool(name) and not name.startswith(".") and all(c.isalnum() or c in "_-." for c in name)
    return plain and len(name.encode()) <= LONGEST_NAME


class Sample(BaseModel):
    """One image of a collection.

    Attributes:
        image_id: sha256 of the image file.
        name: a readable name, unique in the collection.
        split: ``train``, ``val``, ``test`` or whatever the data set says.
        group: images of one group (a patient, say) stay together in a random split.
        masks: {target: digest of its mask}, such as {"vessel": "ab12..."}.
        indexed: targets whose mask files have one bit per pixel or a palette; image libraries resize those by
            nearest neighbour, whatever filter is asked for.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    image_id: str
    name: str
    split: str | None = None
    group: str | None = None
    masks: dict[str, str] = Field(default_factory=dict)
    indexed: tuple[str, ...] = ()


class Collection(BaseModel):
    """A named data set as it was extracted."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    samples: tuple[Sample, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        counts = Counter(sample.name for sample in self.samples)
        if twice := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(f"expected every sample name once, found {', '.join(twice[:5])} more often")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of all targets that are labelled on at least one sample, sorted."""
        return tuple(sorted({target for sample in self.samples for target in sample.masks}))

    @property
    def masks(self) -> set[str]:
        """Digests of the masks of all samples."""
        return {digest for sample in self.samples for digest in sample.masks.values()}


class Collections:
    """The collections and masks of one store."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def write(self, collection: Collection) -> None:
        """Write or replace the collection of that name, in one object."""
        described = collection.model_dump(mode="json")
        write_sealed(self.objects, f"{COLLECTIONS}/{collection.name}", {"collection": described})

    def read(self, name: str) -> Collection:
        """The collection of that name; MissingEntry, which lists the known names, if there is none."""
        try:
            attributes = read_sealed(self.objects, f"{COLLECTIONS}/{name}")
        except MissingEntry as error:
            known = ", ".join(self.names()) or "none"
            raise MissingEntry(
                f"{self.objects.location}: no data set {name!r} here (known: {known}); "
                "`extractor run --dataset ...` adds one"
            ) from error
        try:
            collection = Collection.model_validate(attributes["collection"])
        except (KeyError, ValidationError) as error:
            raise DamagedEntry(f"{self.objects.location}: the data set {name} is damaged ({error})") from error
        if normalize("NFC", collection.name) != normalize("NFC", name):  # file systems may normalise names otherwise
            raise DamagedEntry(f"{self.objects.location}: the data set {name} is damaged (its name is another)")
        return collection

    def names(self) -> list[str]:
        """Names of all collections, sorted."""
        names = self.objects.names(COLLECTIONS)
        return [name for name in names if self.objects.exists(f"{COLLECTIONS}/{name}/zarr.json")]

    def update(self, collection: Collection, *, keep: Callable[[Sample], bool] | None = None) -> None:
        """Write a collection under its claim, so that only one process at a time does.

        Args:
            keep: returns whether a stored sample of another name stays, before the new ones; None replaces all of them
                without reading them.

        Raises:
            ValueError: a new collection may not have this name.
            StoreBusy: another process has been writing the collection for too long.
        """
        if not is_name(collection.name) and collection.name not in self.names():
            raise ValueError(
                f"expected at most {LONGEST_NAME} bytes of letters, digits, '_', '-' and '.', not starting with '.', "
                f"found {collection.name!r}"
            )
        with Claims(self.objects) as claims, claims.acquired(f"{COLLECTIONS}/{collection.name}"):
            samples = {sample.name: sample for sample in collection.samples}
            if keep is not None and collection.name in self.names():
                stored = self.read(collection.name).samples
                samples = {one.name: one for one in stored if one.name in samples or keep(one)} | samples
            self.write(Collection(name=collection.name, samples=tuple(samples.values())))

    def write_mask(self, mask: NDArray[np.bool_]) -> str:
        """Store a native mask, bool (H, W), and return its digest."""
        digest = hashlib.sha256(f"{mask.shape}".encode() + np.packbits(mask).tobytes()).hexdigest()
        path = f"{LABELS}/{digest}"
        if find_entry(self.objects, path) is None:
            # Writing it again would remove another's marker for a moment.
            with Claims(self.objects).acquired(path, 2 * LEASE):
                if find_entry(self.objects, path) is None:
                    write_entry(self.objects, path, {"mask": ArrayToWrite(mask, ("y", "x"))}, {})
        return digest

    def masks(self) -> list[str]:
        """Digests of all masks, complete or not, sorted; other files are ignored."""
        return [name for name in self.objects.names(LABELS) if is_sha256(name)]

    def mask(self, digest: str) -> NDArray[np.bool_]:
        """A native mask, bool (H, W)."""
        return Entry(self.objects, f"{LABELS}/{digest}").array("mask").read().astype(np.bool_)
