"""Segmenting photographs whose features are in a store, labelled or not, with measures that need no labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from interpreter.data import LabelledImage
from interpreter.domain import Domain, DomainScore
from interpreter.expected import expected_of
from interpreter.metrics import finite_or_none
from interpreter.network import Interpreter
from interpreter.rendering import write_label_maps
from interpreter.stored import segment_stored
from interpreter.task import Task
from store.feature_store import FeatureStore
from store.spec import FeatureSpec

Cell = str | float | bool | None


@dataclass(frozen=True)
class SegmentedPhotograph:
    """The segmentation of one photograph.

    Attributes:
        image: name of the photograph.
        file: path of the label map.
        mirrored: whether its flips were read, too.
        shares: {class: share of the field of view that it takes}, 0..1, without the background.
        expected_dice: {class: Dice that its mask would have if the probabilities were true}, 0..1; None if it was not
            found.
        disagreement: mean entropy of the votes inside the field of view, in nats.
        domain: how far the photograph is from those that the interpreter was trained on; None without a domain.
    """

    image: str
    file: Path
    mirrored: bool
    shares: Mapping[str, float]
    expected_dice: Mapping[str, float | None]
    disagreement: float
    domain: DomainScore | None

    @property
    def unusual(self) -> str:
        """``DomainScore.reasons``, joined by spaces; empty if nothing is unusual, or if there is no domain."""
        return "" if self.domain is None else " ".join(self.domain.reasons)

    def row(self, folder: Path) -> dict[str, Cell]:
        """Plain values for a row of a table, with the file's path relative to ``folder``."""
        return {
            "image": self.image,
            "file": self.file.relative_to(folder).as_posix(),
            "mirrored": self.mirrored,
            **{f"share_{name}": share for name, share in self.shares.items()},
            **{f"expected_dice_{name}": dice for name, dice in self.expected_dice.items()},
            "disagreement": self.disagreement,
            "distance": None if self.domain is None else self.domain.distance,
            "unusual": self.unusual,
        }


def table_columns(task: Task) -> list[str]:
    """Names of the columns of a table: those of ``SegmentedPhotograph.row``, and who read it at which resolution."""
    shares, expected = ([f"{kind}_{name}" for name in task.targets] for kind in ("share", "expected_dice"))
    read = ["model", "resolution"]
    return ["image", "file", "mirrored", *shares, *expected, "disagreement", "distance", "unusual", *read]


def segment_into(
    folder: Path,
    interpreter: Interpreter,
    store: FeatureStore,
    spec: FeatureSpec,
    task: Task,
    images: Sequence[LabelledImage],
    domain: Domain | None = None,
    *,
    mirrored: bool = False,
) -> Iterator[SegmentedPhotograph]:
    """Write the label map of each image into a folder, and yield what was found in it.

    Args:
        spec: spec of the features to read: the interpreter's, at its own resolution or another one.
        domain: the interpreter's domain; without it, nothing is said about how unusual a photograph is.
        mirrored: also read each image's three flips.

    Raises:
        SpecMismatch: the spec differs from the interpreter's in more than resolution.
        ConfigurationError: ``mirrored``, and an image is read in another view than the photograph itself.
        MissingEntry, DamagedEntry: features of an image, or of a flip that is read, are not in the store, or no longer
            what was written.
        NonFinitePrediction: the interpreter computes NaN or infinity for an image.
    """
    interpreter.require(spec)
    for image in images:
        features, found = segment_stored(interpreter, store, spec, image, mirrored=mirrored)
        expected = expected_of(found.prediction, found.fov)
        shares = [float(mask[found.native_fov].mean()) for mask in found.masks]
        yield SegmentedPhotograph(
            image=image.name,
            file=write_label_maps(folder, image.name, found.labels, found.layers, task),
            mirrored=mirrored,
            shares=dict(zip(task.targets, shares, strict=True)),
            expected_dice=dict(zip(task.targets, map(finite_or_none, expected), strict=True)),
            disagreement=float(found.prediction.disagreement[found.fov].mean()),
            domain=None if domain is None else domain.score(features, interpreter.codec),
        )
