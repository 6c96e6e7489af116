"""Rebuild the shipped models from the data they were trained on.

    python -m recipes.models --data DATA --work WORK [--backbone small | --pretrain base] [--only disc_cup] [--json]
    python -m recipes.models --smoke --work WORK

Everything is done by the commands ``extractor`` and ``interpreter`` with fixed seeds. A build that was stopped
resumes where it was: completed work is not repeated. The models, each with a manifest of its data, figures and
files, are in WORK/models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from extractor.backbone_folder import load_backbone
from extractor.datasets import load_dataset, of_split
from extractor.errors import ExtractorError
from interpreter.errors import InterpreterError
from recipes.calls import StepFailed, call
from recipes.drawing import SMOKE_BACKBONE, draw_table
from recipes.photographs import folders_of
from recipes.shipped import (
    BACKBONES,
    INTERPRETERS,
    SMALL,
    BackboneRecipe,
    InterpreterRecipe,
    Part,
    at_smoke_size,
)
from store import console
from store.errors import StoreError
from store.manifest import MANIFEST_FILE, Figure, Manifest, TrainingData, seal

UNLABELLED = "unlabelled"
TABLE = "splits.csv"
_WEIGHTS = ("*.json", "*.safetensors")


class Build:
    """A build of models in one folder.

    Args:
        table: the table of all photographs (``recipes.photographs``).
        work: receives features, training runs and models.
    """

    def __init__(self, table: Path, work: Path) -> None:
        self.table, self.work = table, work
        self.store = work / "features.zarr"
        self.models = work / "models"

    def backbone(self, recipe: BackboneRecipe) -> Path:
        """Pre-train a backbone, fit its codebook and seal it with its manifest; return its folder."""
        folders = folders_of(self.table, UNLABELLED)
        run, made = self.work / "runs" / f"backbone-{recipe.name}", self.models / "backbones" / recipe.name
        if (made / MANIFEST_FILE).is_file():
            return made
        config = self.work / "unet.json"
        config.write_text(recipe.config)
        images = [word for folder in folders for word in ("--images", folder)]
        call(
            "extractor", "pretrain", *images, "--out", run, "--steps", recipe.steps, "--batch", recipe.batch,
            "--crop", recipe.crop, "--resolution", recipe.resolution, "--learning-rate", recipe.learning_rate,
            *(["--config", config] if recipe.config else []), *recipe.options,
        )  # fmt: skip
        _publish(run / "backbone", made)
        sets = [word for folder in folders for word in ("--dataset", f"folder:{folder}")]
        call(
            "extractor", "fit-codebook", *sets, "--backbone", made, "--photographs", recipe.codebook_photographs,
            "--out", made / "codebook.safetensors",
        )  # fmt: skip
        data = [TrainingData(name=f.parent.name, photographs=_count(f), terms="see its README") for f in folders]
        fingerprint = load_backbone(made).fingerprint
        seal(made, Manifest(summary="fundus photographs, 512 px", data=tuple(data), fingerprint=fingerprint))
        return made

    def interpreter(self, recipe: InterpreterRecipe, backbone: str) -> Path:
        """Extract features, train and test an interpreter and seal it with its manifest; return its folder."""
        (spec,) = {self._extract(recipe, part, "train", recipe.views, backbone) for part in recipe.train}
        run, made = self.work / "runs" / recipe.name, self.models / "interpreters" / recipe.name
        references = [word for part in recipe.train for word in ("--dataset", f"{part.source.name}:train")]
        targets = [word for target in recipe.targets for word in ("--target", target)]
        call(
            "interpreter", "train", "--store", self.store, *references, *targets, "--task", recipe.name,
            "--spec", spec,
            *(["--overlapping"] if recipe.overlapping else []), "--views", recipe.views,
            "--steps", recipe.steps, "--evaluate-every", recipe.evaluate_every, "--batch", recipe.batch, "--seed", 0,
            *recipe.options, "--licence", "Apache-2.0", "--out", run, "--json",
        )  # fmt: skip
        _publish(run, made)
        figures = [figure for part in recipe.test for figure in self._figures(recipe, part, made, backbone)]
        learnt = tuple(self._learnt_from(part) for part in recipe.train)
        seal(made, Manifest(summary=recipe.summary, data=learnt, figures=tuple(figures)))
        return made

    def _extract(self, recipe: InterpreterRecipe, part: Part, split: str, views: str, backbone: str) -> str:
        """Extract features of the first photographs of a split; return the digest of their spec."""
        manifest = part.source.write_manifest(self.table, self.work / "tables")
        limit = [] if part.photographs is None else ["--limit", part.photographs]
        report = call(
            "extractor", "run", "--dataset", f"manifest:{manifest}", "--split", split, *limit, "--views", views,
            "--preset", recipe.preset, "--encoding", recipe.encoding, "--backbone", backbone, "--store", self.store,
            *(["--preprocessing", recipe.preprocessing] if recipe.preprocessing else []), "--json",
        )  # fmt: skip
        spec: str = report["spec"]
        return spec

    def _figures(self, recipe: InterpreterRecipe, part: Part, model: Path, backbone: str) -> Iterable[Figure]:
        """Yield the Dice, with its interval, of every target that the test data have masks of."""
        self._extract(recipe, part, "test", "identity", backbone)
        scores = call(
            "interpreter", "evaluate", "--store", self.store, "--dataset", f"{part.source.name}:test",
            "--model", model, "--json",
        )  # fmt: skip
        (self.work / "scores").mkdir(exist_ok=True)
        (self.work / "scores" / f"{recipe.name}-{part.source.name}.json").write_text(json.dumps(scores, indent=2))
        where = f"{part.source.dataset}, test, {scores['images']} photographs"
        for target, figures in scores["by_class"].items():
            low, high = figures["dice_interval_95"]
            interval = None if low is None else (round(low, 6), round(high, 6))  # of one photograph there is none
            yield Figure(where=where, metric=f"Dice of {target}", value=round(figures["dice"], 6), interval=interval)

    def _learnt_from(self, part: Part) -> TrainingData:
        manifest = part.source.write_manifest(self.table, self.work / "tables")
        there = len(of_split(load_dataset(f"manifest:{manifest}").photographs, "train"))
        count = there if part.photographs is None else min(part.photographs, there)
        return TrainingData(name=f"{part.source.dataset}, train", photographs=count, terms=part.source.terms)


def build(work: Path, table: Path, backbone: str | BackboneRecipe, recipes: Iterable[InterpreterRecipe]) -> list[Path]:
    """Build interpreters, and first their backbone if it is a recipe; return the folders of the models.

    Args:
        backbone: for recipes that name none: a shipped name, a folder, or the recipe of a new backbone.
    """
    made = Build(table, work)
    folders: list[Path] = []
    if isinstance(backbone, BackboneRecipe):
        folders.append(made.backbone(backbone))
        backbone = str(folders[0])
    return folders + [made.interpreter(recipe, recipe.backbone or backbone) for recipe in recipes]


def table_at(data: Path | None, work: Path, *, smoke: bool) -> Path:
    """The table of a folder of data sets or, for a smoke run, of photographs drawn into ``work``; else BadParameter."""
    if (data is None) != smoke:
        raise typer.BadParameter("expected --data, or --smoke, which draws photographs of its own; not both")
    work.mkdir(parents=True, exist_ok=True)
    table = draw_table(work / "drawn") if data is None else data / TABLE
    if not table.is_file():
        raise typer.BadParameter(f"{table}: no such table; its columns are dataset, split, image and one per target")
    return table


app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m recipes.models --data data --work build --backbone small --only vessels")
def models(
    work: Annotated[Path, typer.Option(help="Folder of the build; a stopped one goes on.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help=f"Folder of the data sets, with the table {TABLE}.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Shipped name or folder; without it, a new one is pre-trained first.")
    ] = None,
    pretrain: Annotated[
        str | None,
        typer.Option(
            help=f"The recipe of a new backbone, of {', '.join(BACKBONES)}; base wants a GPU.", show_default=SMALL.name
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(INTERPRETERS)}; may be given again.", show_default="all")
    ] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same at tiny size, on drawn photographs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Rebuild the shipped models."""
    if unknown := set(only or ()) - set(INTERPRETERS):
        raise typer.BadParameter(f"no recipe {', '.join(sorted(unknown))}; there are {', '.join(INTERPRETERS)}")
    if pretrain is not None and (backbone is not None or smoke):
        raise typer.BadParameter("--pretrain names a new backbone's recipe: leave out --backbone and --smoke")
    if pretrain is not None and pretrain not in BACKBONES:
        raise typer.BadParameter(f"no recipe {pretrain} of a backbone; there are {', '.join(BACKBONES)}")
    table = table_at(data, work, smoke=smoke)
    chosen = [INTERPRETERS[name] for name in only or INTERPRETERS]
    if smoke:
        chosen = [at_smoke_size(recipe) for recipe in chosen]
    folders = build(work, table, backbone or (SMOKE_BACKBONE if smoke else BACKBONES[pretrain or SMALL.name]), chosen)
    if as_json:
        console.print_json({folder.name: str(folder) for folder in folders})
    else:
        for folder in folders:
            console.print_line(str(folder))


def _publish(run: Path, made: Path) -> None:
    """Copy the files of a model from its training run, without those that are needed only to resume training."""
    made.mkdir(parents=True, exist_ok=True)
    (made / MANIFEST_FILE).unlink(missing_ok=True)  # left by an earlier build
    for pattern in _WEIGHTS:
        for path in run.glob(pattern):
            if path.name != "run.json":
                shutil.copyfile(path, made / path.name)


def _count(folder: Path) -> int:
    from extractor.photographs import find_images

    return len(find_images([folder]))


def main() -> NoReturn:
    """Entry point."""
    console.run(app, ExtractorError, InterpreterError, StoreError, StepFailed)


if __name__ == "__main__":
    main()
