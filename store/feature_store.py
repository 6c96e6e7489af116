"""The feature store: feature maps, filed under the spec that made them and the image they belong to.

    <store>/zarr.json                          group; attributes hold the format
    <store>/<spec digest>/                     group; attributes hold the spec
    <store>/<spec digest>/codebook/            codebook of the compact encoding
    <store>/<spec digest>/<image_id>/<view>/   entry: one array (t, k, h, w) for each block, and fov
    <store>/datasets/<name>/                   collections
    <store>/labels/<digest>/                   masks
    <store>/used/, claims/, runs/              entries' times of last use, writers' claims, run records

t timesteps kept    c channels of a block    k stored planes: c, or components    h, w size of its map
R side of the network's square
"""

from __future__ import annotations

import re
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.abc.store import Store

from store.arrays import ArrayToWrite
from store.claims import CLAIMS, Claims
from store.codebook import Codebook, codebook_of
from store.collection import COLLECTIONS, LABELS, Collections
from store.entries import (
    FORMAT_VERSION,
    MARKER,
    Entry,
    find_entry,
    is_sha256,
    read_group,
    require_format,
    verify_entry,
    write_entry,
    write_group,
)
from store.errors import DamagedEntry, FormatError, MissingEntry, SpecError, SpecMismatch, StoreError
from store.features import FeatureEntry, Features, Key, arrays_of, attributes_of, entry_path
from store.objects import HEALTH, open_objects
from store.parallel import in_parallel
from store.records import RUNS, Records
from store.spec import FeatureSpec, TransformEncoding
from store.uses import USES, Uses
from store.views import is_view

if TYPE_CHECKING:  # importing torch takes seconds, and inspecting a store does not need it
    from store.codecs import Codec

CODEBOOK = "codebook"
_PARTS = ("zarr.json", COLLECTIONS, LABELS, RUNS, CLAIMS, USES, HEALTH)
"""Names directly below a store, besides the folders of features."""
_LEFT_BY_OTHERS = re.compile(r"[.@$].*|.*\.partial|lost\+found|System Volume Information|Thumbs\.db|desktop\.ini", re.I)
"""Names that file systems, network shares, file managers and killed processes leave in any folder."""


class FeatureStore:
    """Features of any number of specs and images at one location.

    Args:
        location: a folder, ``s3://bucket/prefix``, ``memory://`` or a Zarr store.
        read_only: refuse to create or change anything, except the times of last use, which are still recorded where
            the storage permits it.

    Raises:
        FormatError: the store was written by a newer version, or the folder holds other things.
        MissingEntry: ``read_only``, and there is no store.

    Attributes:
        collections: the data sets and masks that are stored next to the features.
        records: records of the runs that made the features.
        uses: when each entry was last used.
    """

    def __init__(self, location: str | Path | Store, *, read_only: bool = False) -> None:
        self.objects = open_objects(location, read_only=read_only)
        self.collections = Collections(self.objects)
        self.records = Records(self.objects)
        self.uses = Uses(self.objects.writable())
        self._codecs: dict[str, Codec] = {}
        try:
            require_format(read_group(self.objects, "").get(MARKER, {"format": 1}), self.location)
        except MissingEntry:  # a new store, or one of the first format, which had no root marker
            self._require_own_place(read_only=read_only)
        except DamagedEntry as error:
            advice = "remove that file: all else is whole without it, and `extractor run` writes it again"
            raise DamagedEntry(f"{error}; {advice}") from error

    def _require_own_place(self, *, read_only: bool) -> None:
        """Raise MissingEntry if there is no store to read, FormatError if a new store may not be created here."""
        if "://" in self.location and not read_only:  # the first write reports a bucket that does not exist
            return
        names = self.objects.names("")
        if any(is_sha256(name) for name in names):  # a store of the first format, which had no root marker
            return
        if read_only:
            raise MissingEntry(f"{self.location}: no store here")
        if strangers := [name for name in names if name not in _PARTS and not _LEFT_BY_OTHERS.fullmatch(name)]:
            raise FormatError(
                f"{self.location}: holds other things, such as {strangers[0]}; give the store a folder of its own"
            )

    @property
    def location(self) -> str:
        return self.objects.location

    def register(self, spec: FeatureSpec, backbone: str | None = None, codebook: Codebook | None = None) -> None:
        """Write the spec next to its features, so that entries can be written under it.

        Args:
            backbone: name or location of the backbone, for those who have to find it again.
            codebook: the codebook of a compact encoding.

        Raises:
            SpecError: the codebook of a compact encoding has to be written, and ``codebook`` is not that codebook.
            StoreBusy: another process is writing the codebook, or has died over it lately.
        """
        known = self.is_registered(spec)
        if isinstance(spec.encoding, TransformEncoding) and (
            not known or verify_entry(self.objects, f"{spec.digest}/{CODEBOOK}")
        ):
            if codebook is None or codebook.digest != spec.encoding.codebook:
                raise SpecError(f"the spec is encoded with the codebook {spec.encoding.codebook[:12]}; register it too")
            self._write_codebook(spec, codebook)
        if not self.objects.exists("zarr.json"):
            write_group(self.objects, "", {MARKER: {"format": FORMAT_VERSION}})
        if known and (backbone is None or self.backbone_of(spec) is not None):
            return
        write_group(self.objects, spec.digest, {"spec": spec.model_dump(mode="json"), "backbone": backbone})

    def _write_codebook(self, spec: FeatureSpec, codebook: Codebook) -> None:
        """Write a codebook, unless another process has just done so."""
        path = f"{spec.digest}/{CODEBOOK}"
        with Claims(self.objects).acquired(path, 5.0):
            if verify_entry(self.objects, path):
                arrays = {name: ArrayToWrite(a, tuple("ck"[: a.ndim])) for name, a in codebook.arrays().items()}
                write_entry(self.objects, path, arrays, {})

    def is_registered(self, spec: FeatureSpec) -> bool:
        """Return whether the store holds this spec, readable and unchanged."""
        try:
            return self._read_spec(spec.digest) == spec
        except (MissingEntry, DamagedEntry):
            return False

    def codebook(self, spec: FeatureSpec) -> Codebook | None:
        """The codebook of a registered compact spec; None for every other encoding; DamagedEntry if it is gone."""
        if not isinstance(spec.encoding, TransformEncoding):
            return None
        path = f"{spec.digest}/{CODEBOOK}"
        try:
            entry = Entry(self.objects, path)
        except MissingEntry as error:
            raise DamagedEntry(
                f"{self.location}: the codebook of spec {spec.digest[:12]} is gone, without which its features cannot "
                "be read; `extractor run` with the same options writes it again"
            ) from error
        names = {key.split("/")[0] for key in entry.checksums}
        arrays = {name: entry.array(name).read() for name in names}
        return codebook_of(arrays, [block.name for block in spec.blocks], f"{self.location}: {path}")

    def codec(self, spec: FeatureSpec) -> Codec:
        """The codec that decodes the numbers stored under a spec to feature maps."""
        if spec.digest not in self._codecs:
            from store.codecs import codec_for

            self._codecs[spec.digest] = codec_for(spec, self.codebook(spec))
        return self._codecs[spec.digest]

    def backbone_of(self, spec: FeatureSpec) -> str | None:
        """Name or location of the backbone that a spec was registered with; None if none was given."""
        backbone: str | None = read_group(self.objects, spec.digest).get("backbone")
        return backbone

    def specs(self) -> list[FeatureSpec]:
        """All registered specs that can be read, sorted by digest; ``digests_without_spec`` has those that cannot."""
        found = []
        for digest in self._digests():
            with suppress(DamagedEntry):
                found.append(self._read_spec(digest))
        return found

    def spec(self, digest: str) -> FeatureSpec:
        """The spec whose digest is ``digest`` or begins with it.

        Raises:
            MissingEntry: no spec matches, or several do.
        """
        found = [full for full in self._digests() if full.startswith(digest)]
        if len(found) != 1:
            raise MissingEntry(
                f"{self.location}: {len(found) or 'no'} specs begin with {digest[:12]!r}; see `store info`"
            )
        return self._read_spec(found[0])

    def _read_spec(self, digest: str) -> FeatureSpec:
        attributes = read_group(self.objects, digest)
        try:
            spec = FeatureSpec.model_validate(attributes["spec"])
        except (KeyError, ValueError) as error:
            raise DamagedEntry(f"{self.location}: the spec {digest[:12]} cannot be read ({error})") from error
        if spec.digest != digest:
            raise DamagedEntry(f"{self.location}: the spec under {digest[:12]} has the digest {spec.digest[:12]}")
        return spec

    def digests_without_spec(self) -> list[str]:
        """Digests under which entries are stored although their spec is missing or damaged."""
        found = []
        for digest in (name for name in self.objects.names("") if is_sha256(name)):
            try:
                self._read_spec(digest)
            except (MissingEntry, DamagedEntry):
                if any(is_sha256(name) for name in self.objects.names(digest)):
                    found.append(digest)
        return found

    def _digests(self) -> list[str]:
        names = [name for name in self.objects.names("") if is_sha256(name)]
        return [name for name in names if self.objects.exists(f"{name}/zarr.json")]

    def has(self, spec: FeatureSpec, key: Key) -> bool:
        """Return whether a complete entry is stored. Does not count as a use."""
        return self.stored_bytes(spec, key) is not None

    def has_each(self, spec: FeatureSpec, keys: Iterable[Key]) -> Iterator[bool]:
        """Yield whether each of some entries is stored, in order; many are looked up at once."""
        return in_parallel(lambda key: self.has(spec, key), keys)

    def find(self, spec: FeatureSpec, key: Key) -> FeatureEntry | None:
        """A stored entry, opened for reading, which counts as a use; None if it is missing, incomplete or damaged.

        Where there is none, the store is looked at once, while ``entry`` also finds out why.

        Raises:
            DamagedEntry: the codebook of a compact spec is gone.
        """
        path = entry_path(spec, key)
        found = find_entry(self.objects, path)
        if found is None:
            return None
        if self.uses.stamp(path) and not self.objects.exists(f"{path}/zarr.json"):  # `prune` came in between
            self.uses.forget(path)
            return None
        return FeatureEntry(found, spec, self.codec(spec), self.uses)

    def entry(self, spec: FeatureSpec, key: Key) -> FeatureEntry:
        """A stored entry, opened for reading, which counts as a use.

        Raises:
            MissingEntry: it was never written, or never completed.
            SpecMismatch: this view of the image is stored under other specs only; the message says in what the nearest
                of them differs.
        """
        path = entry_path(spec, key)
        self.uses.stamp(path)  # before it is opened, so that no `prune` removes it in between
        try:
            return FeatureEntry(self._open(path), spec, self.codec(spec), self.uses)
        except MissingEntry as error:
            with suppress(StoreError, OSError, ValueError):  # a stamp that cannot be removed is a small thing
                self.uses.forget(path)
            if (other := self.nearest_spec(spec, key)) is not None:
                raise SpecMismatch(
                    f"{self.location}: image {key.image_id[:12]}, view {key.view}, has no features of spec "
                    f"{spec.digest[:12]}, only of {other.digest[:12]}; they differ in\n{spec.difference(other)}"
                ) from error
            raise MissingEntry(
                f"{self.location}: no features of image {key.image_id[:12]}, view {key.view}, spec {spec.digest[:12]}; "
                "`extractor run` makes them"
            ) from error

    def nearest_spec(self, spec: FeatureSpec, key: Key) -> FeatureSpec | None:
        """The spec that differs in the fewest fields, among the others that have this entry; None if none has it."""
        others = [other for other in self.specs() if other.digest != spec.digest and self.has(other, key)]
        return min(others, key=lambda other: len(spec.difference(other).splitlines()), default=None)

    def _open(self, path: str) -> Entry:
        """Open an entry; if it is missing but claimed, retry once: ``prune`` restores the marker of an entry in use."""
        try:
            return Entry(self.objects, path)
        except MissingEntry:
            if not self.objects.exists(f"{CLAIMS}/{path}"):
                raise
            time.sleep(0.2)
            return Entry(self.objects, path)

    def write(self, spec: FeatureSpec, key: Key, features: Features) -> int:
        """Store one entry; its marker is written last. A compact spec must be registered first.

        Several processes that may write the same entry must hold its claim (``store.claims``).

        Args:
            features: exactly the blocks of the spec, in its encoding.

        Returns:
            Bytes written.

        Raises:
            SpecError: blocks, shapes or types differ from the spec, or the key is none.
            StoreFull: there is no room left; what was written of the entry is removed.
        """
        if not is_sha256(key.image_id) or not is_view(key.view):
            raise SpecError(f"expected the sha256 of an image, in hexadecimal digits, and a view, got {tuple(key)}")
        arrays = arrays_of(features, spec)
        if not self.objects.exists(f"{spec.digest}/zarr.json"):
            self.register(spec)
        path = entry_path(spec, key)
        self.uses.stamp(path)
        return write_entry(self.objects, path, arrays, attributes_of(features, spec))

    def delete(self, spec: FeatureSpec, key: Key) -> None:
        """Remove one entry. Its marker goes first, so that no reader takes the rest for a complete entry."""
        path = entry_path(spec, key)
        self.objects.remove(f"{path}/zarr.json")
        self.objects.delete(path)
        self.uses.forget(path)

    def delete_image(self, spec: FeatureSpec, image_id: str, timeout: float = 5.0) -> int:
        """Remove all views of an image, complete or not, and return how many there were.

        Args:
            timeout: seconds to wait, in all, for processes that are making some of them.

        Raises:
            StoreBusy: a process still holds the claim of a view; that view and those after it stay.
        """
        folder, claims = f"{spec.digest}/{image_id}", Claims(self.objects)
        names, deadline = self.objects.names(folder), time.monotonic() + timeout
        views = [name for name in names if is_view(name)]
        for view in views:
            key = Key(image_id, view)
            with claims.acquired(entry_path(spec, key), max(0.0, deadline - time.monotonic())):
                self.delete(spec, key)
        for name in set(names) - set(views):  # what file managers and network shares leave in any folder
            self.objects.delete(f"{folder}/{name}")
            self.objects.remove(f"{folder}/{name}")
        return len(views)

    def keys(self, spec: FeatureSpec, images: Container[str] | None = None) -> Iterator[Key]:
        """Keys of the complete entries of a spec, sorted by image and view.

        Args:
            images: ids of the images whose entries are looked up; all if None.
        """
        keys = [key for key in self.all_keys(spec) if images is None or key.image_id in images]
        return compress(keys, self.has_each(spec, keys))

    def all_keys(self, spec: FeatureSpec) -> Iterator[Key]:
        """Keys of all entries of a spec, those included that are incomplete or being written, in the same order."""
        images = [name for name in self.objects.names(spec.digest) if is_sha256(name)]
        listed = in_parallel(lambda image_id: self.objects.names(f"{spec.digest}/{image_id}"), images)
        for image_id, names in zip(images, listed, strict=True):
            for view in filter(is_view, names):  # file managers and network shares leave files of their own
                yield Key(image_id, view)

    def stored_bytes(self, spec: FeatureSpec, key: Key) -> int | None:
        """Stored size of an entry in bytes; None if it is missing, incomplete or damaged. Does not count as a use."""
        found = find_entry(self.objects, entry_path(spec, key))
        return None if found is None else found.bytes

    def verify(self, spec: FeatureSpec, key: Key) -> list[str]:
        """Read one entry completely and check it; returns one line for each problem."""
        return verify_entry(self.objects, entry_path(spec, key))
