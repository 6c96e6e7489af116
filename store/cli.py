"""The ``store`` command: what is in a feature store, and is it whole."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from store import console
from store.console import Exit
from store.errors import StoreError
from store.feature_store import FeatureStore
from store.spec import FeatureSpec

app = typer.Typer(
    help="Look into a feature store and check that it is whole.",
    epilog="Exit codes: 0 all well, 1 failed, 2 wrong usage, 4 damaged or incomplete entries.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)

StorePath = Annotated[str, typer.Argument(help="Folder of the store.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
SpecOption = Annotated[str | None, typer.Option("--spec", help="Only this spec (the first digits of its digest do).")]


@app.command("ls", epilog="Example: store ls features.zarr --json")
def list_entries(path: StorePath, spec: SpecOption = None, as_json: AsJson = False) -> None:
    """List every entry: spec, image, view, bytes, complete or not."""
    store = FeatureStore(path, read_only=True)
    names = _image_names(store)
    rows: list[dict[str, Any]] = []
    for one in _specs(store, spec):
        for key in store.keys(one):
            size = store.stored_bytes(one, key)
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
    table = Table("spec", "image", "view", "name", "size")
    for row in rows:
        size_text = console.human_bytes(row["bytes"]) if row["complete"] else "[red]incomplete[/]"
        table.add_row(row["spec"][:12], row["image_id"][:12], row["view"], row["name"] or "", size_text)
    console.out.print(table)


@app.command(epilog="Example: store info features.zarr")
def info(path: StorePath, as_json: AsJson = False) -> None:
    """Specs, data sets, images, bytes and the ratio to float32 arrays."""
    store = FeatureStore(path, read_only=True)
    specs = [_spec_info(store, spec) for spec in store.specs()]
    datasets = [_dataset_info(store, name) for name in store.collections.names()]
    if as_json:
        console.print_json({"location": store.location, "specs": specs, "datasets": datasets})
        return
    table = Table("spec", "trajectory", "timesteps", "blocks", "encoding", "images", "size", "float32 / stored")
    for row in specs:
        table.add_row(
            row["digest"][:12],
            row["trajectory"],
            " ".join(map(str, row["timesteps"])),
            " ".join(row["blocks"]),
            row["encoding"],
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


@app.command(epilog="Example: store verify features.zarr && echo whole")
def verify(path: StorePath, spec: SpecOption = None, as_json: AsJson = False) -> None:
    """Read everything and name each damaged or incomplete entry; exit code 4 if there is one."""
    store = FeatureStore(path, read_only=True)
    work = [(one, key) for one in _specs(store, spec) for key in store.keys(one)]
    problems: list[str] = []
    with console.progress("verifying", len(work), quiet=as_json) as advance:
        for one, key in work:
            problems += store.verify(one, key)
            advance()
    if as_json:
        console.print_json({"entries": len(work), "problems": problems})
    else:
        for problem in problems:
            console.out.print(problem, soft_wrap=True, highlight=False)
        console.out.print(f"{len(work)} entries, {len(problems)} problems")
    if problems:
        raise typer.Exit(Exit.DAMAGED)


def _specs(store: FeatureStore, digest: str | None) -> list[FeatureSpec]:
    return store.specs() if digest is None else [store.spec(digest)]


def _image_names(store: FeatureStore) -> dict[str, str]:
    collections = [store.collections.read(name) for name in store.collections.names()]
    return {sample.image_id: f"{c.name}/{sample.name}" for c in collections for sample in c.samples}


def _spec_info(store: FeatureStore, spec: FeatureSpec) -> dict[str, Any]:
    sizes = [size for key in store.keys(spec) if (size := store.stored_bytes(spec, key)) is not None]
    stored = sum(sizes)
    return {
        "digest": spec.digest,
        "trajectory": spec.trajectory,
        "timesteps": spec.timesteps,
        "blocks": [block.name for block in spec.blocks],
        "encoding": spec.encoding.kind,
        "resolution": spec.resolution,
        "entries": len(sizes),
        "bytes": stored,
        "ratio_to_float32": len(sizes) * spec.float32_bytes() / stored if stored else None,
    }


def _dataset_info(store: FeatureStore, name: str) -> dict[str, Any]:
    collection = store.collections.read(name)
    return {
        "name": name,
        "images": len(collection.samples),
        "splits": dict(Counter(sample.split or "-" for sample in collection.samples)),
        "targets": collection.targets,
    }


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, StoreError)


if __name__ == "__main__":
    main()
