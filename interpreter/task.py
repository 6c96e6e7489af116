"""What is segmented: which target of a data set becomes which class."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

# Bright and far from the reds and oranges of a fundus.
PALETTE = ("#1fe0ff", "#7cff6b", "#ff7bf2", "#ffffff", "#4d7cff", "#00b894", "#c9a7ff", "#e8ff4d")


class Task(BaseModel):
    """A segmentation task, whose classes exclude each other or may overlap.

    Attributes:
        name: name of the task, such as ``vessels``.
        targets: target i of the data set becomes class i + 1; later ones cover earlier ones (a cup
            lies inside its disc). Class 0 is whatever none of them covers.
        colours: colours of classes 1, 2, ...; repeated if they are too few (``palette``).
        overlapping: whether a pixel may belong to several classes (lesions). An image then needs a mask of only one
            target: a target without a mask is absent if other images of its data set have masks of it, and unknown
            otherwise (``interpreter.data.LabelledImage.known``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    targets: tuple[str, ...] = Field(min_length=1, max_length=8)
    colours: tuple[str, ...] = Field(default=PALETTE, min_length=1)
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

    @property
    def palette(self) -> tuple[str, ...]:
        """One colour for each class but the background."""
        return tuple(islice(cycle(self.colours), len(self.targets)))

    def takes(self, targets: Container[str]) -> bool:
        """Return whether an image with these targets is labelled: with all of the task's, or any if they overlap."""
        return (any if self.overlapping else all)(target in targets for target in self.targets)

    def labels(self, masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
        """Combine masks bool (H, W) of the targets into one uint8 (H, W).

        Its pixels are class ids or, if classes overlap, have bit i set for target i. Both survive flips and
        nearest-neighbour resizing.
        """
        labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint8)
        for i, target in enumerate(self.targets):
            if target in masks:
                labels[masks[target]] = labels[masks[target]] | (1 << i) if self.overlapping else i + 1
        return labels

    def members(self, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """The pixels of each target, bool (n - 1, H, W), in an array made by ``labels``."""
        if self.overlapping:
            return np.stack([(labels >> i & 1).astype(np.bool_) for i in range(len(self.targets))])
        return np.stack([labels == i + 1 for i in range(len(self.targets))])
