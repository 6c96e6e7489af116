"""What a protocol is: experiments with names, and how their scores become a table."""

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
        description: what it is, for the report.
        trajectory: of its features.
        head: that reads them.
        pixels: it reads photographs instead of features.
        untrained: its features are made by the backbone's architecture with random weights.
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
    """What the user of a protocol may choose, besides budget and levels; the same for every experiment of a table.

    Attributes:
        views: renderings of the training images; networks on pixels draw flips and photometric ones themselves.
        timesteps, blocks, resolution, encoding: the preset's if not given.
        preprocessing: of all photographs; the protocol's or the backbone's if not given.
        standardise: networks that read features; photographs are not standardised.
        mirrored: each test image's three flips are read, too, and averaged.
        size: scores are of a square of so many pixels, that networks of several resolutions may be compared; of the
            network's if not given.
        adapt: photographs of a tested data set are read at that of these resolutions, beside the network's own, at
            which the trained network expects most of itself on the data set's photographs of the split ``train``,
            without their labels (``interpreter.adapting``).
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
        """The renderings that a method is trained on."""
        if not row.pixels:
            return self.views
        return tuple(view for view in self.views if is_fixed(view)) or (IDENTITY,)

    def scoring(self, rules: Rules) -> Rules:
        """A protocol's rules of scoring, at the chosen size.

        Raises:
            ConfigurationError: the protocol has a size of its own.
        """
        if self.size is None:
            return rules
        if rules.size != "network":
            raise ConfigurationError(f"the protocol compares pixels of {rules.size} size; leave out the setting `size`")
        return rules.model_copy(update={"size": self.size})

    def training(self, row: Row, seed: int, labels: int | None) -> TrainingSettings:
        """The settings of one training."""
        return self.training_settings(views=self.views_of(row), labels=labels, seed=seed)

    def config(self, row: Row, task: Task) -> InterpreterConfig:
        """The network of one method."""
        levels = self.model_copy(update={"standardise": self.standardise and not row.pixels})
        return levels.network_config(classes=len(task.classes), overlapping=task.overlapping, head=row.head)


@dataclass(frozen=True)
class Experiment:
    """One training and one test.

    Attributes:
        column: of the table, where a test has one number.
        sources: (data set, split) of the training images.
        tests: (data set, split) of the test images.
        test_view: the rendering of the test images that is read.
        labels: train on so many images.
        select_on_target: the best epoch is the one that is best on the test images.
        training_rules, scoring_rules: how the truth is made and where it counts.
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
        """Where its files are, below the folder of the protocol."""
        return f"{self.row.name}/{self.column}/seed-{self.seed}"


@dataclass(frozen=True)
class TableRequest:
    """What a table is asked for."""

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """A protocol in one edition.

    Attributes:
        description: what it is, in a sentence.
        notes: how it departs from what was published, and what was decided.
        experiments: of what is asked; ConfigurationError if that cannot be.
        metric: of ``Scores.figures`` that the table shows.
        by_class: the columns are the task's classes, not the experiments' names.
        preprocessing: of the photographs, unless the settings name another that crops them alike; that of the settings
            or of the backbone if None.
        quoted: {name of a row: {column: published number, 0..1}}, shown beside and never computed.
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
        """Of a table with these settings; None for the backbone's.

        Raises:
            ConfigurationError: the choice crops photographs otherwise than this edition does.
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
