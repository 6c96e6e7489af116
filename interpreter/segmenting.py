"""Label maps of photographs whose features are in a store, labelled or not, and what each says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interpreter.data import Labelled
from interpreter.domain import Domain, DomainScore
from interpreter.expected import expected_of
from interpreter.metrics import finite_or_none
from interpreter.network import Interpreter
from interpreter.prediction import segment
from interpreter.rendering import write_label_maps
from interpreter.stored import mirrored_features
from interpreter.task import Task
from store.feature_store import FeatureStore
from store.spec import FeatureSpec

Cell = str | float | bool | None


@dataclass(frozen=True)
class SegmentedPhotograph:
    """What was found in one photograph.

    Attributes:
        image: its name.
        file: the label map.
        mirrored: its flips were read, too.
        shares: {class: share of the field of view that it takes}, 0..1, without the background.
        expected_dice: {class: Dice that its mask would have if the probabilities were true}, 0..1; None where it was
            not found.
        disagreement: mean entropy of the votes inside the field of view, in nats.
        domain: how far it is from the photographs that the interpreter knows; None where it cannot tell.
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
        """By what it is unlike the photographs that the interpreter knows; empty if it is not, or nobody can tell."""
        return "" if self.domain is None else " ".join(self.domain.reasons)

    def row(self, folder: Path) -> dict[str, Cell]:
        """A row of a table: plain values, the file's path below a folder."""
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


def segment_into(
    folder: Path,
    interpreter: Interpreter,
    store: FeatureStore,
    spec: FeatureSpec,
    task: Task,
    images: Sequence[Labelled],
    domain: Domain | None = None,
    *,
    mirrored: bool = False,
) -> Iterator[SegmentedPhotograph]:
    """Write the label map of each image into a folder, and tell what was found in it.

    Args:
        spec: of the features that are read: the interpreter's, at its resolution or another one.
        domain: the interpreter's.
        mirrored: each image's three flips are read, too.

    Raises:
        SpecMismatch: the spec differs from the interpreter's in more than resolution.
        MissingEntry, DamagedEntry: features of an image, or of a flip that is read, are not in the store, or no longer
            what was written.
    """
    interpreter.require(spec)
    for image in images:
        features = store.entry(spec, image.key).features()
        flips = mirrored_features(store, spec, image) if mirrored else None
        prediction, labels, masks = segment(interpreter, features, flips)
        found = [labels == c for c in range(1, len(task.classes))] if masks is None else list(masks)
        inside = features.geometry.restore(features.fov).astype(np.bool_)
        expected = expected_of(prediction, features.fov)
        shares = [float(mask[inside].mean()) for mask in found]
        yield SegmentedPhotograph(
            image=image.name,
            file=write_label_maps(folder, image.name, labels, masks, task),
            mirrored=mirrored,
            shares=dict(zip(task.targets, shares, strict=True)),
            expected_dice=dict(zip(task.targets, map(finite_or_none, expected), strict=True)),
            disagreement=float(prediction.disagreement[features.fov].mean()),
            domain=None if domain is None else domain.score(features, interpreter.codec),
        )
