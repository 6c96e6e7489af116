"""Vessel segmentation on cameras, and on a modality, that training has not seen, and from few labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from interpreter.errors import ConfigurationError
from interpreter.protocols.protocol import Experiment, Protocol, TableRequest
from interpreter.rules import STRICT, Rules
from interpreter.task import Task
from store.views import NEGATIVE

VESSELS = Task(name="vessels", targets=("vessel",))
COMPAT = Rules(masks="pillow", region="image")
PAPER = "DiffDGSS, as published"
FEW = (1, 2, 5, 10)


def lodo_vessels() -> Protocol:
    """Leave one domain out, using nothing of the target before the test."""
    return Protocol(
        name="lodo-vessels",
        edition="strict",
        description="Train on the train folders of all data sets but one, test on the test folder of that one.",
        task=VESSELS,
        experiments=_leave_one_out,
        notes=(
            "The photograph is cropped to its field of view; masks are resized by nearest neighbour; only pixels "
            "inside the detected field of view count.",
            "The best epoch is picked on images split off from the source data sets.",
            "The published numbers follow another protocol (aadg-compat) with a larger backbone and DRIVE.",
        ),
        quoted=_published(),
    )


def lodo_vessels_compat() -> Protocol:
    """The published protocol (AADG's), with its selection of the best epoch on the target."""
    return Protocol(
        name="lodo-vessels",
        edition="aadg-compat",
        description="The published protocol: photographs squeezed, Dice of the whole square, best epoch of the target.",
        task=VESSELS,
        experiments=partial(_leave_one_out, training=COMPAT, scoring=COMPAT, select_on_target=True),
        notes=(
            "THE BEST EPOCH IS PICKED ON THE TEST IMAGES, as in the published code: the numbers are optimistic.",
            "Masks go through Pillow's resize without a filter named (bicubic; nearest for masks of one bit or with a "
            "palette, as CHASE_DB1's are), then != 0.",
            "The setting `preprocessing` squeeze-red-free removes colour, equalises, blackens what lies outside the "
            "field of view and resizes by area; AADG only squeezes, by Pillow's LANCZOS.",
            "AADG's crops of 256 pixels can be had by the setting `crop`; its random scaling by 0.5 to 2 is left out, "
            "since features are cached at one scale.",
        ),
        preprocessing="squeeze",
        quoted=_published(),
    )


def cross_modality() -> Protocol:
    """Train on photographs, test on angiograms."""
    return Protocol(
        name="cross-modality",
        edition="strict",
        description="Train on the photographs' train folders, test on the test folder of the angiograms (--target).",
        task=VESSELS,
        experiments=_cross_modality,
        notes=(
            "Polarity: vessels are dark in photographs and bright in OCT angiograms; the target is read as its "
            "negative (the view `negative`, 255 - value before the network). Nothing else is adapted.",
            "The paper's set-up for OCTA has no published code; this one is ours.",
        ),
        quoted={PAPER: {"octa_500": 0.6199}},
    )


def few_label() -> Protocol:
    """Train on 1, 2, 5, 10 and all labelled images, to show what labels are worth."""
    return Protocol(
        name="few-label",
        edition="strict",
        description="Train on N images drawn by seed from all train folders, test on all test folders.",
        task=VESSELS,
        experiments=_few_label,
        notes=(
            "N counts the images kept for validation (15 %, none below N = 4: then the last epoch is tested).",
            "The images of a smaller N are among those of a larger one of the same seed.",
        ),
    )


def _published() -> dict[str, dict[str, float]]:
    return {PAPER: {"chase_db1": 0.7847, "stare": 0.8046, "hrf": 0.7412}}


def _leave_one_out(
    request: TableRequest, training: Rules = STRICT, scoring: Rules = STRICT, select_on_target: bool = False
) -> Sequence[Experiment]:
    if len(request.domains) < 2:
        raise ConfigurationError(
            f"leaving one domain out takes two data sets at least, got {', '.join(request.domains)}"
        )
    return [
        Experiment(
            row,
            seed,
            target,
            tuple((name, "train") for name in request.domains if name != target),
            ((target, "test"),),
            training,
            scoring,
            select_on_target=select_on_target,
        )
        for target in request.targets or request.domains
        for row in request.rows
        for seed in request.seeds
    ]


def _cross_modality(request: TableRequest) -> Sequence[Experiment]:
    photographs = tuple(name for name in request.domains if name not in request.targets)
    if not request.targets or not photographs:
        raise ConfigurationError("cross-modality takes photographs and, named by --target, angiograms")
    return [
        Experiment(
            row, seed, target, tuple((name, "train") for name in photographs), ((target, "test"),), test_view=NEGATIVE
        )
        for target in request.targets
        for row in request.rows
        for seed in request.seeds
    ]


def _few_label(request: TableRequest) -> Sequence[Experiment]:
    return list(_few_label_experiments(request))


def _few_label_experiments(request: TableRequest) -> Iterator[Experiment]:
    sources = tuple((name, "train") for name in request.domains)
    tests = tuple((name, "test") for name in request.targets or request.domains)
    for row in request.rows:
        for seed in request.seeds:
            for labels in (*FEW, None):
                yield Experiment(row, seed, str(labels or "all"), sources, tests, labels=labels)
