"""The recipes of all shipped models: their training data, settings and length of training."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from extractor.architectures import base_unet
from recipes.photographs import SourceDataset
from store.spec import PreprocessingName

STARE = SourceDataset("stare", "STARE", ("vessel",), "no formal licence; publicly available")
HRF = SourceDataset("hrf", "HRF_1024", ("vessel",), "CC BY 4.0")
CHASE_DB1 = SourceDataset("chase_db1", "CHASE_DB1", ("vessel",), "CC BY 4.0")
DRISHTI_GS = SourceDataset("drishti_gs", "Drishti-GS1_1024", ("OD", "cup"), "no licence stated", held_out=12)
DRIONS_DB = SourceDataset("drions_db", "DRIONS-DB", ("OD",), "no licence stated")
IDRID = SourceDataset("idrid", "IDRiD_1024", ("MA", "HE", "EX", "SE"), "CC BY 4.0")
OCTA_6M = SourceDataset("octa_6m", "OCTA500_6M", ("vessel",), "no licence stated")
OCTA_3M = SourceDataset("octa_3m", "OCTA500_3M", ("vessel",), "no licence stated")

CAMERAS = (STARE, CHASE_DB1, HRF)
"""Those whose vessels are labelled."""


@dataclass(frozen=True)
class Part:
    """The first ``photographs`` of a split of a data set; all of them if None."""

    source: SourceDataset
    photographs: int | None = None


@dataclass(frozen=True)
class BackboneRecipe:
    """A pre-training on the table's photographs of split ``unlabelled``, and the codebook of its compact encoding.

    Attributes:
        config: configuration of a UNet2DModel as JSON; empty takes that of the small one.
        options: further options of ``extractor pretrain``.
    """

    name: str
    steps: int
    batch: int = 4
    crop: int = 128
    resolution: int = 512
    learning_rate: float = 1e-3
    config: str = ""
    codebook_photographs: int = 12
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class InterpreterRecipe:
    """A training on the ``train`` photographs of some data sets, and the data sets it is tested on.

    Attributes:
        summary: its purpose, in one line.
        train: parts of ``train`` splits, to train and select the epoch on.
        test: parts of ``test`` splits; none of their photographs is used for training or selection.
        overlapping: whether the targets may overlap.
        preset, encoding: of the features that it reads.
        backbone: name of the shipped backbone that extracts them; None takes the build's.
        preprocessing: how photographs are prepared; None takes the backbone's own.
        views: the views to train on.
        options: further options of ``interpreter train``.
    """

    name: str
    summary: str
    targets: tuple[str, ...]
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    evaluate_every: int
    steps: int
    overlapping: bool = False
    preset: str = "fast"
    encoding: str = "int8"
    backbone: str | None = None
    preprocessing: PreprocessingName | None = None
    views: str = "identity,photometric:3"
    batch: int = 4
    options: tuple[str, ...] = ()


SMALL = BackboneRecipe("small", steps=3800)
BASE = BackboneRecipe(
    "base",
    steps=9600,
    batch=16,
    crop=256,
    learning_rate=5e-4,
    config=json.dumps(base_unet()),
    options=("--warmup", "300", "--colourless", "0.5", "--workers", "8"),
)
"""Needs a GPU in practice."""
BACKBONES = {recipe.name: recipe for recipe in (SMALL, BASE)}
WINDOWS_128 = ("--learning-rate", "3e-3", "--decay", "cosine", "--crop", "128", "--vss-max-size", "64")
WIDE = ("--standardise", "--width-multiplier", "2")
"""Channels standardised, levels twice as wide as their maps (docs/decisions/0020 and 0022)."""
WINDOWS_256 = ("--learning-rate", "3e-3", "--decay", "cosine", "--crop", "256", "--vss-max-size", "64")

DISC_CUP = InterpreterRecipe(
    "disc_cup",
    "optic disc and cup in colour fundus photographs",
    targets=("OD", "cup"),
    overlapping=True,  # the cup lies inside the disc, and the disc is scored as a whole
    train=(Part(DRISHTI_GS),),
    test=(Part(DRISHTI_GS), Part(DRIONS_DB)),
    steps=800,
    evaluate_every=10,
    options=(*WIDE, *WINDOWS_256),
)
DISC_CUP_BASE = replace(
    DISC_CUP,
    name="disc_cup_base",
    summary="optic disc and cup in colour fundus photographs, read from the larger backbone",
    backbone=BASE.name,
    steps=1600,
    evaluate_every=20,
    options=("--standardise", *WINDOWS_256),  # the maps are twice as wide already
)
LESIONS = InterpreterRecipe(
    "lesions",
    "EXPERIMENTAL: microaneurysms, haemorrhages, hard and soft exudates in colour fundus photographs",
    targets=("MA", "HE", "EX", "SE"),
    overlapping=True,
    train=(Part(IDRID),),
    test=(Part(IDRID),),
    steps=1200,
    evaluate_every=20,
    options=("--standardise", "--foreground", "0.5", *WINDOWS_128),
)
LESIONS_BASE = replace(
    LESIONS,
    name="lesions_base",
    summary="EXPERIMENTAL: microaneurysms, haemorrhages, hard and soft exudates, read from the larger backbone",
    backbone=BASE.name,
    steps=2400,
    evaluate_every=40,
)
OCTA_VESSELS = InterpreterRecipe(
    "octa_vessels",
    "large vessels in OCT angiography, en face",
    targets=("vessel",),
    train=(Part(OCTA_6M), Part(OCTA_3M)),
    test=(Part(OCTA_6M), Part(OCTA_3M)),
    views="identity,photometric:1",
    steps=1200,
    evaluate_every=20,
    options=(*WIDE, *WINDOWS_128),
)
OCTA_VESSELS_BASE = replace(
    OCTA_VESSELS,
    name="octa_vessels_base",
    summary="large vessels in OCT angiography, en face, read from the larger backbone",
    backbone=BASE.name,
    options=("--standardise", *WINDOWS_128),  # the maps are twice as wide already
)
VESSELS = InterpreterRecipe(
    "vessels",
    "vessels in fundus photographs, read without colour",
    targets=("vessel",),
    train=(Part(HRF), Part(STARE), Part(CHASE_DB1)),
    test=(Part(HRF), Part(STARE), Part(CHASE_DB1)),
    preprocessing="red-free",
    steps=2400,
    evaluate_every=40,
    options=(*WIDE, *WINDOWS_128),
)
VESSELS_BASE = replace(
    VESSELS,
    name="vessels_base",
    summary="vessels in fundus photographs, read without colour from the larger backbone",
    backbone=BASE.name,
    views="identity,photometric:15",
    evaluate_every=60,
    options=("--standardise", *WINDOWS_128),  # the maps are twice as wide already
)
INTERPRETERS = {
    recipe.name: recipe
    for recipe in (
        DISC_CUP,
        DISC_CUP_BASE,
        LESIONS,
        LESIONS_BASE,
        OCTA_VESSELS,
        OCTA_VESSELS_BASE,
        VESSELS,
        VESSELS_BASE,
    )
}


def at_smoke_size(recipe: InterpreterRecipe) -> InterpreterRecipe:
    """The recipe at tiny size: the build's backbone, two training photographs per part, one epoch, a tiny network."""
    return replace(
        recipe,
        backbone=None,
        train=tuple(Part(part.source, 2) for part in recipe.train),
        test=tuple(Part(part.source, 1) for part in recipe.test),
        views="identity",
        steps=1,
        evaluate_every=1,
        options=(*recipe.options, "--vss-max-size", "0", "--max-width", "8"),
    )
