"""Protocols: sets of named experiments, and how their scores become a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, field_validator

from interpreter.config import HeadName, InterpreterConfig
from interpreter.errors import ConfigurationError
from interpreter.presets import TrainingPlan
from interpreter.rules import STRICT, Rules
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from store.spec import PREPROCESSINGS, EncodingName, PreprocessingName, Trajectory, require_increasing
from store.views import IDENTITY, is_fixed

Edition = Literal["strict", "aadg-compat"]


@dataclass(frozen=True)
class Row:
    """A method of the table.

    Attributes:
        description: one line for the report.
        trajectory: how its features are extracted.
        head: the network that reads them.
        pixels: whether it reads photographs instead of features.
        untrained: whether its features come from the backbone's architecture with random weights.
    """

    name: str
    description: str
    trajectory: Trajectory = "ddim"
    head: HeadName = "adaptive"
    pixels: bool = False
    untrained: bool = False


ROWS = {
    row.name: row
    for row in (
        Row("diffdgss", "the interpreter on features of the DDIM inversion"),
        Row("anchored", "features of the clean photograph at every timestep", trajectory="anchored"),
        Row("stochastic", "w/o deterministic inversion: features of q(x_t | x0)", trajectory="stochastic"),
        Row("untrained", "features of the same U-Net with random weights", untrained=True),
        Row("joint", "w/o vote: the interpreter shown all timesteps at once", head="joint"),
        Row("mlp", "w/o adaptive interpreter: DDPM-Seg's ten pixel classifiers", head="mlp"),
        Row("unet", "a U-Net on the photograph, flips and photometric augmentation", head="unet", pixels=True),
        Row("pyramid", "the interpreter on the photograph at four sizes", head="pyramid", pixels=True),
    )
}


class ProtocolSettings(TrainingPlan):
    """The user's choices for a protocol, besides budget and levels; the same for every experiment of a table.

    Attributes:
        views: renderings of the training images. Networks on pixels read only the fixed ones, and draw flips and
            photometric changes themselves.
        timesteps, blocks, resolution, encoding: the preset's if None.
        preprocessing: how all photographs are prepared; the protocol's or else the backbone's if None.
        standardise: standardise the features; photographs are never standardised.
        mirrored: read each test image's three flips as well, and average the predictions.
        size: side, in pixels, of the square that is scored, so that networks of different resolutions can be
            compared; the network's own if None.
        adapt: resolutions at which photographs of a tested data set may be read, besides the network's own. The one
            at which the trained network expects the highest Dice on the data set's ``train`` photographs, without
            their labels, is taken; its own unless another is clearly better (``interpreter.adapting``).
    """

    preset: str = "small"
    backbone: str | None = None
    timesteps: tuple[int, ...] | None = Field(default=None, min_length=1)
    blocks: tuple[int, ...] | None = Field(default=None, min_length=1)
    resolution: int | None = Field(default=None, gt=0)
    encoding: EncodingName | None = None
    preprocessing: PreprocessingName | None = None
    device: str = "cpu"
    views: tuple[str, ...] = Field(default=(IDENTITY,), min_length=1)
    decay: Literal["none", "cosine"] = "cosine"
    mirrored: bool = False
    size: int | None = Field(default=None, gt=0)
    adapt: tuple[Annotated[int, Field(gt=0)], ...] = ()

    @field_validator("timesteps")
    @classmethod
    def _increasing(cls, timesteps: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if timesteps is not None:
            require_increasing("timesteps", timesteps)
        return timesteps

    def views_of(self, row: Row) -> tuple[str, ...]:
        """The views that a method is trained on."""
        if not row.pixels:
            return self.views
        return tuple(view for view in self.views if is_fixed(view)) or (IDENTITY,)

    def scoring(self, rules: Rules) -> Rules:
        """Return a protocol's scoring rules with the chosen size.

        Raises:
            ConfigurationError: a size is chosen, but the protocol prescribes one.
        """
        if self.size is None:
            return rules
        if rules.size != "network":
            raise ConfigurationError(f"the protocol compares pixels of {rules.size} size; leave out the setting `size`")
        return rules.model_copy(update={"size": self.size})

    def training(self, row: Row, seed: int, labels: int | None) -> TrainingSettings:
        """The settings of one method's training."""
        return self.training_settings(views=self.views_of(row), labels=labels, seed=seed)

    def config(self, row: Row, task: Task) -> InterpreterConfig:
        """The configuration of one method's network."""
        levels = self.model_copy(update={"standardise": self.standardise and not row.pixels})
        return levels.network_config(classes=len(task.classes), overlapping=task.overlapping, head=row.head)


@dataclass(frozen=True)
class Experiment:
    """One training and one test.

    Attributes:
        column: its column of the table, unless the columns are classes (``Protocol.by_class``).
        sources: (data set, split) of the training images.
        tests: (data set, split) of the test images.
        training_rules, scoring_rules: how ground truth is made and which pixels count, in training and in the test.
        test_view: the view in which test images are read.
        labels: number of images to train on, those kept for validation included; None takes all.
        select_on_target: select the best epoch on the test images.
    """

    row: Row
    seed: int
    column: str
    sources: tuple[tuple[str, str], ...]
    tests: tuple[tuple[str, str], ...]
    training_rules: Rules = STRICT
    scoring_rules: Rules = STRICT
    test_view: str = IDENTITY
    labels: int | None = None
    select_on_target: bool = False

    @property
    def path(self) -> str:
        """The folder of its files, relative to the output folder of the protocol."""
        return f"{self.row.name}/{self.column}/seed-{self.seed}"


@dataclass(frozen=True)
class TableRequest:
    """The data sets, methods and seeds that a table is to cover.

    Attributes:
        domains: names of all data sets.
        targets: those to test on; empty leaves the choice to the protocol.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """A protocol in one edition.

    Attributes:
        description: what it does, in a sentence.
        experiments: lists the experiments of a request; raises ConfigurationError if the protocol cannot fulfil it.
        notes: how it departs from what was published, and what was decided.
        metric: the figure of ``Scores.figures`` that the table shows.
        by_class: the columns are the task's classes instead of those of the experiments.
        preprocessing: how photographs are prepared, unless the settings name another one with the same crop; if None,
            as the settings or else the backbone say.
        quoted: {name of a row: {column: published number, 0..1}}, shown beside the computed rows.
    """

    name: str
    edition: Edition
    description: str
    task: Task
    experiments: Callable[[TableRequest], Sequence[Experiment]]
    notes: tuple[str, ...] = ()
    metric: str = "dice"
    by_class: bool = False
    preprocessing: PreprocessingName | None = None
    quoted: dict[str, dict[str, float]] = field(default_factory=dict)

    def preprocessing_for(self, settings: ProtocolSettings) -> PreprocessingName | None:
        """The preprocessing of a table with these settings; None for the backbone's.

        Raises:
            ConfigurationError: the chosen preprocessing crops photographs differently from this edition's.
        """
        own, chosen = self.preprocessing, settings.preprocessing
        if own is None or chosen is None:
            return chosen or own
        alike = [name for name, make in PREPROCESSINGS.items() if make().crop == PREPROCESSINGS[own]().crop]
        if chosen not in alike:
            raise ConfigurationError(
                f"{self.name}, {self.edition}, prepares its photographs by {own}; leave out the setting "
                f"`preprocessing`, or take one that crops them alike: {', '.join(alike)}"
            )
        return chosen
