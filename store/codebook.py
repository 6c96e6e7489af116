"""The codebook of the compact encoding: a basis for each block, and the precision of each component.

c  channels of a block      k  components that are kept      D  distortion of a component, a variance

The channels of a feature map are correlated, so most of their variance lies in a few directions.
For Gaussian components of variances s_k^2, a given mean squared error takes the fewest bits with
reverse water-filling (Cover and Thomas, Elements of Information Theory, section 10.3.3): every
component with s_k^2 > D is kept with error D, the others are dropped. A uniform quantiser of step
sqrt(12 D) has that error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store.errors import DamagedEntry, MissingEntry, NonFiniteFeatures, SpecError
from store.manifest import require_intact
from store.spec import Block, TransformEncoding

DISTORTION = 0.003
"""Default share of a block's variance that may be lost: a signal-to-noise ratio of 25 dB."""
FINEST_DISTORTION = 0.03
"""The same for maps of full resolution, which have most of the bytes and the noise and matter least to a mask."""
RANGE = 8.0
"""A component is stored within +- RANGE standard deviations and clipped beyond."""


@dataclass(frozen=True)
class BlockCode:
    """How the maps of one block are encoded.

    Attributes:
        mean: float32 (c), mean of each channel.
        basis: float32 (c, k), orthonormal columns in order of decreasing variance.
        step: float32 (k), step width of each component's quantiser.
        bits: uint8 (k), bits of each component, 1 to 8.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]
    step: NDArray[np.float32]
    bits: NDArray[np.uint8]


_TYPES = {"mean": np.float32, "basis": np.float32, "step": np.float32, "bits": np.uint8}


@dataclass(frozen=True)
class Codebook:
    """A ``BlockCode`` for each block, by name, in the spec's order."""

    blocks: Mapping[str, BlockCode]

    @cached_property
    def digest(self) -> str:
        """sha256 of the names and contents of all arrays, 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, values in sorted(self.arrays().items()):
            digest.update(f"{name}{values.dtype.str}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    @property
    def encoding(self) -> TransformEncoding:
        """The encoding of a spec that uses this codebook."""
        bits = tuple(tuple(int(b) for b in code.bits) for code in self.blocks.values())
        return TransformEncoding(codebook=self.digest, bits=bits)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """{"<block>.<field>": array}, as written to a file or a store."""
        return {f"{block}.{field}": getattr(code, field) for block, code in self.blocks.items() for field in _TYPES}

    def save(self, path: Path) -> None:
        """Write the codebook to a safetensors file, creating its folder if needed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(save({name: np.ascontiguousarray(values) for name, values in self.arrays().items()}))

    def require_blocks(self, blocks: tuple[Block, ...]) -> None:
        """Raise SpecError unless this codebook was fitted to exactly these blocks."""
        mine = {name: len(code.mean) for name, code in self.blocks.items()}
        theirs = {block.name: block.channels for block in blocks}
        if mine != theirs:
            raise SpecError(
                f"the codebook {self.digest[:12]} codes blocks {mine}, the spec has {theirs} (name: channels); "
                "fit another with `extractor fit-codebook`"
            )


def codebook_of(arrays: Mapping[str, NDArray[np.generic]], blocks: list[str], where: str) -> Codebook:
    """A codebook from its named arrays; DamagedEntry if one is missing."""
    try:
        return Codebook({b: BlockCode(**{f: arrays[f"{b}.{f}"].astype(t) for f, t in _TYPES.items()}) for b in blocks})
    except KeyError as error:
        raise DamagedEntry(f"{where}: the codebook has no {error}") from error


def load_codebook(path: Path) -> Codebook:
    """A codebook from a safetensors file.

    Raises:
        MissingEntry: there is no such file.
        DamagedEntry: the file is not a codebook.
        DamagedModel: it lies in a model's folder and is not the file that the model's manifest names.
    """
    require_intact(path.parent, path.name)
    try:
        arrays = load(path.read_bytes())
    except OSError as error:
        raise MissingEntry(f"{path}: no codebook here; `extractor fit-codebook` makes one") from error
    except SafetensorError as error:
        raise DamagedEntry(f"{path}: no codebook, or a damaged one ({error})") from error
    names = sorted({name.rpartition(".")[0] for name in arrays}, key=_by_number)
    return codebook_of(arrays, names, str(path))


def _by_number(name: str) -> tuple[str, int]:
    stem, _, number = name.rpartition("_")
    return stem, int(number) if number.isdecimal() else 0


class Moments:
    """Mean and covariance of a block's channels, accumulated map by map.

    Args:
        c: number of channels.
    """

    def __init__(self, c: int) -> None:
        self.count = 0
        self._shift: NDArray[np.float32] | None = None  # mean of the first map; a large mean would swamp the covariance
        self._sum = np.zeros(c)
        self._products = np.zeros((c, c))

    def add(self, maps: NDArray[np.float32]) -> None:
        """Add maps, float (..., c, h, w); NonFiniteFeatures if they hold NaN or infinity."""
        c = len(self._sum)
        if not np.isfinite(maps).all():
            raise NonFiniteFeatures("a codebook cannot be fitted to NaN or infinity")
        for one in maps.reshape(-1, c, maps.shape[-2] * maps.shape[-1]):
            if self._shift is None:
                self._shift = one.mean(axis=1, keepdims=True)
            one = one - self._shift
            self.count += one.shape[1]
            self._sum += one.sum(axis=1, dtype=np.float64)
            self._products += (one @ one.T).astype(np.float64)

    def fit(self, distortion: float) -> BlockCode:
        """The code that loses at most a given share of the block's variance, on average.

        Args:
            distortion: that share, between 0 and 1, but not much below 0.0005, where eight bits no longer suffice;
                0.003 is a signal-to-noise ratio of 25 dB.
        """
        if not 0 < distortion < 1:
            raise SpecError(f"expected a distortion between 0 and 1, got {distortion}")
        if self._shift is None:
            raise SpecError("a codebook cannot be fitted to no maps at all")
        shifted = self._sum / self.count
        covariance = self._products / self.count - np.outer(shifted, shifted)
        mean = shifted + self._shift[:, 0]
        variances, basis = np.linalg.eigh(covariance)
        variances, basis = variances[::-1].clip(min=0), basis[:, ::-1]
        largest = basis[np.abs(basis).argmax(axis=0), range(len(mean))]
        basis = basis * np.where(largest < 0, -1, 1)  # eigh does not determine the signs
        level = water_level(variances, distortion * float(variances.sum()))
        kept = variances > level
        kept[0] = True  # a constant block still needs an array
        reach = RANGE * np.sqrt(variances[kept])
        step = np.maximum(np.sqrt(12 * level), reach / 127)
        step[step == 0] = 1.0
        bits = np.ceil(np.log2(2 * reach / step + 1)).clip(1, 8)
        return BlockCode(
            mean.astype(np.float32), basis[:, kept].astype(np.float32), step.astype(np.float32), bits.astype(np.uint8)
        )


def water_level(variances: NDArray[np.float64], distortion: float) -> float:
    """The D at which the sum of min(D, s_k^2) equals ``distortion``, by bisection; variances s_k^2 float (c)."""
    low, high = 0.0, float(variances.max())
    for _ in range(100):
        level = (low + high) / 2
        if np.minimum(level, variances).sum() > distortion:
            high = level
        else:
            low = level
    return low
