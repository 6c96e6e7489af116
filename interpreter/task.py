"""What is segmented: which targets of a data set become which class."""

from __future__ import annotations

from collections.abc import Container, Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

# Bright and far from the reds and oranges of a fundus.
PALETTE = ("#1fe0ff", "#7cff6b", "#ff7bf2", "#ffffff", "#4d7cff", "#00b894", "#c9a7ff", "#e8ff4d")


class Task(BaseModel):
    """Classes that exclude each other, or that may overlap.

    Attributes:
        name: such as ``vessels``.
        targets: target i of the data set becomes class i + 1; later ones cover earlier ones (a cup
            lies inside its disc). Class 0 is what none of them covers.
        colours: of classes 1 to n - 1, for overlays.
        overlapping: a pixel may belong to several classes (lesions). An image then needs one of the
            targets only: one without a mask is absent, if others of its data set have masks of it, and else unknown
            (``interpreter.data.Labelled.known``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    targets: tuple[str, ...] = Field(min_length=1, max_length=8)
    colours: tuple[str, ...] = PALETTE
    overlapping: bool = False

    @field_validator("targets")
    @classmethod
    def _differ(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [target for target in dict.fromkeys(targets) if targets.count(target) > 1]:
            raise ValueError(f"expected targets that differ, found {', '.join(twice)} twice")
        return targets

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, background first."""
        return ("background", *self.targets)

    def takes(self, targets: Container[str]) -> bool:
        """Whether an image with masks of these targets is labelled: with every one, of overlapping ones with any."""
        return (any if self.overlapping else all)(target in targets for target in self.targets)

    def labels(self, masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
        """Masks bool (H, W) of the targets -> one uint8 (H, W) that holds them all.

        Class ids; or, of overlapping classes, bit i for target i. Both survive flips and resizing by
        nearest neighbour.
        """
        labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint8)
        for i, target in enumerate(self.targets):
            if target in masks:
                labels[masks[target]] = labels[masks[target]] | (1 << i) if self.overlapping else i + 1
        return labels

    def members(self, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The pixels of each target, bool (n - 1, H, W), of what ``labels`` made."""
        if self.overlapping:
            return np.stack([(labels >> i & 1).astype(np.bool_) for i in range(len(self.targets))])
        return np.stack([labels == i + 1 for i in range(len(self.targets))])
