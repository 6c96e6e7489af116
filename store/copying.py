"""Copying a store, or a part of it, to another location, where existing entries are left as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from store.claims import Claims
from store.collection import LABELS, Collection
from store.entries import Entry, find_entry, is_sha256
from store.errors import DamagedEntry, MissingEntry, StoreFull, StoreUnavailable
from store.feature_store import FeatureStore
from store.features import entry_path
from store.objects import Objects
from store.parallel import in_parallel
from store.spec import FeatureSpec


@dataclass
class CopyReport:
    """The outcome of a copy.

    Attributes:
        copied: number of entries that are new at the destination.
        present: number of entries that were there already.
        bytes: number of bytes copied.
        problems: one line for each spec, entry, codebook, data set, mask or run record that was left out: it is
            incomplete, damaged, gone, or being made by another process.
    """

    copied: int = 0
    present: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, part: CopyReport) -> None:
        """Add the outcome of another part of the copy."""
        self.copied += part.copied
        self.present += part.present
        self.bytes += part.bytes
        self.problems += part.problems


def copy_store(
    source: FeatureStore,
    destination: FeatureStore,
    specs: Iterable[FeatureSpec] | None = None,
    advance: Callable[[], None] | None = None,
) -> CopyReport:
    """Copy the entries of some specs, and all data sets, masks and run records.

    Every object is compared with its checksum on the way. A copy that was stopped continues when it is run again.

    Args:
        specs: whose entries are copied; all if None.
        advance: called for each entry.

    Raises:
        StoreFull, StoreUnavailable: the destination is full or unavailable.
    """
    report = CopyReport()
    if specs is None:
        specs = source.specs()
        lost = source.digests_without_spec()
        report.problems += [f"{digest}: its spec is gone, its features are not copied" for digest in lost]
    with Claims(destination.objects) as claims:
        for spec in specs:
            try:
                codebook = source.codebook(spec)
            except DamagedEntry as error:
                report.problems.append(str(error))
                continue
            destination.register(spec, source.backbone_of(spec), codebook)
            paths = [entry_path(spec, key) for key in source.all_keys(spec)]
            for part in in_parallel(lambda path: _copy_claimed(source, destination, path, claims), paths):
                report.add(part)
                if advance is not None:
                    advance()
        collections = _readable_collections(source, report)
        _copy_masks(source, destination, collections, claims, report)
    for collection in collections:
        try:
            _copy_collection(collection, destination)
        except (DamagedEntry, MissingEntry) as error:
            report.problems.append(str(error))
    known = {record.name for record in destination.records.all()}
    for name, record in source.records.checked():
        if isinstance(record, DamagedEntry):
            report.problems.append(str(record))
        elif name not in known:
            destination.records.write(record)
    return report


def _readable_collections(store: FeatureStore, report: CopyReport) -> list[Collection]:
    """The data sets that can be read; the others are added to the report."""
    collections = list[Collection]()
    for name in store.collections.names():
        try:
            collections.append(store.collections.read(name))
        except (DamagedEntry, MissingEntry) as error:
            report.problems.append(str(error))
    return collections


def _copy_masks(
    source: FeatureStore,
    destination: FeatureStore,
    collections: Iterable[Collection],
    claims: Claims,
    report: CopyReport,
) -> None:
    """Copy all masks; those that cannot be copied, or that a data set names in vain, are added to the report."""
    named = set[str]().union(*(one.masks for one in collections))
    digests = {mask for mask in named if is_sha256(mask)} | set(source.collections.masks())
    report.problems += [f"{LABELS}/{mask!r}: named by a data set, and no mask's" for mask in named - digests]
    paths = [f"{LABELS}/{digest}" for digest in sorted(digests)]
    for part in in_parallel(lambda path: _copy_claimed(source, destination, path, claims, used=False), paths):
        report.problems += part.problems


def _copy_claimed(
    source: FeatureStore, destination: FeatureStore, path: str, claims: Claims, *, used: bool = True
) -> CopyReport:
    """Copy an entry under its claim, so that no extraction and no `prune` touches it at the same time.

    Args:
        used: copying counts as a use of the entry, which masks do not record.
    """
    if find_entry(destination.objects, path) is not None:  # a resumed copy takes no claims of what it has copied
        return CopyReport(present=1)
    if not claims.acquire(path):
        problem = f"{path}: another process is making it at the destination; copy again when it is done"
        return CopyReport(problems=[problem])
    try:
        if used:
            source.uses.stamp(path)
            destination.uses.stamp(path)
        return _copy_entry(source.objects, destination.objects, path)
    except (StoreUnavailable, StoreFull):
        raise
    except OSError as error:  # of one file: a bad sector, permissions
        return CopyReport(problems=[f"{path}: cannot be copied ({error.strerror or error})"])
    finally:
        claims.release(path)


def _copy_collection(collection: Collection, destination: FeatureStore) -> None:
    """Add the samples that the destination lacks to its data set; those that it has stay as they are."""
    known: set[str] = set()
    if collection.name in destination.collections.names():
        known = {sample.name for sample in destination.collections.read(collection.name).samples}
    new = tuple(sample for sample in collection.samples if sample.name not in known)
    if new:
        destination.collections.update(Collection(name=collection.name, samples=new), keep=lambda _: True)


def _copy_entry(source: Objects, destination: Objects, path: str) -> CopyReport:
    """Copy all objects of an entry, then its marker."""
    if find_entry(destination, path) is not None:
        return CopyReport(present=1)
    marker, report = f"{path}/zarr.json", CopyReport()
    try:
        entry, data_of_marker = Entry(source, path), source.get(marker)
    except MissingEntry:
        return CopyReport(problems=[f"{path}: incomplete, never finished"])
    except DamagedEntry as error:
        return CopyReport(problems=[str(error)])
    destination.remove(marker)
    for key, expected in entry.checksums.items():
        try:
            data = source.get(f"{path}/{key}")
        except MissingEntry:
            return CopyReport(problems=[f"{path}/{key}: gone"])
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            return CopyReport(problems=[f"{path}/{key}: the bytes differ from those that were written"])
        destination.put(f"{path}/{key}", data)
        report.bytes += len(data)
    destination.put(marker, data_of_marker)
    report.copied = 1
    return report
