"""Rebuild the tables of docs/results.md that compare methods; each is a protocol with data, methods and budget.

    python -m recipes.tables lodo-vessels --data DATA --work WORK [--rows unet] [--seeds 0] [--json]

Features, trainings and scores that are in WORK are reused, so a table may be built in several calls, by method or by
seed, and by several processes at once; a last call without --rows and --seeds prints the whole table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from extractor.errors import ExtractorError
from interpreter.errors import InterpreterError
from recipes.calls import StepFailed, call
from recipes.drawing import SMOKE_BACKBONE
from recipes.models import TABLE, Build, table_at
from recipes.photographs import SourceDataset
from recipes.shipped import CAMERAS, IDRID, OCTA_6M
from store import console
from store.errors import StoreError
from store.views import RED_FREE

BUDGET: dict[str, Any] = {
    "backbone": "small",
    "encoding": "int8",
    "views": "identity,photometric:3",
    "steps": 600,
    "batch": 4,
    "crop": 128,
    "learning_rate": 3e-3,
    "decay": "cosine",
    "evaluate_every": 25,
    "vss_max_size": 64,
}
"""Settings that all methods of a table share; chosen on validation images of STARE and HRF (docs/experiments.md)."""
STANDARDISED = BUDGET | {"preset": "fast", "standardise": True}
"""``BUDGET`` with the preset and the standardised features of the shipped ``vessels`` (docs/decisions/0020)."""
WITHOUT_COLOUR = STANDARDISED | {"preprocessing": "red-free"}
"""``STANDARDISED`` on photographs without colour, in training and test, as the shipped ``vessels`` reads them."""
WIDER: dict[str, Any] = {"width_multiplier": 2}
"""Levels twice as wide as their maps have channels in total (docs/decisions/0022)."""
WIDE = WITHOUT_COLOUR | WIDER
"""``WITHOUT_COLOUR`` and ``WIDER``, as in the shipped ``vessels``."""
LONG = WIDE | {"steps": 2400, "evaluate_every": 60, "views": "identity,photometric:15"}
"""``WIDE`` with four times as many steps and 16 renderings of each photograph instead of four."""
BACKBONE_BASE: dict[str, Any] = {"backbone": "base", "width_multiplier": 1}
"""The backbone ``base``, twice as wide as ``small``; the levels stay as wide as in ``WIDE``."""
BASE = LONG | BACKBONE_BASE
"""``LONG`` on the backbone ``base``."""
EIGHT = BASE | {"views": "identity,photometric:7"}
"""``BASE`` with eight renderings of each photograph."""
FINE = BASE | {
    "resolution": 1024,
    "crop": 256,
    "vss_max_size": 128,
    "views": BUDGET["views"],
    "steps": 1200,
    "evaluate_every": 30,
}
"""``BASE`` on photographs twice as large: the same windows and network, with four times as many pixels.

Four renderings, half as many steps."""
PROBED: dict[str, Any] = {"timesteps": [200, 500], "blocks": [2, 4, 6, 7]}
"""The timesteps and blocks of the backbone ``base`` that probes favoured (docs/experiments.md)."""
SQUEEZED_RED_FREE = {"preprocessing": "squeeze-red-free"}
"""Photographs squeezed as in the published protocol, but without colour."""
MIRRORED = {"mirrored": True}
"""Test photographs are read with their flips, too.

A copy of the table without this setting is scored again, not trained again.
"""
ADAPTED = BASE | {"views": BUDGET["views"], "adapt": [384, 512, 704, 1024]}
"""``BASE`` with four renderings; each camera is read at the resolution that its unlabelled photographs favour."""
FOREGROUND: dict[str, Any] = {"foreground": 0.5}
"""Half of the windows are centred on a lesion, since windows drawn evenly hardly ever show one."""


@dataclass(frozen=True)
class TableRecipe:
    """A protocol with its data sets, methods, seeds and settings.

    Attributes:
        sources: the data sets, named as in the protocol's quoted numbers.
        targets: test on these only; empty leaves the choice to the protocol.
        settings: the --settings of ``interpreter evaluate --protocol``.
    """

    protocol: str
    sources: tuple[SourceDataset, ...]
    rows: tuple[str, ...]
    edition: str = "strict"
    seeds: tuple[int, ...] = (0, 1, 2)
    targets: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=lambda: BUDGET)


METHODS = ("diffdgss", "anchored", "stochastic", "untrained", "mlp", "unet", "pyramid")
OCTA = replace(OCTA_6M, name="octa_500")
TABLES = {
    "lodo-vessels": TableRecipe("lodo-vessels", CAMERAS, METHODS),
    "lodo-vessels-aadg-compat": TableRecipe("lodo-vessels", CAMERAS, METHODS, "aadg-compat"),
    "lodo-vessels-aadg-compat-long": TableRecipe(
        "lodo-vessels",
        CAMERAS,
        ("diffdgss", "unet"),
        "aadg-compat",
        settings=LONG | SQUEEZED_RED_FREE,
    ),
    "lodo-vessels-aadg-compat-base": TableRecipe(
        "lodo-vessels", CAMERAS, ("diffdgss",), "aadg-compat", settings=BASE | SQUEEZED_RED_FREE
    ),
    "lodo-vessels-fast": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=BUDGET | {"preset": "fast"}),
    "lodo-vessels-standardised": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=STANDARDISED),
    "lodo-vessels-red-free": TableRecipe(
        "lodo-vessels", CAMERAS, ("diffdgss", "unet", "pyramid"), settings=WITHOUT_COLOUR
    ),
    "lodo-vessels-wide": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=WIDE),
    "lodo-vessels-long": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss", "unet"), settings=LONG),
    "lodo-vessels-base": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=BASE),
    "lodo-vessels-base-eight": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=EIGHT),
    "lodo-vessels-base-probed": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=EIGHT | PROBED),
    "lodo-vessels-base-four": TableRecipe(
        "lodo-vessels", CAMERAS, ("diffdgss",), settings=BASE | {"views": BUDGET["views"]}
    ),
    "lodo-vessels-base-ablated": TableRecipe(
        "lodo-vessels",
        CAMERAS,
        ("anchored", "stochastic", "untrained", "mlp"),
        settings=BASE | {"views": BUDGET["views"]},
    ),
    "lodo-vessels-adapted": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss", "unet"), settings=ADAPTED),
    "lodo-vessels-adapted-mirrored": TableRecipe(
        "lodo-vessels", CAMERAS, ("diffdgss", "unet"), settings=ADAPTED | MIRRORED
    ),
    "lodo-vessels-base-fine": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss", "unet"), settings=FINE),
    "lodo-vessels-base-mirrored": TableRecipe("lodo-vessels", CAMERAS, ("diffdgss",), settings=BASE | MIRRORED),
    "lodo-vessels-long-mirrored": TableRecipe("lodo-vessels", CAMERAS, ("unet",), settings=LONG | MIRRORED),
    "few-label": TableRecipe("few-label", CAMERAS, ("diffdgss", "unet")),
    "few-label-standardised": TableRecipe("few-label", CAMERAS, ("diffdgss",), settings=STANDARDISED),
    "few-label-red-free": TableRecipe("few-label", CAMERAS, ("unet",), settings=WITHOUT_COLOUR),
    "few-label-wide": TableRecipe("few-label", CAMERAS, ("diffdgss",), settings=WIDE),
    "few-label-base": TableRecipe("few-label", CAMERAS, ("diffdgss",), settings=WITHOUT_COLOUR | BACKBONE_BASE),
    "few-label-long": TableRecipe("few-label", CAMERAS, ("unet",), settings=LONG),
    "few-label-base-long": TableRecipe("few-label", CAMERAS, ("diffdgss",), settings=BASE),
    "cross-modality": TableRecipe("cross-modality", (*CAMERAS, OCTA), ("diffdgss", "unet"), targets=("octa_500",)),
    "cross-modality-standardised": TableRecipe(
        "cross-modality", (*CAMERAS, OCTA), ("diffdgss",), targets=("octa_500",), settings=STANDARDISED
    ),
    "cross-modality-red-free": TableRecipe(
        "cross-modality",
        (*CAMERAS, OCTA),
        ("diffdgss", "unet"),
        targets=("octa_500",),
        settings=STANDARDISED | {"views": RED_FREE},  # angiograms are read as negatives, which have no colour anyway
    ),
    "cross-modality-wide": TableRecipe(
        "cross-modality",
        (*CAMERAS, OCTA),
        ("diffdgss",),
        targets=("octa_500",),
        settings=STANDARDISED | {"views": RED_FREE} | WIDER,
    ),
    "cross-modality-base": TableRecipe(
        "cross-modality",
        (*CAMERAS, OCTA),
        ("diffdgss", "unet"),
        targets=("octa_500",),
        settings=WITHOUT_COLOUR | BACKBONE_BASE,
    ),
    "idrid-lesions": TableRecipe("idrid-lesions", (IDRID,), ("diffdgss", "unet"), settings=BUDGET | FOREGROUND),
    "idrid-lesions-standardised": TableRecipe(
        "idrid-lesions", (IDRID,), ("diffdgss",), settings=STANDARDISED | FOREGROUND
    ),
    "idrid-lesions-wide": TableRecipe(
        "idrid-lesions", (IDRID,), ("diffdgss",), settings=STANDARDISED | FOREGROUND | WIDER
    ),
    "idrid-lesions-base": TableRecipe(
        "idrid-lesions", (IDRID,), ("diffdgss",), settings=STANDARDISED | FOREGROUND | BACKBONE_BASE
    ),
}
SMOKE = {
    "epochs": 1, "steps": None, "crop": None, "foreground": 0.0, "batch": 2, "max_width": 8, "vss_max_size": 0,
}  # fmt: skip


def build_table(
    recipe: TableRecipe, table: Path, work: Path, out: Path, rows: str, seeds: str, settings: dict[str, Any]
) -> Any:
    """Run a table's protocol; return the JSON document that ``interpreter evaluate --protocol --json`` prints."""
    manifests = {source.name: source.write_manifest(table, work / "tables") for source in recipe.sources}
    return call(
        "interpreter", "evaluate", "--protocol", recipe.protocol, "--edition", recipe.edition,
        "--store", work / "features.zarr", "--out", out, "--rows", rows, "--seeds", seeds,
        *[word for name, path in manifests.items() for word in ("--data", f"{name}=manifest:{path}")],
        *[word for target in recipe.targets for word in ("--target", target)],
        "--settings", json.dumps(settings), "--json",
    )  # fmt: skip


app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m recipes.tables lodo-vessels --data data --work build --rows diffdgss,unet")
def tables(
    name: Annotated[str, typer.Argument(help=f"Of {', '.join(TABLES)}.")],
    work: Annotated[Path, typer.Option(help="Folder of features and results; stopped work goes on.")],
    data: Annotated[Path | None, typer.Option(help=f"Folder of the data sets, with the table {TABLE}.")] = None,
    rows: Annotated[str | None, typer.Option(help="Only these methods, by comma.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Only these seeds, by comma.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same at tiny size, on drawn photographs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Rebuild a table of docs/results.md."""
    if name not in TABLES:
        raise typer.BadParameter(f"no table {name}; there are {', '.join(TABLES)}")
    recipe, settings = TABLES[name], dict(TABLES[name].settings)
    table = table_at(data, work, smoke=smoke)
    if smoke:
        settings["views"] = settings["views"].partition(",photometric")[0]
        settings |= SMOKE | {"backbone": str(Build(table, work).backbone(SMOKE_BACKBONE))}
    report = build_table(
        recipe, table, work, work / name, rows or ",".join(recipe.rows), seeds or ",".join(map(str, recipe.seeds)),
        settings,
    )  # fmt: skip
    if as_json:
        console.print_json(report)
    else:
        console.print_line(report["report"])


def main() -> NoReturn:
    """Entry point."""
    console.run(app, ExtractorError, InterpreterError, StoreError, StepFailed)


if __name__ == "__main__":
    main()
