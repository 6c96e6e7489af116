"""FeatureSpec: everything that determines the value of a stored number.

T  steps of the noise schedule
t  timesteps that are kept
R  side of the network's square
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from store.errors import SpecError, SpecMismatch
from store.validation import first_problem

Trajectory = Literal["ddim", "anchored", "stochastic"]
Precision = Literal["float32", "bfloat16", "float16"]
EncodingName = Literal["float32", "float16", "int8", "compact"]
PreprocessingName = Literal["fundus", "red-free", "unequalised", "squeeze", "squeeze-red-free"]


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
    """How a photograph becomes x0; ``version`` changes whenever the arithmetic does.

    The fields below apply to ``fundus`` and to ``red-free``, which puts the green channel in place of all three.
    ``squeeze`` fixes their values; see the function of that name.
    """

    name: Literal["fundus", "red-free", "squeeze"] = "fundus"
    version: int = 1
    crop: Literal["fov", "none"] = Field(default="fov", description="square around the field of view, or all of it")
    interpolation: Literal["area", "lanczos"] = "area"
    mask_outside: bool = Field(default=True, description="black outside the field of view")
    clahe: Clahe | None = Clahe()

    @model_validator(mode="after")
    def _a_squeeze_is_one_thing(self) -> Self:
        if self.name == "squeeze" and (self.crop, self.interpolation, self.mask_outside, self.clahe) != (
            "none",
            "lanczos",
            False,
            None,
        ):
            raise ValueError("squeeze takes the whole photograph, resized by lanczos, unmasked and without CLAHE")
        return self


def squeeze() -> Preprocessing:
    """The whole photograph resized to the square by Pillow's LANCZOS and nothing else, as AADG prepares its images."""
    return Preprocessing(name="squeeze", crop="none", interpolation="lanczos", mask_outside=False, clahe=None)


def without_clahe() -> Preprocessing:
    """Like ``fundus``, without CLAHE: for backbones that were pre-trained on such images."""
    return Preprocessing(clahe=None)


def red_free() -> Preprocessing:
    """Like ``fundus``, without colour, in which cameras differ most and which an angiogram never had."""
    return Preprocessing(name="red-free")


def squeeze_red_free() -> Preprocessing:
    """Like ``red-free``, of the whole photograph resized to the square: for protocols that do so."""
    return Preprocessing(name="red-free", crop="none")


PREPROCESSINGS: dict[PreprocessingName, Callable[[], Preprocessing]] = {
    "fundus": Preprocessing,
    "red-free": red_free,
    "unequalised": without_clahe,
    "squeeze": squeeze,
    "squeeze-red-free": squeeze_red_free,
}


def preprocessing_name(preprocessing: Preprocessing) -> str | None:
    """The name by which the commands know a preprocessing; None if it has none."""
    return next((name for name, make in PREPROCESSINGS.items() if make() == preprocessing), None)


class FloatEncoding(_Frozen):
    """Every number as it is, only rounded to the element type."""

    kind: Literal["float32", "float16"] = "float16"


class AffineEncoding(_Frozen):
    """8 bits per number, with a scale and an offset for each image, timestep and channel."""

    kind: Literal["int8"] = "int8"


class TransformEncoding(_Frozen):
    """Principal components of each block, quantised so that the distortion is spread evenly over them.

    Attributes:
        codebook: digest of the ``Codebook`` that holds bases, steps and bits.
        bits: for each block of the spec, the bits of each kept component; components without bits
            are not stored.
    """

    kind: Literal["compact"] = "compact"
    codebook: str = Field(pattern=r"^[0-9a-f]{64}$")
    bits: tuple[tuple[Annotated[int, Field(ge=1, le=8)], ...], ...]


Encoding = Annotated[FloatEncoding | AffineEncoding | TransformEncoding, Field(discriminator="kind")]


def require_increasing(name: str, values: Sequence[int]) -> None:
    """Raise ValueError unless ``values`` are strictly increasing and not empty."""
    if not values or list(values) != sorted(set(values)):
        raise ValueError(f"expected strictly increasing {name}, got {values}")


class FeatureSpec(_Frozen):
    """What was computed. Entries stored under the same digest hold the same numbers, in whichever store.

    Attributes:
        backbone: sha256 of the backbone's weights and configuration.
        schedule: name and length of the noise schedule, such as ``cosine-4000``.
        trajectory: ``ddim`` (Eq. 6 over the grid), ``anchored`` (clean x0 at every timestep) or
            ``stochastic`` (q(x_t | x0) with seeded noise).
        grid: every timestep at which the network is run; strictly increasing.
        timesteps: the timesteps whose features are kept; a subset of ``grid``.
        blocks: decoder blocks in the order of the decoder.
        resolution: R.
        clip: whether x0_hat is clipped to [-1, 1] at every step.
        precision: number format of the network's arithmetic; the state is float32, the schedule float64.
        seed: seed of the noise; ``stochastic`` only.
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
    encoding: Encoding = FloatEncoding()
    seed: int | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        steps = int(self.schedule.rsplit("-", 1)[1])
        for name in ("timesteps", "grid"):
            values = getattr(self, name)
            require_increasing(name, values)
            if values[0] < 0 or values[-1] >= steps:
                raise ValueError(f"expected {name} within 0..{steps - 1} of {self.schedule}, got {values}")
        if missing := sorted(set(self.timesteps) - set(self.grid)):
            raise ValueError(f"timesteps {missing} are kept but not in the grid {self.grid}; add them to the grid")
        if self.grid[-1] != self.timesteps[-1]:
            raise ValueError(f"the grid {self.grid} goes on after {self.timesteps[-1]}, the last timestep that is kept")
        if self.trajectory != "ddim" and (self.grid != self.timesteps or self.clip):
            raise ValueError(f"a separate grid and clipping belong to the ddim trajectory, not to {self.trajectory}")
        if isinstance(self.encoding, TransformEncoding):
            if len(self.encoding.bits) != len(self.blocks):
                raise ValueError(
                    f"the codebook was made for {len(self.encoding.bits)} blocks, and these are {len(self.blocks)}; "
                    "make one for them with extractor fit-codebook, or choose another encoding"
                )
            for block, bits in zip(self.blocks, self.encoding.bits, strict=True):
                if not 0 < len(bits) <= block.channels:
                    raise ValueError(f"{block.name}: expected 1 to {block.channels} components, got {len(bits)}")
        names = [block.name for block in self.blocks]
        if len(set(names)) != len(names):
            raise ValueError(f"expected every block once, got {names}")
        if (self.trajectory == "stochastic") != (self.seed is not None):
            raise ValueError("expected a seed for the stochastic trajectory and for no other")
        return self

    @property
    def canonical_json(self) -> str:
        """The canonical JSON, of which the digest is taken: sorted keys, no spaces."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json.encode()).hexdigest()

    @property
    def summary(self) -> str:
        """A short text for people: the first digits of the digest, and ``description``."""
        return f"{self.digest[:12]} ({self.description})"

    @property
    def description(self) -> str:
        """In words, the fields in which specs usually differ; blocks and backbone are not among them."""
        walk = f"t = {' '.join(map(str, self.timesteps))}"
        walk += "" if self.grid == self.timesteps else f" over the grid {' '.join(map(str, self.grid))}"
        photographs = f"{preprocessing_name(self.preprocessing) or 'another preprocessing'} at {self.resolution} px"
        more = ["clipped"] if self.clip else []
        more += [] if self.precision == "float32" else [self.precision]
        more += [] if self.seed is None else [f"seed {self.seed}"]
        return ", ".join([self.trajectory, photographs, walk, self.encoding.kind, *more])

    def block(self, name: str) -> Block:
        """The block of that name; SpecError if the spec has none."""
        for block in self.blocks:
            if block.name == name:
                return block
        raise SpecError(f"no block {name!r} in this spec; it has {', '.join(b.name for b in self.blocks)}")

    def stored_shape(self, block: str) -> tuple[int, int, int, int]:
        """Shape (t, k, h, w) of a block's stored array; k is the number of channels, or of kept components."""
        one = self.block(block)
        planes = one.channels
        if isinstance(self.encoding, TransformEncoding):
            planes = len(self.encoding.bits[self.blocks.index(one)])
        return len(self.timesteps), planes, one.height, one.width

    def block_bytes(self) -> dict[str, int]:
        """{block: bytes of one image's features before the lossless codec}."""
        sizes = {}
        for i, block in enumerate(self.blocks):
            match self.encoding:
                case TransformEncoding(bits=bits):
                    bits_per_pixel = sum(bits[i])
                case AffineEncoding():
                    bits_per_pixel = 8 * block.channels
                case FloatEncoding(kind=kind):
                    bits_per_pixel = {"float32": 32, "float16": 16}[kind] * block.channels
            sizes[block.name] = len(self.timesteps) * block.height * block.width * bits_per_pixel // 8
        return sizes

    def entry_bytes(self) -> int:
        """Bytes of one image's features before the lossless codec."""
        return sum(self.block_bytes().values())

    def float32_bytes(self) -> int:
        """Bytes of one image's features as float32 arrays, with which every encoding is compared."""
        return 4 * len(self.timesteps) * sum(block.values for block in self.blocks)

    def with_timesteps(self, timesteps: Sequence[int]) -> FeatureSpec:
        """The spec of these features at some of their timesteps, in increasing order; a ddim grid ends at the last."""
        steps = tuple(timesteps)
        grid = tuple(t for t in self.grid if t <= steps[-1]) if self.trajectory == "ddim" else steps
        return self.model_copy(update={"timesteps": steps, "grid": grid})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002  # as pydantic has it
        """A validated copy with a digest of its own; pydantic's copy would keep the cached digest of the original."""
        return self.model_validate(self.model_dump() | dict(update or {}))

    def with_resolution(self, resolution: int | None) -> FeatureSpec:
        """The same spec for photographs in a square of another side, with every map in proportion.

        Args:
            resolution: side of the square; None keeps that of this spec.

        Raises:
            SpecError: the sides of some map would not be whole numbers of pixels.
        """
        if resolution is None or resolution == self.resolution:
            return self
        if any(side * resolution % self.resolution for block in self.blocks for side in (block.height, block.width)):
            raise SpecError(
                f"maps of a square of {resolution} pixels are not in proportion to those of {self.resolution}"
            )
        blocks = tuple(
            block.model_copy(
                update={
                    "height": block.height * resolution // self.resolution,
                    "width": block.width * resolution // self.resolution,
                }
            )
            for block in self.blocks
        )
        return self.model_copy(update={"resolution": resolution, "blocks": blocks})

    def with_encoding(self, encoding: Encoding) -> FeatureSpec:
        """The same features in another encoding."""
        return self.model_copy(update={"encoding": encoding})

    def difference(self, other: FeatureSpec) -> str:
        """One line for each field that differs; empty if none does.

        Blocks whose maps differ only in proportion to the resolution are not listed in addition to it.
        """
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        fields = [field for field in mine if mine[field] != theirs[field]]
        if "resolution" in fields and _in_proportion(self, other):
            fields.remove("blocks")
        return "\n".join(f"  {f}: {_shown(mine[f])} expected, {_shown(theirs[f])} found" for f in fields)

    def require(self, other: FeatureSpec) -> None:
        """Raise SpecMismatch, which spells out the differences, unless ``other`` is this spec."""
        if other.digest != self.digest:
            raise SpecMismatch(
                f"expected features of spec {self.digest[:12]}, found {other.digest[:12]}; they differ in\n"
                f"{self.difference(other)}"
            )


def _in_proportion(spec: FeatureSpec, other: FeatureSpec) -> bool:
    """Return whether the maps of two specs differ at most in proportion to their resolutions."""
    try:
        return spec.with_resolution(other.resolution).blocks == other.blocks
    except SpecError:
        return False


def _shown(value: object) -> str:
    """A field of a spec as text; an encoding with a codebook is shown without the bits of each component."""
    if isinstance(value, dict) and "codebook" in value:
        return f"{value['kind']} with the codebook {value['codebook'][:12]}"
    return repr(value)


def parse_spec(text: str | bytes) -> FeatureSpec:
    """A FeatureSpec from its JSON; SpecError names the field at fault."""
    try:
        return FeatureSpec.model_validate_json(text)
    except ValidationError as error:
        raise SpecError(f"not a feature spec: {first_problem(error)}") from error
