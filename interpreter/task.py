"""What is segmented: which targets of a data set become which class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

# Bright and far from the reds and oranges of a fundus.
PALETTE = ("#1fe0ff", "#7cff6b", "#ff7bf2", "#ffffff", "#4d7cff", "#00b894", "#c9a7ff", "#e8ff4d")


class Task(BaseModel):
    """Mutually exclusive classes.

    Attributes:
        name: such as ``vessels``.
        targets: target i of the data set becomes class i + 1; later ones cover earlier ones (a cup
            lies inside its disc). Class 0 is what none of them covers.
        colours: of classes 1 to n - 1, for overlays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    targets: tuple[str, ...] = Field(min_length=1)
    colours: tuple[str, ...] = PALETTE

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes, background first."""
        return ("background", *self.targets)

    def labels(self, masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
        """Masks bool (H, W) of all targets -> class ids uint8 (H, W)."""
        labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint8)
        for class_id, target in enumerate(self.targets, 1):
            labels[masks[target]] = class_id
        return labels
