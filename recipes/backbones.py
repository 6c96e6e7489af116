"""Ways of pre-training a backbone, at equal compute: a table of docs/experiments.md.

    python -m recipes.backbones --data DATA --work WORK [--only small] [--tflop 20] [--json]

Every variant is trained with the same number of floating-point operations on the same unlabelled photographs. Linear
probes then measure how well its features separate vessels on cameras that the probe was not fitted to. Labels come
from ``train`` splits only, so that what is chosen by this table may be tested on the others. A variant that was
scored is not trained again, and one that was stopped resumes.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NoReturn

import torch
import typer
from pydantic import ValidationError
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from extractor.architectures import plain_unet, small_unet
from extractor.backbone import Backbone
from extractor.backbones import stored_backbone
from extractor.errors import ExtractorError
from extractor.photographs import find_images, prepare_photographs
from extractor.pretraining import Pretraining
from extractor.pretraining_settings import PretrainingSettings
from extractor.unet import build_unet
from interpreter.errors import InterpreterError
from recipes.calls import StepFailed, call
from recipes.models import UNLABELLED, table_at
from recipes.photographs import folders_of
from recipes.shipped import CAMERAS
from store import console
from store.errors import StoreError
from store.feature_store import FeatureStore

HELD_OUT = 8
"""About how many unlabelled photographs are held out from training; ``further`` starts from weights that saw them."""


@dataclass(frozen=True)
class Variant:
    """One way of pre-training; the defaults are those of the shipped backbone ``small``.

    Attributes:
        description: how it differs.
        pretraining: fields of ``PretrainingSettings`` that differ.
        initial: the shipped backbone whose training it continues, with compute on top of that backbone's own; None
            starts from random weights.
        widths, blocks_per_level: of the U-Net, as in ``plain_unet``.
    """

    description: str
    pretraining: dict[str, Any] = field(default_factory=dict)
    initial: str | None = None
    widths: tuple[int, ...] = tuple(small_unet()["block_out_channels"])
    blocks_per_level: int = 1

    def settings(self, tflop: float) -> PretrainingSettings:
        """Settings with as many steps as take ``tflop`` * 10^12 operations in total, at least one."""
        common = {"learning_rate": 1e-3, "checkpoint_every": 200} | self.pretraining | {"steps": 1}
        if self.start is not None:
            one = PretrainingSettings.going_on_from(self.start, **common)
        else:
            unet = plain_unet(self.widths, math.gcd(8, *self.widths), self.blocks_per_level)
            one = PretrainingSettings.model_validate(common | {"unet": unet})
        return one.model_copy(update={"steps": max(1, round(tflop * 1e12 / operations(one)))})

    @cached_property
    def start(self) -> Backbone | None:
        """The backbone whose training it continues; None if it starts from random weights."""
        return None if self.initial is None else stored_backbone(self.initial)

    @property
    def blocks(self) -> str:
        """The first block of each level but the coarsest, comma-separated: those that the preset ``small`` reads."""
        in_a_level = self.blocks_per_level + 1
        return ",".join(str(in_a_level * level) for level in range(1, len(self.widths)))


VARIANTS = {
    "small": Variant("as shipped: velocity, crops of 128, half of the steps below t = 500"),
    "epsilon": Variant("predicts the noise", {"prediction": "epsilon"}),
    "sample": Variant("predicts the image", {"prediction": "sample"}),
    "uniform": Variant("all noise levels alike", {"level_power": 1.0}),
    "both": Variant("predicts the image, all noise levels alike", {"prediction": "sample", "level_power": 1.0}),
    "faint": Variant("half of the steps below t = 63", {"level_power": 6.0}),
    "whole": Variant("whole photographs, one in a step", {"crop": 512, "batch": 1}),
    "plain": Variant("no photometric changes", {"photometric": 0.0}),
    "strong": Variant("photometric changes twice as strong", {"photometric": 2.0}),
    "unequalised": Variant("no CLAHE", {"preprocessing": {"clahe": None}}),
    "wide": Variant("half as wide again, everywhere", widths=(24, 48, 96, 144, 192)),
    "coarse": Variant("finest level half as wide, coarse ones twice", widths=(8, 32, 128, 192, 256)),
    "deep": Variant("two residual blocks a level", blocks_per_level=2),
    "further": Variant("the shipped one, trained further", initial="small"),
}


@dataclass(frozen=True)
class Scored:
    """The scores of a variant.

    Attributes:
        steps: steps of its training.
        processor_seconds: processor time of its training on this machine; None if it was stopped and resumed.
        denoised: {timestep: PSNR in dB} of denoised photographs from cameras it never saw.
        own_denoised: the same for held-out photographs from cameras it was trained on.
        walked, own_walked: PSNR in dB of the same photographs after inversion up the grid and the walk back.
        precision: {"t = T, BLOCK": average precision of vessels, 0..1}, the mean over probes fitted to one camera
            each and scored on the two others.
    """

    name: str
    steps: int
    processor_seconds: float | None
    denoised: dict[str, float]
    own_denoised: dict[str, float]
    walked: float
    own_walked: float
    precision: dict[str, float]

    @property
    def best(self) -> tuple[str, float]:
        """The timestep and block whose features separate vessels best, and their average precision."""
        return max(self.precision.items(), key=lambda item: item[1])


def operations(settings: PretrainingSettings) -> float:
    """Count the floating-point operations of one step; the backward pass is taken to cost twice the forward pass."""
    unet = build_unet(settings.unet).to("meta")
    x = torch.empty(settings.batch, 3, settings.crop, settings.crop, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(x, torch.zeros(settings.batch, device="meta"))
    return 3.0 * int(counter.get_total_flops())


def at_smoke_size(variant: Variant) -> Variant:
    """The same variant on small crops with the narrowest network, or with that of the backbone it continues."""
    return dataclasses.replace(
        variant, widths=(4,) * len(variant.widths), pretraining=variant.pretraining | {"crop": 32, "resolution": 64}
    )


class Comparison:
    """The comparison of variants, in one folder.

    Args:
        table: the table of all photographs (``recipes.photographs``).
        work: receives prepared photographs, backbones, features and scores.
        tflop: budget of each variant, in 10^12 operations.
        count: number of photographs of each camera that backbones are assessed on.
    """

    def __init__(self, table: Path, work: Path, tflop: float, count: int = 4) -> None:
        self.table, self.work, self.tflop, self.count = table, work, tflop, count
        self.cameras = {one.name: one.write_manifest(table, work / "tables") for one in CAMERAS}

    @cached_property
    def unlabelled(self) -> tuple[list[Path], list[Path]]:
        """The unlabelled photographs to train on, and those that are held out."""
        everything = find_images(folders_of(self.table, UNLABELLED))
        every = max(2, len(everything) // HELD_OUT)
        return [path for i, path in enumerate(everything) if i % every], everything[::every]

    def score(self, name: str, variant: Variant) -> Scored:
        """Train, assess and probe a variant; scores that are there for the same settings are read."""
        folder = self.work / "backbones" / name
        settings = variant.settings(self.tflop)
        kept = folder / "scores.json"
        if kept.is_file():
            known = json.loads(kept.read_text())
            with suppress(ValidationError):  # written by another version: score again
                if PretrainingSettings.model_validate(known["asked"]) == settings:
                    return Scored(**known["scores"])
        seconds = self._train(variant, settings, folder)
        cameras = self._assess(folder, [f"manifest:{path}" for path in self.cameras.values()])
        (own,) = self._assess(folder, [f"manifest:{self._held_out()}"], split=None)
        scored = Scored(
            name,
            settings.steps,
            seconds,
            {t: fmean(one["denoised"][t] for one in cameras) for t in cameras[0]["denoised"]},
            own["denoised"],
            fmean(one["walked"] for one in cameras),
            own["walked"],
            self._probe(folder, variant),
        )
        asked = settings.model_dump(mode="json")
        kept.write_text(json.dumps({"asked": asked, "scores": dataclasses.asdict(scored)}, indent=2) + "\n")
        return scored

    def _train(self, variant: Variant, settings: PretrainingSettings, folder: Path) -> float | None:
        """Train a variant or resume its training; return processor seconds if it was trained in one go, else None."""
        photographs = prepare_photographs(
            self.unlabelled[0], self.work / "prepared", settings.resolution, settings.preprocessing
        )
        training = Pretraining(settings, photographs, folder, variant.start)
        first, started = training.step, time.process_time()
        with console.progress(f"pre-training {folder.name}", settings.steps - training.step) as advance:
            training.run(lambda _, loss: advance(1, f"loss {loss:.3f}"))
        return round(time.process_time() - started, 1) if first == 0 else None

    def _assess(self, folder: Path, sources: Sequence[str], split: str | None = "train") -> list[dict[str, Any]]:
        report = call(
            "extractor", "assess", "--backbone", folder / "backbone",
            *[word for source in sources for word in ("--dataset", source)], "--photographs", self.count,
            *(["--split", split] if split else []), "--json",
        )  # fmt: skip
        found: list[dict[str, Any]] = report["datasets"]
        return found

    def _held_out(self) -> Path:
        path = self.work / "tables" / "held_out.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["image"], *([image.resolve()] for image in self.unlabelled[1])])
        return path

    def _probe(self, folder: Path, variant: Variant) -> dict[str, float]:
        """Fit probes to each camera in turn, score them on the others, and delete the features, a gigabyte."""
        store = self.work / "features.zarr"
        (spec,) = {
            call(
                "extractor", "run", "--dataset", f"manifest:{path}", "--split", "train", "--backbone",
                folder / "backbone", "--blocks", variant.blocks, "--store", store, "--json",
            )["spec"]
            for path in self.cameras.values()
        }  # fmt: skip
        found = []
        for fitted in self.cameras:
            others = [word for other in self.cameras if other != fitted for word in ("--score-on", f"{other}:train")]
            found += call(
                "interpreter", "probe", "--store", store, "--spec", spec, "--target", "vessel", "--dataset",
                f"{fitted}:train", *others, "--json",
            )  # fmt: skip
        features = FeatureStore(store)
        probed = features.spec(spec)
        for key in list(features.keys(probed)):
            features.delete(probed, key)
        places = sorted((f"t = {one['timestep']}, {one['block']}", one["average_precision"]) for one in found)
        return {place: fmean(value for _, value in group) for place, group in groupby(places, lambda item: item[0])}


app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m recipes.backbones --data data --work build/backbones --only small,epsilon")
def backbones(
    work: Annotated[Path, typer.Option(help="Folder of the comparison; a stopped one goes on.", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="Folder of the data sets, with their table.")] = None,
    only: Annotated[str | None, typer.Option(help=f"By comma, of {', '.join(VARIANTS)}.")] = None,
    tflop: Annotated[float, typer.Option(min=1e-6, help="10^12 operations for each variant.")] = 20.0,
    smoke: Annotated[bool, typer.Option("--smoke", help="The same at tiny size, on drawn photographs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Pre-train backbones in several ways at equal compute, and ask what their features are worth."""
    chosen = [name.strip() for name in only.split(",")] if only else list(VARIANTS)
    if unknown := set(chosen) - set(VARIANTS):
        raise typer.BadParameter(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    table = table_at(data, work, smoke=smoke)
    variants = {name: VARIANTS[name] for name in chosen}
    if smoke:
        variants = {name: at_smoke_size(variant) for name, variant in variants.items()}
        tflop = 0.0
    comparison = Comparison(table, work, tflop, count=1 if smoke else 4)
    scored = [comparison.score(name, variant) for name, variant in variants.items()]
    if as_json:
        console.print_json(
            [dataclasses.asdict(one) | {"description": VARIANTS[one.name].description} for one in scored]
        )
        return
    shown = Table("variant", "steps", "s", "denoised, t = 500", "up and back", "vessels, mean", "best", "where")
    for one in scored:
        where, best = one.best
        seconds = "" if one.processor_seconds is None else f"{one.processor_seconds:.0f}"
        shown.add_row(
            one.name, str(one.steps), seconds, f"{one.denoised['500']:.1f}", f"{one.walked:.1f}",
            f"{100 * fmean(one.precision.values()):.1f}", f"{100 * best:.1f}", where,
        )  # fmt: skip
    console.out.print(shown)


def main() -> NoReturn:
    """Entry point."""
    console.run(app, ExtractorError, InterpreterError, StoreError, StepFailed)


if __name__ == "__main__":
    main()
