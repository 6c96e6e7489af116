"""Finding damage and repairing it by running again the runs that made the damaged parts.

Nothing is deleted for that. A damaged part loses its marker while they run, and gets it back if they do
not make the part again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from store.claims import Claims
from store.collection import COLLECTIONS, LABELS
from store.entries import verify_entry
from store.errors import DamagedEntry, MissingEntry, StoreError
from store.extraction_command import REPEATABLE, ExtractionCommand, reached_its_end
from store.feature_store import CODEBOOK, FeatureStore
from store.features import Key, entry_path
from store.parallel import in_parallel
from store.records import RUNS, RunRecord
from store.spec import FeatureSpec, TransformEncoding

_SET_ASIDE = "marker-of-damaged.json"
"""Name, within a damaged part that is being repaired, of its marker."""


class CheckResult(NamedTuple):
    """One part of a store that was read completely.

    Attributes:
        path: its path below the store.
        problems: one line each; empty if there are none.
        spec: the spec it belongs to; None for data sets, masks and run records, which belong to no single spec.
        key: the key of an entry; None for any other part.
    """

    path: str
    problems: list[str]
    spec: FeatureSpec | None = None
    key: Key | None = None


def count_parts(store: FeatureStore, specs: Sequence[FeatureSpec]) -> int:
    """Number of parts that ``check`` will read, apart from missing masks and damaged run records."""
    coded = sum(isinstance(spec.encoding, TransformEncoding) for spec in specs)
    entries = sum(1 for spec in specs for _ in store.all_keys(spec))
    return coded + entries + len(store.collections.masks()) + len(store.collections.names())


def check(store: FeatureStore, specs: Sequence[FeatureSpec]) -> Iterator[CheckResult]:
    """Read the codebooks and entries of some specs, and all data sets, run records and masks.

    Run records are yielded only if damaged. An entry that is being made at this moment has no problems.
    """
    claims = Claims(store.objects)
    for spec in specs:
        if isinstance(spec.encoding, TransformEncoding):
            path = f"{spec.digest}/{CODEBOOK}"
            yield CheckResult(path, verify_entry(store.objects, path), spec)
        entries = [(entry_path(spec, key), spec, key) for key in store.all_keys(spec)]
        yield from in_parallel(lambda one: CheckResult(one[0], _problems(store, claims, one[0]), *one[1:]), entries)
    named: set[str] = set()
    for name in store.collections.names():
        try:
            collection = store.collections.read(name)
        except (DamagedEntry, MissingEntry) as error:
            yield CheckResult(f"{COLLECTIONS}/{name}", [str(error)])
        else:
            named |= collection.masks
            yield CheckResult(f"{COLLECTIONS}/{name}", [])
    for name, record in store.records.checked():
        if isinstance(record, DamagedEntry):
            yield CheckResult(f"{RUNS}/{name}", [f"{record}; its folder may be removed"])
    masks = [f"{LABELS}/{digest}" for digest in sorted(named | set(store.collections.masks()))]
    yield from in_parallel(lambda path: CheckResult(path, _problems(store, claims, path)), masks)


def _problems(store: FeatureStore, claims: Claims, path: str) -> list[str]:
    """The problems of an entry or a mask; none if it is being made at this moment, when it has no marker."""
    problems = verify_entry(store.objects, path)
    if problems and store.objects.exists(f"{path}/{_SET_ASIDE}"):
        return [f"{path}: damaged, and its repair was interrupted; run `store verify --repair` again"]
    if not problems or not claims.is_held(path):
        return problems
    # Its objects may have been replaced while they were read, so that they belong to a marker written since.
    return verify_entry(store.objects, path) if store.objects.exists(f"{path}/zarr.json") else []


def missing_specs(store: FeatureStore) -> list[str]:
    """One line for each folder of features that cannot be used, as its spec is missing or damaged."""
    return [
        f"{digest}: its spec is gone; `extractor run` with the same options writes it"
        for digest in store.digests_without_spec()
    ]


@contextmanager
def markers_removed(store: FeatureStore, damaged: Iterable[CheckResult]) -> Iterator[None]:
    """Set the markers of damaged parts aside in this context; then put back those of parts that were not made again.

    They are set aside in the store, so that a repair which is killed loses nothing: the next one goes on with them.
    """
    paths = [one.path for one in damaged]
    for path in paths:
        with suppress(MissingEntry):
            store.objects.put(f"{path}/{_SET_ASIDE}", store.objects.get(f"{path}/zarr.json"))
            store.objects.remove(f"{path}/zarr.json")
    try:
        yield
    finally:
        for path in paths:
            with suppress(MissingEntry):  # all of it was removed to be made again
                marker = store.objects.get(f"{path}/{_SET_ASIDE}")
                if not store.objects.exists(f"{path}/zarr.json"):
                    store.objects.put(f"{path}/zarr.json", marker)
                store.objects.remove(f"{path}/{_SET_ASIDE}")


def runs_to_repeat(
    store: FeatureStore, damaged: Sequence[CheckResult]
) -> tuple[list[RunRecord], list[CheckResult], list[CheckResult]]:
    """The runs to run again, each once; the damaged parts that they may make; those that no recorded run made."""
    records = store.records.all()
    contents = {name: _contents(store, name) for name in {record.dataset for record in records}}
    chosen: dict[tuple[tuple[str, str | bool], ...], RunRecord] = {}
    made: list[CheckResult] = []
    orphans: list[CheckResult] = []
    for one in damaged:
        makers = [record for record in records if _may_have_made(record, contents[record.dataset], one)]
        (made if makers else orphans).append(one)
        for record in makers:
            chosen[tuple(sorted(record.options.items()))] = record
    return list(chosen.values()), made, orphans


@dataclass(frozen=True)
class Repair:
    """The outcome of a repair.

    Attributes:
        orphans: damaged parts that no recorded run made.
        failed: one line for each run that failed; one that left out photographs, as it did before, did not.
    """

    orphans: list[CheckResult]
    failed: list[str]


def repair(store: FeatureStore, damaged: Sequence[CheckResult]) -> Repair:
    """Repeat the recorded runs that made damaged parts, each in a new process; all runs if the spec of some is gone.

    Parts that are not made again are left as they were.

    Raises:
        StoreError: a run record holds an option that runs do not record; nothing was run.
    """
    records, made, orphans = runs_to_repeat(store, damaged)
    if store.digests_without_spec():
        records = store.records.all()
    of_specs = {one.spec.digest for one in made if one.spec is not None} | set(store.digests_without_spec())
    commands = [command_of(one, str(store.location), same_spec=one.spec in of_specs) for one in records]
    with markers_removed(store, made):
        return Repair(orphans, _run_again(commands))


def command_of(record: RunRecord, location: str, *, same_spec: bool = True) -> ExtractionCommand:
    """The command that repeats a run.

    Args:
        same_spec: the command fails if the options lead to another spec now; masks and data sets belong to none.

    Raises:
        StoreError: the record holds an option that runs do not record.
    """
    for name in record.options:
        if name not in REPEATABLE:
            raise StoreError(f"the run record {record.name} holds the option {name!r}; it was not written here")
    pinned = {"expect-spec": record.spec} if same_spec else {}
    return ExtractionCommand({"store": location, **record.options, **pinned})


def _run_again(commands: Iterable[ExtractionCommand]) -> list[str]:
    """Run commands, each in a new process; returns one line for each that failed."""
    done = ((command, command.run()) for command in commands)
    return [f"`{command}` failed with exit code {one.returncode}" for command, one in done if not reached_its_end(one)]


class _Contents(NamedTuple):
    """The image ids and the digests of the masks that a data set names."""

    images: set[str]
    masks: set[str]


def _contents(store: FeatureStore, dataset: str) -> _Contents | None:
    """What a data set names; None if it cannot be read."""
    try:
        collection = store.collections.read(dataset)
    except (MissingEntry, DamagedEntry):
        return None
    return _Contents({one.image_id for one in collection.samples}, collection.masks)


def _may_have_made(record: RunRecord, contents: _Contents | None, damaged: CheckResult) -> bool:
    """Return whether a run may have made a damaged part.

    A run makes the entries and masks of its data set under its spec. If that data set cannot be read, as after a run
    that was killed before it wrote the set, any entry of the spec and any mask may be its own.
    """
    if damaged.spec is not None and damaged.spec.digest != record.spec:
        return False
    if damaged.path == f"{COLLECTIONS}/{record.dataset}":
        return True
    if damaged.path.startswith(f"{COLLECTIONS}/"):
        return False
    if contents is None:
        return True
    if damaged.key is not None:
        return damaged.key.image_id in contents.images
    return damaged.spec is not None or damaged.path.removeprefix(f"{LABELS}/") in contents.masks
