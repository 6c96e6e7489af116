"""``interpreter segment``: label maps of photographs from their cached features; no labels are needed."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from interpreter.checkpoint import folder_of
from interpreter.data import all_images
from interpreter.domain import load_domain
from interpreter.errors import DataError
from interpreter.metrics import in_points
from interpreter.options import (
    AsJson,
    DataOption,
    DatasetsOrData,
    DeviceOption,
    MirroredOption,
    ResolutionOption,
    ScanOption,
    SplitOption,
    StoreOption,
    ViewOption,
    open_model,
    photographs_named,
)
from interpreter.segmenting import SegmentedPhotograph, segment_into, table_columns
from interpreter.stored import require_features, views_read
from interpreter.task import Task
from store import console
from store.feature_store import FeatureStore
from store.files import replaced
from store.views import IDENTITY

app = typer.Typer()
TABLE = "segmented.csv"


@app.command(
    "segment",
    epilog="Examples: interpreter segment --store features.zarr --data folder:photos --model vessels --out masks · "
    "interpreter segment --store features.zarr --dataset hrf:test --model runs/vessels --out masks",
)
def segment_command(
    store: StoreOption,
    out: Annotated[Path, typer.Option(help="Folder to write label maps to.", show_default=False)],
    dataset: DatasetsOrData = None,
    data: DataOption = None,
    split: SplitOption = None,
    model: Annotated[str, typer.Option(help="Shipped name or folder of an interpreter.")] = "vessels",
    view: ViewOption = IDENTITY,
    mirrored: MirroredOption = False,
    resolution: ResolutionOption = None,
    scan: ScanOption = "auto",
    device: DeviceOption = "cpu",
    as_json: AsJson = False,
) -> None:
    """Segment photographs on disk (--data), or those of a data set in the store; they need no labels.

    Writes for each photograph a PNG at native size whose values are class ids (overlapping classes get one mask each as
    well), and one table, segmented.csv: the share of the field of view that each class covers, the Dice expected of its
    mask (computed from the probabilities; too high on unfamiliar cameras), how much the timesteps disagree (the entropy
    of their votes in nats, 0 where all agree), and how far the photograph is from those that the interpreter was
    trained on or adapted to.
    """
    views = views_read(view, mirrored=mirrored)
    photographs = photographs_named(dataset, data, split)
    interpreter, card = open_model(model, scan, device)
    spec = card.spec.with_resolution(resolution)
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out: {out} is a file; expected a folder")
    _former_rows(out / TABLE, card.task, ())  # before anything is extracted for it
    extracted = photographs.extract_missing(store, model, card, [spec], views, device)
    features = FeatureStore(store, read_only=True)
    named = {image.name: image for one in extracted.references for image in all_images(features, one)}
    images = [image.seen_as(view) for image in named.values()]
    require_features(features, spec, images, views, card.backbone)
    domain = load_domain(folder_of(model), card.spec)
    if domain is not None and spec != card.spec:
        domain = None
        console.note(
            "how unusual the photographs are is not judged: that is known at the interpreter's own resolution alone; "
            "`interpreter adapt --out` learns it at another one"
        )
    out.mkdir(parents=True, exist_ok=True)
    former = _former_rows(out / TABLE, card.task, {image.name for image in images})
    with console.progress("segmenting", len(images), as_json=as_json) as advance:
        found = []
        for one in segment_into(out, interpreter, features, spec, card.task, images, domain, mirrored=mirrored):
            found.append(one)
            advance(1, one.image)
    how = {"model": model, "resolution": spec.resolution}
    rows: list[Mapping[str, object]] = [*former, *(one.row(out) | how for one in found)]
    with replaced(out / TABLE) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, table_columns(card.task))
        table.writeheader()
        table.writerows(rows)
    if as_json:
        console.print_json(rows[len(former) :])
    else:
        _print_found(found, card.task, out)
    console.exit_after(extracted.left_out)


def _former_rows(path: Path, task: Task, made_again: Collection[str]) -> list[dict[str, str]]:
    """The rows of a table that an earlier call has written, without those of images that are segmented again.

    Raises:
        DataError: it is another table, such as of an interpreter with other classes.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != table_columns(task):
        raise DataError(f"{path}: is another table, such as of an interpreter with other classes; choose another --out")
    return [row for row in rows if row["image"] not in made_again]


def _print_found(found: Sequence[SegmentedPhotograph], task: Task, out: Path) -> None:
    unusual = [one for one in found if one.unusual]
    columns = [column for name in task.targets for column in (f"{name} %", "expected Dice")]
    shown = Table("image", *columns, "disagreement", "unusual")
    for one in found:
        figures = [figure for name in task.targets for figure in (one.shares[name], one.expected_dice[name])]
        shown.add_row(one.image, *map(in_points, figures), f"{one.disagreement:.3f}", one.unusual)
    console.out.print(shown)
    warning = (
        f"; {len(unusual)} photographs are unlike those of the training: do not rely on their maps" if unusual else ""
    )
    console.print_line(f"{out}: {len(found)} label maps and {TABLE}{warning}")
