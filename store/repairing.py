"""Damage found, and put right: the runs that made what is damaged are run again.

Nothing is thrown away for that. What is damaged loses its marker while they run, and gets it back if
they do not make it anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from store.claims import Claims
from store.collection import COLLECTIONS, LABELS
from store.entries import verify_entry
from store.errors import DamagedEntry, MissingEntry, StoreError
from store.extraction_command import REPEATABLE, ExtractionCommand
from store.feature_store import CODEBOOK, FeatureStore
from store.features import Key, entry_path
from store.parallel import in_parallel
from store.records import RUNS, RunRecord
from store.spec import FeatureSpec, TransformEncoding


class CheckedPart(NamedTuple):
    """One thing that was read from end to end.

    Attributes:
        path: below the store.
        problems: one line each; empty if all is well.
        spec: whose it is; None for data sets and masks, which belong to every spec.
        key: of an entry.
    """

    path: str
    problems: list[str]
    spec: FeatureSpec | None = None
    key: Key | None = None


def count_parts(store: FeatureStore, specs: Sequence[FeatureSpec]) -> int:
    """How many things ``check`` will read."""
    coded = sum(isinstance(spec.encoding, TransformEncoding) for spec in specs)
    entries = sum(1 for spec in specs for _ in store.keys(spec))
    return coded + entries + len(store.collections.masks()) + len(store.collections.names())


def check(store: FeatureStore, specs: Sequence[FeatureSpec]) -> Iterator[CheckedPart]:
    """Read the codebooks and entries of some specs, and all data sets and masks.

    An entry that somebody is making at this moment is no problem.
    """
    claims = Claims(store.objects)
    for spec in specs:
        if isinstance(spec.encoding, TransformEncoding):
            path = f"{spec.digest}/{CODEBOOK}"
            yield CheckedPart(path, verify_entry(store.objects, path), spec)
        entries = [(entry_path(spec, key), spec, key) for key in store.keys(spec)]
        yield from in_parallel(lambda entry: _checked(store, claims, *entry), entries)
    named: set[str] = set()
    for name in store.collections.names():
        try:
            collection = store.collections.read(name)
        except (DamagedEntry, MissingEntry) as error:
            yield CheckedPart(f"{COLLECTIONS}/{name}", [str(error)])
        else:
            named |= {digest for sample in collection.samples for digest in sample.masks.values()}
            yield CheckedPart(f"{COLLECTIONS}/{name}", [])
    for name, record in store.records.checked():
        if isinstance(record, DamagedEntry):
            yield CheckedPart(f"{RUNS}/{name}", [f"{record}; its folder may be removed"])
    masks = [f"{LABELS}/{digest}" for digest in sorted(named | set(store.collections.masks()))]
    yield from in_parallel(lambda path: CheckedPart(path, verify_entry(store.objects, path)), masks)


def _checked(store: FeatureStore, claims: Claims, path: str, spec: FeatureSpec, key: Key) -> CheckedPart:
    problems = verify_entry(store.objects, path)
    return CheckedPart(path, [] if problems and claims.is_held(path) else problems, spec, key)


def lost_specs(store: FeatureStore) -> list[str]:
    """Folders of features whose spec is gone or damaged: nothing below them can be used."""
    return [f"{digest}: its spec is gone; `extractor run` with the same options writes it" for digest in store.lost()]


@contextmanager
def set_aside(store: FeatureStore, damaged: Iterable[CheckedPart]) -> Iterator[None]:
    """While in this context, what is damaged does not exist; what was not made anew is put back as it was."""
    markers = {}
    for one in damaged:
        key = f"{one.path}/zarr.json"
        with suppress(MissingEntry):
            markers[key] = store.objects.get(key)
            store.objects.remove(key)
    try:
        yield
    finally:
        for key, marker in markers.items():
            if not store.objects.exists(key):
                store.objects.put(key, marker)


def runs_that_made(
    store: FeatureStore, damaged: Sequence[CheckedPart]
) -> tuple[list[RunRecord], list[CheckedPart], list[CheckedPart]]:
    """The runs that have to be run again, each once; what they may make; what no recorded run made."""
    records = store.records.all()
    chosen: dict[tuple[tuple[str, str | bool], ...], RunRecord] = {}
    made: list[CheckedPart] = []
    orphans: list[CheckedPart] = []
    for one in damaged:
        makers = [record for record in records if _may_have_made(store, record, one)]
        (made if makers else orphans).append(one)
        for record in makers:
            chosen[tuple(sorted(record.options.items()))] = record
    return list(chosen.values()), made, orphans


def command_of(record: RunRecord, location: str) -> ExtractionCommand:
    """The command that repeats a run; StoreError if the record is no such thing."""
    for name in record.options:
        if name not in REPEATABLE:
            raise StoreError(f"the run record {record.name} holds the option {name!r}; it was not written here")
    return ExtractionCommand({"store": location, **record.options})


def run_again(commands: Iterable[ExtractionCommand]) -> list[str]:
    """Repeat runs, in processes of their own; one line for each that failed."""
    failed = ((command, command.run().returncode) for command in commands)
    return [f"`{command}` failed with exit code {code}" for command, code in failed if code]


def _may_have_made(store: FeatureStore, record: RunRecord, damaged: CheckedPart) -> bool:
    """A run made the entries of its data set under its spec; one that was killed did not write the set."""
    if damaged.spec is not None and damaged.spec.digest != record.spec:
        return False
    if damaged.path == f"{COLLECTIONS}/{record.dataset}":
        return True
    if damaged.path.startswith(f"{COLLECTIONS}/"):
        return False
    try:
        samples = store.collections.read(record.dataset).samples
    except (MissingEntry, DamagedEntry):
        return True
    if damaged.key is not None:
        return any(sample.image_id == damaged.key.image_id for sample in samples)
    label = damaged.path.removeprefix(f"{LABELS}/")
    return damaged.spec is not None or any(label in sample.masks.values() for sample in samples)
