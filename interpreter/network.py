"""An interpreter: a head that reads the features of one FeatureSpec, and what it needs to decode them.

b  batch    t  timestep    n  scores for each pixel    R  network's square
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from interpreter.config import InterpreterConfig
from interpreter.errors import ConfigurationError
from interpreter.heads import HEADS
from interpreter.scan import Method, implementation
from interpreter.standardising import Moments, moments_of
from interpreter.vss import SS2D
from store.codebook import Codebook
from store.codecs import codec_for
from store.encoded import Encoded
from store.pixels import holds_pixels
from store.spec import FeatureSpec


class Interpreter(nn.Module):
    """The network for one FeatureSpec.

    Args:
        spec: spec of the features it reads; decides levels and widths.
        config: its configuration, which names the head.
        codebook: needed to decode features in the compact encoding.

    Raises:
        ConfigurationError: head and features do not fit together, or photographs are to be standardised.

    Attributes:
        temperature: logits are divided by it before they become probabilities; fitted on source validation.
    """

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig, codebook: Codebook | None = None) -> None:
        super().__init__()
        self.spec, self.config, self.codebook = spec, config, codebook
        self.codec = codec_for(spec, codebook)
        if config.standardise and holds_pixels(spec):
            raise ConfigurationError("only features are standardised; photographs are read as they are, in [-1, 1]")
        self.temperature = 1.0
        self.head = HEADS[config.head](spec, config)

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def voters(self) -> tuple[str, ...]:
        """Names of the voters: the timesteps, the models of an ensemble, or one that reads all timesteps."""
        return self.head.voters(self.spec.timesteps)

    def with_timesteps(self, timesteps: Sequence[int]) -> Interpreter:
        """The same interpreter, sharing its weights, reading only some timesteps; itself if they are all of its own.

        Raises:
            ConfigurationError: its head reads all timesteps at once. SpecError: it does not read one of them.
        """
        if tuple(timesteps) == self.spec.timesteps:
            return self
        if self.head.all_timesteps:
            raise ConfigurationError(f"the head {self.config.head!r} reads all its timesteps at once, not some of them")
        reader = copy.copy(self)
        reader.spec = self.spec.with_timesteps(tuple(timesteps))
        return reader

    def require(self, spec: FeatureSpec) -> None:
        """Raise SpecMismatch unless ``spec`` is that of its features, at its own resolution or another one."""
        self.spec.with_resolution(spec.resolution).require(spec)

    @property
    def scan(self) -> str | None:
        """Implementation of the selective scan on the current device; None for a network without VSS blocks."""
        return next((implementation(one.method, self.device) for one in self.modules() if isinstance(one, SS2D)), None)

    def use_scan(self, method: Method) -> None:
        """Have all VSS blocks use one implementation of the selective scan; ``auto`` chooses by the device."""
        for module in self.modules():
            if isinstance(module, SS2D):
                module.method = method

    def moments(self, maps: Mapping[str, Encoded], fov: NDArray[np.bool_]) -> dict[str, Moments] | None:
        """The moments that each block is standardised by; None if maps are read as they are.

        Args:
            maps: whole maps {block: Encoded (b, ..., k, h, w)}.
            fov: bool (b, R, R).
        """
        if not self.config.standardise:
            return None
        return {name: moments_of(name, stored, self.codec, fov, self.device) for name, stored in maps.items()}

    def decoded(self, maps: Mapping[str, Encoded], moments: Mapping[str, Moments] | None) -> dict[str, torch.Tensor]:
        """Decode maps for the head, on this network's device, and standardise them.

        Args:
            maps: {block: Encoded (b, ..., k, h, w)}, whole or windows.
            moments: moments of the whole maps; None leaves maps as they are decoded.
        """
        features = {name: self.codec.decode(name, m, self.device) for name, m in maps.items()}
        if moments is None:
            return features
        return {name: moments[name].standardised(m) for name, m in features.items()}

    def votes(self, maps: Mapping[str, Encoded], fov: NDArray[np.bool_]) -> Iterator[torch.Tensor]:
        """Logits (1, n, R, R) of each voter.

        Args:
            maps: {block: Encoded (t, k, h, w)} of one photograph at the spec's timesteps.
            fov: bool (R, R).
        """

        def read(i: int) -> dict[str, torch.Tensor]:
            of_one = {name: m[i : i + 1] for name, m in maps.items()}
            return self.decoded(of_one, self.moments(of_one, fov[None]))

        return self.head.votes(read, self.spec.timesteps)

    def forward(self, maps: Mapping[str, torch.Tensor], t: torch.Tensor) -> torch.Tensor:
        """Class scores of a head that reads one timestep at a time.

        Args:
            maps: {block: float (b, c, h, w)} of one timestep for each image.
            t: (b,), the timestep of each image.

        Returns:
            Logits, float32 (b, n, R, R).
        """
        logits: torch.Tensor = self.head(maps, t)
        return logits
