"""Codecs, which turn feature maps into stored numbers and back, on whichever device the maps are.

c  channels of a block      k  stored planes: channels, or components      h, w  size of its map

The leading axes, shown as "...", are any number of images and timesteps.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from store.affine import channel_ranges, rounded
from store.codebook import BlockCode, Codebook
from store.encoded import Encoded
from store.errors import NonFiniteFeatures, SpecError
from store.spec import AffineEncoding, FeatureSpec, FloatEncoding, TransformEncoding
from store.transfer import ToHost, at_once


class Codec(Protocol):
    """Encodes and decodes the feature maps of one spec."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type of the stored arrays."""

    def encode(self, block: str, maps: torch.Tensor, to_host: ToHost = at_once) -> Encoded:
        """Encode float maps (..., c, h, w) on their device and copy the result to the host.

        Args:
            to_host: copies a tensor to the host; the arrays hold its numbers once its copies are finished.

        Raises:
            NonFiniteFeatures: the maps hold NaN, infinity, or numbers beyond the range of float16 or int8's steps.
                ``compact`` clips numbers beyond its codebook's range.
        """

    def decode(self, block: str, encoded: Encoded, device: torch.device | str = "cpu") -> torch.Tensor:
        """Copy stored numbers to a device and decode them there to float32 maps (..., c, h, w)."""


class FloatCodec:
    """float32 and float16: numbers rounded to the element type."""

    def __init__(self, encoding: FloatEncoding) -> None:
        self._element: torch.dtype = getattr(torch, encoding.kind)
        self.dtype = np.dtype(encoding.kind)

    def encode(self, block: str, maps: torch.Tensor, to_host: ToHost = at_once) -> Encoded:
        encoded = maps.to(self._element)
        if not is_finite(encoded):
            raise NonFiniteFeatures(
                f"{block}: features hold NaN, infinity or numbers beyond {self.dtype} "
                f"(largest {maps.abs().max().item():.3g}); encode as float32"
            )
        return Encoded(to_host(encoded))

    def decode(self, block: str, encoded: Encoded, device: torch.device | str = "cpu") -> torch.Tensor:  # noqa: ARG002
        return _to_device(encoded.values, device).float()


class AffineCodec:
    """int8: value = scale * stored + offset, so that -128 and 127 stand for a channel's smallest and largest number."""

    dtype = np.dtype(np.int8)

    def encode(self, block: str, maps: torch.Tensor, to_host: ToHost = at_once) -> Encoded:
        maps = maps.float()
        smallest, largest = channel_ranges(maps)
        scale = (largest - smallest) / 255  # 0 for a constant channel, whose value is then the offset
        _finite(block, torch.stack([smallest, largest, scale]))
        offset = smallest + 128 * scale
        stored = rounded(maps, offset, torch.where(scale > 0, scale, torch.ones_like(scale)))
        return Encoded(to_host(stored), to_host(scale), to_host(offset))

    def decode(self, block: str, encoded: Encoded, device: torch.device | str = "cpu") -> torch.Tensor:
        if encoded.scale is None or encoded.offset is None:
            raise SpecError(f"{block}: int8 features without their scale and offset")
        scale, offset = (_to_device(a, device)[..., None, None] for a in (encoded.scale, encoded.offset))
        return _to_device(encoded.values, device).float().mul_(scale).add_(offset)


class TransformCodec:
    """compact: quantised components; steps 0, -1, 1, -2, ... are stored as 0, 1, 2, 3, ... (zigzag).

    Small numbers thus have empty high bits, which the store's bit shuffle gathers and its entropy
    coder removes, while the stored array stays plain, one byte for each number.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, codebook: Codebook) -> None:
        self._codes = codebook.blocks
        self._transforms: dict[tuple[str, torch.device], _Transform] = {}

    def _transform(self, block: str, device: torch.device | str) -> _Transform:
        at = block, torch.device(device)
        if at not in self._transforms:  # copied to a device once: each such copy waits for the device
            self._transforms[at] = _Transform.of(self._codes[block], at[1])
        return self._transforms[at]

    def encode(self, block: str, maps: torch.Tensor, to_host: ToHost = at_once) -> Encoded:
        to_steps, at_zero, limit, _, _ = self._transform(block, maps.device)
        components = _along(to_steps, _finite(block, maps), at_zero)
        steps = components.round_().clamp_(-limit - 1, limit).to(torch.int16)
        return Encoded(to_host(((steps << 1) ^ (steps >> 15)).to(torch.uint8)))

    def decode(self, block: str, encoded: Encoded, device: torch.device | str = "cpu") -> torch.Tensor:
        _, _, _, from_steps, mean = self._transform(block, device)
        stored = _to_device(encoded.values, device)
        steps = ((stored >> 1) ^ (stored & 1).neg_()).view(torch.int8).float()
        return _along(from_steps, steps, mean)


class _Transform(NamedTuple):
    """The constants of one block's code, float32 on one device.

    Attributes:
        to_steps: (k, c), channels to components in steps of the quantiser.
        at_zero: (k), the components of a map of zeros.
        limit: (k, 1, 1), largest step.
        from_steps: (c, k), steps to channels.
        mean: (c), mean of each channel.
    """

    to_steps: torch.Tensor
    at_zero: torch.Tensor
    limit: torch.Tensor
    from_steps: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def of(cls, code: BlockCode, device: torch.device) -> _Transform:
        mean, basis, step, limit = (
            torch.from_numpy(np.ascontiguousarray(a)).to(device)
            for a in (code.mean, code.basis, code.step, _limit(code.bits))
        )
        return cls((basis / step).T, -(mean @ (basis / step)), limit[:, None, None], basis * step, mean)


def codec_for(spec: FeatureSpec, codebook: Codebook | None = None) -> Codec:
    """The codec of a spec's encoding.

    Raises:
        SpecError: the spec is compact, and ``codebook`` is not its codebook.
    """
    match spec.encoding:
        case FloatEncoding() as encoding:
            return FloatCodec(encoding)
        case AffineEncoding():
            return AffineCodec()
        case TransformEncoding(codebook=digest):
            if codebook is None or codebook.digest != digest:
                found = "none" if codebook is None else codebook.digest[:12]
                raise SpecError(f"the spec is encoded with the codebook {digest[:12]}, got {found}")
            codebook.require_blocks(spec.blocks)
            return TransformCodec(codebook)


def _along(matrix: torch.Tensor, maps: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Apply matrix (m, c) to the channels of maps (..., c, h, w) and add offset (m): (..., m, h, w)."""
    *leading, c, h, w = maps.shape
    flat = maps.reshape(-1, c, h * w)
    mapped = torch.baddbmm(offset[None, :, None], matrix.expand(len(flat), -1, -1), flat)
    return mapped.reshape(*leading, len(matrix), h, w)


def _limit(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (2.0 ** (bits.astype(np.float32) - 1) - 1).astype(np.float32)


def _finite(block: str, maps: torch.Tensor) -> torch.Tensor:
    if not is_finite(maps):
        raise NonFiniteFeatures(f"{block}: features hold NaN or infinity")
    return maps.float()


def is_finite(numbers: torch.Tensor) -> bool:
    """Return whether all numbers are finite. A sum is the fastest test; since it may overflow, a failure is checked."""
    return bool(torch.isfinite(numbers.sum(dtype=torch.float32))) or bool(torch.isfinite(numbers).all())


def _to_device(array: NDArray[Any], device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W"))).to(device)
