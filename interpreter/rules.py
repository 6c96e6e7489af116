"""How the ground truth is made and which pixels count: the choices in which editions of a protocol differ."""

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
"""The filter that ``Image.resize`` uses for greyscale masks if none is named (Pillow 7 and later)."""


Size = Literal["network", "native"] | PositiveInt


class Rules(BaseModel):
    """Choices that change scores without changing a prediction.

    Attributes:
        masks: how native masks are brought to the network's size: by ``nearest`` neighbour, or by ``pillow``'s
            resize without naming a filter, then != 0. In greyscale masks, Pillow's bicubic kernel makes every
            pixel that it touches foreground, 1.6 times as many for thin vessels; masks of one bit or with a
            palette, such as CHASE_DB1's, it resizes by nearest neighbour.
        region: which pixels count, in training too: those inside the field of view (``fov``), or all (``image``).
        size: where masks are compared: in the pixels of the ``network``'s square, in the photograph's own (``native``),
            or in the network's crop resized to a square of this side, for comparing networks of several resolutions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    masks: Literal["nearest", "pillow"] = "nearest"
    region: Literal["fov", "image"] = "fov"
    size: Size = "network"

    def square_truth(
        self, geometry: Geometry, truth: NDArray[np.uint8], task: Task, sample: Sample
    ) -> NDArray[np.uint8]:
        """Bring a sample's ground truth, as made by ``Task.labels``, to the network's size: uint8 (H, W) -> (R, R)."""
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
        """The pixels that count, given the field of view, at any size."""
        return fov if self.region == "fov" else np.ones_like(fov)


STRICT = Rules()


def pillow_resized(mask: NDArray[np.bool_], side: int, *, indexed: bool = False) -> NDArray[np.bool_]:
    """Resize a mask as Pillow does by default, bool (H, W) -> (side, side): bicubic, or nearest if indexed, != 0."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = grey.resize((side, side), Image.Resampling.NEAREST if indexed else BICUBIC)
    return np.asarray(np.asarray(resized) != 0, dtype=np.bool_)
