"""The ``store`` command: list, verify, prune, copy and export feature stores."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.table import Column, Table
from rich.text import Text

from store import console, pruning
from store.collection import Collection
from store.console import AsJson, Exit
from store.copying import copy_store
from store.errors import DamagedEntry, MissingEntry, StoreError
from store.feature_store import FeatureStore
from store.features import Key
from store.parallel import in_parallel
from store.records import RUNS
from store.repairing import CheckResult, check, count_parts, missing_specs
from store.repairing import repair as repair_damage
from store.spec import FeatureSpec, preprocessing_name
from store.uses import GRACE

app = typer.Typer(
    help="List, verify, prune, copy and export feature stores.",
    epilog="Exit codes: 0 all well, 1 failed, 2 wrong usage, 4 damaged or incomplete entries.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)
console.add_version_option(app)

StorePath = Annotated[str, typer.Argument(help="Folder of the store, or s3://bucket/prefix.", show_default=False)]
SpecOption = Annotated[
    str | None, typer.Option("--spec", help="Digest of the only spec to read; its first digits suffice.")
]


@app.command("ls", epilog="Example: store ls features.zarr --json")
def list_entries(path: StorePath, spec: SpecOption = None, as_json: AsJson = False) -> None:
    """List every entry: its spec, image, view and size, and whether it is complete."""
    store = FeatureStore(path, read_only=True)
    _note_missing_specs(store)
    names = _image_names(store)
    rows: list[dict[str, Any]] = []
    work = [(one, key) for one in _specs(store, spec) for key in store.all_keys(one)]
    with console.progress("looking", len(work), as_json=as_json) as advance:
        sizes = in_parallel(lambda entry: store.stored_bytes(*entry), work)
        for (one, key), size in zip(work, sizes, strict=True):
            advance()
            rows.append(
                {
                    "spec": one.digest,
                    "image_id": key.image_id,
                    "view": key.view,
                    "name": names.get(key.image_id),
                    "bytes": size,
                    "complete": size is not None,
                }
            )
    if as_json:
        console.print_json(rows)
        return
    table = Table(*(Column(name, no_wrap=True) for name in ("spec", "image", "view")), "name", "size")
    for row in rows:
        size_text = console.human_bytes(row["bytes"]) if row["complete"] else Text("incomplete", style="red")
        table.add_row(row["spec"][:12], row["image_id"][:12], row["view"], row["name"] or "", size_text)
    console.out.print(table)


@app.command(epilog="Example: store info features.zarr")
def info(path: StorePath, as_json: AsJson = False) -> None:
    """Summarise a store: specs, data sets, entries, bytes and the ratio to float32 arrays."""
    store = FeatureStore(path, read_only=True)
    with console.progress("looking", None, as_json=as_json) as advance:
        specs = [_spec_info(store, spec, advance) for spec in store.specs()]
    datasets = [_dataset_info(collection) for collection in _collections(store)]
    if as_json:
        console.print_json({"location": store.location, "specs": specs, "datasets": datasets})
        return
    table = Table(Column("spec", no_wrap=True), "features", "images", "entries", "size", "float32 / stored")
    for row in specs:
        table.add_row(
            row["digest"][:12],
            _of_what(row),
            str(row["images"]),
            str(row["entries"]),
            console.human_bytes(row["bytes"]),
            f"{row['ratio_to_float32']:.2f}" if row["ratio_to_float32"] else "",
        )
    console.out.print(table)
    listing = Table("data set", "images", "splits", "targets")
    for row in datasets:
        splits = " ".join(f"{name}:{count}" for name, count in row["splits"].items())
        listing.add_row(row["name"], str(row["images"]), splits, " ".join(row["targets"]))
    console.out.print(listing)


@app.command(epilog="Examples: store verify features.zarr && echo whole · store verify features.zarr --repair")
def verify(
    path: StorePath,
    spec: SpecOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Extract damaged entries again, by repeating the runs that made them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read everything and list damaged and incomplete entries; exit code 4 if there are any."""
    store = FeatureStore(path, read_only=not repair)
    count, damaged = _damage(store, spec, as_json)
    report: dict[str, Any] = {"checked": count, "problems": _problems(store, damaged)}
    if repair and report["problems"]:
        done = repair_damage(store, damaged)
        report["made_by_no_recorded_run"] = [one.path for one in done.orphans]
        report["failed_runs"] = done.failed
        report["problems_left"] = _problems(store, _damage(store, spec, as_json)[1])
    if as_json:
        console.print_json(report)
    else:
        _print_lines(report["problems"])
        console.print_line(f"{count} entries, masks and data sets, {len(report['problems'])} problems")
        if "problems_left" in report:
            _print_lines(
                f"{entry}: no recorded run made it; where it is incomplete `store prune` removes it"
                for entry in report["made_by_no_recorded_run"]
                if not entry.startswith(f"{RUNS}/")
            )
            _print_lines(report["failed_runs"])
            _print_lines(report["problems_left"])
            console.print_line(f"after the repair {len(report['problems_left'])} problems")
    if report.get("problems_left", report["problems"]) or report.get("failed_runs"):
        raise typer.Exit(Exit.DAMAGED)


@app.command(epilog="Example: store prune features.zarr --max-bytes 100GB --older-than 30d --dry-run")
def prune(
    path: StorePath,
    max_bytes: Annotated[
        str | None, typer.Option(help="Bytes that may stay, of the whole store or of --spec, such as 100GB.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Remove entries that were not used for this long, such as 12h or 30d.")
    ] = None,
    spec: SpecOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove incomplete entries and masks, and other entries until the limits given are met.

    Those that were not used for longest go first; entries that were used in the last ten minutes stay.
    """
    limit = None if max_bytes is None else _measured(max_bytes, _SIZES)
    age = None if older_than is None else _measured(older_than, _AGES)
    store = FeatureStore(path, read_only=dry_run)
    _note_missing_specs(store)
    entries = pruning.stored_entries(store, _specs(store, spec))
    chosen = pruning.to_prune(entries, max_bytes=limit, older_than=age)
    masks = [] if spec is not None else pruning.incomplete_masks(store)  # masks belong to no spec
    removed = chosen
    if not dry_run:
        with console.progress("pruning", len(chosen), as_json=as_json) as advance:
            removed = pruning.prune(store, chosen, lambda: advance(1))
        masks = pruning.remove_masks(store, masks)
    freed, total = sum(entry.bytes for entry in removed), sum(entry.bytes for entry in entries)
    if as_json:
        gone = [
            {"spec": e.spec.digest, "image_id": e.key.image_id, "view": e.key.view, "bytes": e.bytes} for e in removed
        ]
        console.print_json(
            {
                "dry_run": dry_run,
                "removed": gone,
                "bytes_removed": freed,
                "bytes_left": total - freed,
                "removed_masks": masks,
            }
        )
        return
    did = "would remove" if dry_run else "removed"
    left = f"{len(entries) - len(removed)} entries of {console.human_bytes(total - freed)} left"
    also = f" and {len(masks)} incomplete masks" if masks else ""
    console.print_line(f"{did} {len(removed)} entries of {console.human_bytes(freed)}{also}; {left}")
    if limit is not None and total - freed > limit:
        console.say(
            f"{path} still holds more than {max_bytes}: the remaining entries were used in the last ten minutes"
        )
    elif age is not None and age < GRACE and len(removed) < len(entries):
        console.say("entries that were used in the last ten minutes stay")


@app.command(epilog="Example: store export features.zarr exported --format zarr --dataset stare")
def export(
    path: StorePath,
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    form: Annotated[
        Literal["npy", "zarr"],
        typer.Option(
            "--format", help="npy: files as the authors' code writes them; zarr: one group that xarray opens."
        ),
    ] = "zarr",
    spec: SpecOption = None,
    dataset: Annotated[str | None, typer.Option(help="Export only the images of this data set, in its order.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write decoded float32 feature maps for other programs; an interrupted export can be run again."""
    from store.exporting import export_npy, export_zarr

    if "://" in str(out) or ":/" in str(out):
        raise typer.BadParameter(f"{out}: an export is written to a folder; `store copy` writes to object storage")
    store = FeatureStore(path, read_only=True)
    one = _only(_specs(store, spec), store)
    if dataset is None:
        keys = list(store.keys(one))
    else:
        images = dict.fromkeys(sample.image_id for sample in store.collections.read(dataset).samples)
        place = {image: i for i, image in enumerate(images)}
        keys = sorted(store.keys(one, place), key=lambda key: place[key.image_id])
    if not keys:
        raise MissingEntry(f"{path}: no complete entry to export")
    with console.progress("exporting", len(keys), as_json=as_json) as advance:
        (export_npy if form == "npy" else export_zarr)(store, one, keys, out, lambda: advance(1))
    if as_json:
        console.print_json({"out": str(out), "format": form, "entries": len(keys), "spec": one.digest})
        return
    console.print_line(f"{out}: {len(keys)} entries")


@app.command(epilog="Example: store copy features.zarr s3://bucket/features")
def copy(
    source: StorePath,
    destination: Annotated[str, typer.Argument(help="Folder or s3://bucket/prefix.", show_default=False)],
    spec: SpecOption = None,
    as_json: AsJson = False,
) -> None:
    """Copy entries, data sets, masks and run records; what the destination holds is left, so that a copy can resume."""
    if destination == "memory://":
        raise typer.BadParameter("a copy in memory:// would end with this command; name a folder or s3://bucket/prefix")
    store = FeatureStore(source, read_only=True)
    specs = _specs(store, spec)
    count = sum(1 for one in specs for _ in store.all_keys(one))
    with console.progress("copying", count, as_json=as_json) as advance:
        report = copy_store(store, FeatureStore(destination), None if spec is None else specs, lambda: advance(1))
    if as_json:
        console.print_json(dataclasses.asdict(report))
    else:
        _print_lines(report.problems)
        console.print_line(
            f"{report.copied} entries copied ({console.human_bytes(report.bytes)}), {report.present} there already, "
            f"{len(report.problems)} left out",
        )
    if report.problems:
        raise typer.Exit(Exit.DAMAGED)


_SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_AGES = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def _measured(text: str, units: Mapping[str, int]) -> int:
    """100GB -> 100 * 10**9."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)", text)
    if match is None or match[2] not in units:
        raise typer.BadParameter(f"expected a number and one of {', '.join(units)}, got {text!r}")
    return int(float(match[1]) * units[match[2]])


def _damage(store: FeatureStore, spec: str | None, as_json: bool) -> tuple[int, list[CheckResult]]:
    """Check entries, masks and data sets: how many there are, and those with problems."""
    specs = _specs(store, spec)
    count = count_parts(store, specs)
    with console.progress("verifying", count, as_json=as_json) as advance:
        damaged = []
        for one in check(store, specs):
            damaged += [one] if one.problems else []
            advance()
    return count, damaged


def _note_missing_specs(store: FeatureStore) -> None:
    for line in missing_specs(store):
        console.note(line)


def _problems(store: FeatureStore, damaged: Iterable[CheckResult]) -> list[str]:
    return missing_specs(store) + [problem for one in damaged for problem in one.problems]


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        console.print_line(line)


def _only(specs: list[FeatureSpec], store: FeatureStore) -> FeatureSpec:
    if len(specs) != 1:
        listed = "; ".join(spec.summary for spec in specs) or "none"
        raise MissingEntry(f"{store.location}: choose one spec with --spec; there are: {listed}")
    return specs[0]


def _specs(store: FeatureStore, digest: str | None) -> list[FeatureSpec]:
    return store.specs() if digest is None else [store.spec(digest)]


def _collections(store: FeatureStore) -> Iterator[Collection]:
    """Yield the data sets that can be read; print a note about each of the others."""
    for name in store.collections.names():
        try:
            yield store.collections.read(name)
        except DamagedEntry as error:
            console.note(str(error))


def _image_names(store: FeatureStore) -> dict[str, str]:
    return {sample.image_id: f"{c.name}/{sample.name}" for c in _collections(store) for sample in c.samples}


def _spec_info(store: FeatureStore, spec: FeatureSpec, advance: Callable[[], None]) -> dict[str, Any]:
    sizes = dict[Key, int]()
    keys = list(store.all_keys(spec))
    for key, size in zip(keys, in_parallel(lambda key: store.stored_bytes(spec, key), keys), strict=True):
        if size is not None:
            sizes[key] = size
        advance()
    stored = sum(sizes.values())
    return {
        "digest": spec.digest,
        "backbone": store.backbone_of(spec),
        "description": spec.description,
        "trajectory": spec.trajectory,
        "timesteps": spec.timesteps,
        "grid": spec.grid,
        "clip": spec.clip,
        "blocks": [block.name for block in spec.blocks],
        "encoding": spec.encoding.kind,
        "resolution": spec.resolution,
        "precision": spec.precision,
        "seed": spec.seed,
        "preprocessing": preprocessing_name(spec.preprocessing) or "another",
        "images": len({key.image_id for key in sizes}),
        "entries": len(sizes),
        "bytes": stored,
        "ratio_to_float32": len(sizes) * spec.float32_bytes() / stored if stored else None,
    }


def _of_what(info: dict[str, Any]) -> str:
    """Describe in one line what tells a spec from others."""
    return ", ".join([info["backbone"] or "an unknown backbone", info["description"], *info["blocks"]])


def _dataset_info(collection: Collection) -> dict[str, Any]:
    return {
        "name": collection.name,
        "images": len(collection.samples),
        "splits": dict(Counter(sample.split or "-" for sample in collection.samples)),
        "targets": collection.targets,
    }


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, StoreError)


if __name__ == "__main__":
    main()
