"""FeatureSpec: everything that decides the value of a stored number.

T  steps of the noise schedule
t  timesteps that are kept
R  side of the network's square
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from store.errors import SpecError, SpecMismatch

Trajectory = Literal["ddim", "anchored", "stochastic"]
Precision = Literal["float32", "bfloat16", "float16"]
ElementType = Literal["float32", "float16"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Frozen):
    """One decoder block: its name and the shape (c, h, w) of its feature map at resolution R."""

    name: str
    channels: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)

    @property
    def values(self) -> int:
        """Numbers in one feature map."""
        return self.channels * self.height * self.width


class Clahe(_Frozen):
    """Contrast-limited adaptive histogram equalisation of the lightness L of CIELAB."""

    clip_limit: float = Field(default=2.0, gt=0)
    tiles: int = Field(default=8, gt=0, description="tiles along each side")


class Preprocessing(_Frozen):
    """How a photograph becomes x0; ``version`` changes whenever the arithmetic does."""

    name: Literal["fundus"] = "fundus"
    version: int = 1
    crop: Literal["fov", "none"] = Field(default="fov", description="square around the field of view, or all of it")
    interpolation: Literal["area", "lanczos"] = "area"
    mask_outside: bool = Field(default=True, description="black outside the field of view")
    clahe: Clahe | None = Clahe()


class Encoding(_Frozen):
    """How feature maps are written: the element type of the stored arrays."""

    kind: ElementType = "float16"

    @property
    def bytes_per_value(self) -> int:
        return {"float32": 4, "float16": 2}[self.kind]


class FeatureSpec(_Frozen):
    """What was computed. Two stores with the same digest hold the same numbers.

    Attributes:
        backbone: sha256 of the backbone's weights and configuration.
        schedule: name and length of the noise schedule, such as ``cosine-4000``.
        trajectory: ``ddim`` (Eq. 6 over the grid), ``anchored`` (clean x0 at every timestep) or
            ``stochastic`` (q(x_t | x0) with seeded noise).
        grid: every timestep the network is run at; strictly increasing.
        timesteps: the timesteps whose features are kept; a subset of ``grid``.
        blocks: decoder blocks in the order of the decoder.
        resolution: R.
        clip: x0_hat is clipped to [-1, 1] at every step.
        precision: number format of the network's arithmetic; state and schedule are float32 and 64.
        seed: of the noise; ``stochastic`` only.
    """

    backbone: str = Field(pattern=r"^[0-9a-f]{64}$")
    schedule: str = Field(pattern=r"^[a-z]+-[0-9]+$")
    trajectory: Trajectory = "ddim"
    grid: tuple[int, ...]
    timesteps: tuple[int, ...]
    blocks: tuple[Block, ...] = Field(min_length=1)
    resolution: int = Field(gt=0)
    clip: bool = False
    precision: Precision = "float32"
    preprocessing: Preprocessing = Preprocessing()
    encoding: Encoding = Encoding()
    seed: int | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        steps = int(self.schedule.rsplit("-", 1)[1])
        for name in ("grid", "timesteps"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise ValueError(f"expected strictly increasing {name}, got {values}")
            if values[0] < 0 or values[-1] >= steps:
                raise ValueError(f"expected {name} within 0..{steps - 1} of {self.schedule}, got {values}")
        if missing := sorted(set(self.timesteps) - set(self.grid)):
            raise ValueError(f"timesteps {missing} are kept but not in the grid {self.grid}; add them to the grid")
        if self.grid[-1] != self.timesteps[-1]:
            raise ValueError(
                f"the grid {self.grid} goes on behind {self.timesteps[-1]}, the last timestep that is kept"
            )
        if self.trajectory != "ddim" and (self.grid != self.timesteps or self.clip):
            raise ValueError(f"a grid of its own and clipping belong to the ddim trajectory, not to {self.trajectory}")
        names = [block.name for block in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError(f"expected every block once, got {names}")
        if (self.trajectory == "stochastic") != (self.seed is not None):
            raise ValueError("expected a seed for the stochastic trajectory and for no other")
        return self

    @property
    def canonical_json(self) -> str:
        """The one spelling that is hashed: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json.encode()).hexdigest()

    def block(self, name: str) -> Block:
        """The block of that name; SpecError if the spec has none."""
        for block in self.blocks:
            if block.name == name:
                return block
        raise SpecError(f"no block {name!r} in this spec; it has {', '.join(b.name for b in self.blocks)}")

    def entry_bytes(self) -> int:
        """Bytes of one image's features before the lossless codec."""
        values = sum(block.values for block in self.blocks)
        return values * len(self.timesteps) * self.encoding.bytes_per_value

    def difference(self, other: FeatureSpec) -> str:
        """One line for each field that differs; empty if none does."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return "\n".join(
            f"  {field}: {mine[field]!r} here, {theirs[field]!r} there"
            for field in mine
            if mine[field] != theirs[field]
        )

    def require(self, other: FeatureSpec) -> None:
        """Raise SpecMismatch, with the difference spelled out, unless ``other`` is this spec."""
        if other.digest != self.digest:
            raise SpecMismatch(
                f"features of spec {self.digest[:12]} were expected, found {other.digest[:12]}; they differ in\n"
                f"{self.difference(other)}"
            )


def parse_spec(text: str | bytes) -> FeatureSpec:
    """A FeatureSpec from its JSON; SpecError names the field at fault."""
    try:
        return FeatureSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        raise SpecError(f"not a feature spec: {where}: {first['msg']}") from error
