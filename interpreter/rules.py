"""How the truth is made and where it counts: what editions of a protocol differ in."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, PositiveInt

from interpreter.task import Task
from store.collection import Sample
from store.geometry import Geometry, Interpolation

BICUBIC = Image.Resampling.BICUBIC
"""What ``Image.resize`` takes for greyscale masks where no filter is named (Pillow 7 and later)."""


Size = Literal["network", "native"] | PositiveInt


class Rules(BaseModel):
    """Choices that change scores without changing a prediction.

    Attributes:
        masks: native masks come to the network's size by ``nearest`` neighbour, or by ``pillow``'s resize
            without a filter named, then != 0. Of greyscale masks every pixel that the bicubic kernel
            touches becomes foreground, 1.6 times as many for thin vessels; masks of one bit or with a
            palette, CHASE_DB1's for one, are resized by nearest neighbour.
        region: pixels inside the field of view count (``fov``), or all (``image``); in training too.
        size: the pixels that are compared are the ``network``'s, the photograph's own (``native``), or those of the
            network's crop in a square of so many, where networks of several resolutions are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    masks: Literal["nearest", "pillow"] = "nearest"
    region: Literal["fov", "image"] = "fov"
    size: Size = "network"

    def square_truth(
        self, geometry: Geometry, truth: NDArray[np.uint8], task: Task, sample: Sample
    ) -> NDArray[np.uint8]:
        """What ``Task.labels`` made of a sample's masks at native size, uint8 (H, W) -> (R, R)."""
        if self.masks == "nearest":
            return geometry.apply(truth, Interpolation.NEAREST).astype(np.uint8)
        return task.labels(
            {
                target: pillow_resized(
                    geometry.crop(mask).astype(np.bool_), geometry.resolution, indexed=target in sample.indexed
                )
                for target, mask in zip(task.targets, task.members(truth), strict=True)
            }
        )

    def counted(self, fov: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The pixels that count, of a field of view of any size."""
        return fov if self.region == "fov" else np.ones_like(fov)


STRICT = Rules()


def pillow_resized(mask: NDArray[np.bool_], side: int, *, indexed: bool = False) -> NDArray[np.bool_]:
    """bool (H, W) -> (side, side): bicubic on 0 and 255, nearest neighbour if indexed, then != 0."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = grey.resize((side, side), Image.Resampling.NEAREST if indexed else BICUBIC)
    return np.asarray(np.asarray(resized) != 0, dtype=np.bool_)
