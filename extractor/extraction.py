"""From the bytes of a photograph to its features: decode, preprocess, invert, collect.

Batch runs, training data and the service all take this one path.

t  timesteps kept      c, h, w  channels and size of a block's map      R  side of the network's square
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from extractor.backbone import Backbone
from extractor.errors import BackboneError, DeviceFull, NonFiniteActivation
from extractor.images import MAX_PIXELS, decode_image, image_id
from extractor.inversion import Step, anchor, diffuse, invert, residual
from extractor.photometric import camera_rendering
from extractor.preprocess import Framed, NetworkInput, frame
from extractor.stages import Stages
from store.codebook import Codebook
from store.codecs import codec_for
from store.encoded import Encoded, stacked
from store.features import Features, Key
from store.spec import FeatureSpec
from store.transfer import Copies, at_once
from store.views import IDENTITY, Rendering, fixed_rendering, flipped_axes, photometric_seed


@dataclass(frozen=True)
class Prepared:
    """A view of a photograph, ready for the network."""

    key: Key
    input: NetworkInput

    def flipped(self, view: str) -> Prepared:
        """This upright view as the view ``view`` shows it: flipped for those of ``store.views.FLIPS``."""
        axes, shown = flipped_axes(view), self.input
        fov = np.ascontiguousarray(np.flip(shown.fov, axes))
        return Prepared(Key(self.key.image_id, view), NetworkInput(shown.x0.flip(axes), fov, shown.geometry))


@dataclass(frozen=True)
class UnstackedFeatures:
    """Features of one photograph, with every timestep still in the array that it was copied to from the device.

    Attributes:
        steps: {block: encoded maps (k, h, w) at each timestep}.
        input: what the network was shown.
        residuals: {timestep: residual of x0_hat there}.
    """

    steps: dict[str, list[Encoded]]
    input: NetworkInput
    residuals: dict[int, float]

    def stacked(self) -> Features:
        """The features with the timesteps of each block stacked into one array."""
        maps = {name: stacked(steps) for name, steps in self.steps.items()}
        return Features(maps, self.input.fov, self.input.geometry, self.residuals)


class ViewMaker:
    """Renders views of photographs for a network, as a spec prescribes.

    Args:
        spec: says how photographs are cropped, resized and prepared.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec

    def prepare(self, data: bytes, max_pixels: int = MAX_PIXELS, view: str = IDENTITY) -> Prepared:
        """Decode a photograph, preprocess it and render a view; raises ImageError for what is no photograph."""
        return self.render(decode_image(data, max_pixels), Key(image_id(data), view))

    def render(self, pixels: NDArray[np.uint8], key: Key) -> Prepared:
        """Preprocess a decoded photograph, uint8 (H, W, 3), and render the view that ``key`` names."""
        return self.view_of(self.frame(pixels), key)

    def frame(self, pixels: NDArray[np.uint8], fov: NDArray[np.bool_] | None = None) -> Framed:
        """The first part of ``render``, shared by all views; raises ImageError for what is no photograph.

        Args:
            fov: the field of view, bool (H, W), if it has been found already.
        """
        return frame(pixels, self.spec.resolution, self.spec.preprocessing, fov)

    def view_of(self, framed: Framed, key: Key) -> Prepared:
        """The second part of ``render``: the view that ``key`` names."""
        return Prepared(key, framed.shown(self.spec.preprocessing, _rendering(key))).flipped(key.view)


class Extractor(ViewMaker):
    """A backbone together with the spec of what is read from it.

    Args:
        backbone: the network; fingerprint, schedule and precision must be the spec's.
        spec: what is read.
        codebook: the codebook of the compact encoding; None for other encodings.

    Attributes:
        codec: encodes the maps.
        forwards: network forwards so far, one for each image and grid step.
        stages: time spent in each stage.
    """

    def __init__(self, backbone: Backbone, spec: FeatureSpec, codebook: Codebook | None = None) -> None:
        if backbone.fingerprint != spec.backbone:
            raise BackboneError(
                f"the spec was made with backbone {spec.backbone[:12]}, this one is {backbone.fingerprint[:12]}"
            )
        for name, theirs, ours in (
            ("schedule", spec.schedule, backbone.schedule.name),
            ("precision", spec.precision, backbone.precision),
        ):
            if theirs != ours:
                raise BackboneError(f"the spec has {name} {theirs}, but the backbone was opened with {ours}")
        super().__init__(spec)
        self.backbone = backbone
        self.codebook = codebook
        self.codec = codec_for(spec, codebook)
        self.forwards = 0
        self.stages = Stages()
        self._fallbacks: list[str] = []
        self._room: int | None = None  # largest batch for the device, once a batch has exceeded its memory
        # Timesteps in one forward, for trajectories that allow several; on a CPU one, to save memory.
        self._timesteps_per_forward = 1 if backbone.device.type == "cpu" else len(spec.timesteps)
        self._copies = Copies(backbone.device) if backbone.device.type == "cuda" else None

    @property
    def device(self) -> torch.device:
        """The device that the network runs on."""
        return self.backbone.device

    def features(self, prepared: Sequence[Prepared]) -> list[Features]:
        """Features of several photographs in one batch.

        Returns:
            The maps of each photograph on the host, in the spec's encoding: they are encoded on the device, before
            they are copied. Photographs whose activations overflow in half precision are computed again in float32,
            and noted (``take_fallbacks``). Where the memory of a CUDA device does not suffice, recorded graphs are
            given up first; then the batch is split in halves, and so are later ones.

        Raises:
            NonFiniteActivation: NaN or infinity in a map; the message names block and timestep.
            NonFiniteFeatures: the encoding cannot represent some of the numbers.
            DeviceFull: the device has no room for a single photograph.
        """
        return [one.stacked() for one in self.extract_unstacked(prepared)]

    def extract_unstacked(self, prepared: Sequence[Prepared]) -> list[UnstackedFeatures]:
        """``features`` before the timesteps are stacked, which the threads that write do while the network runs."""
        room = self._room or max(1, len(prepared))
        parts = [prepared[start : start + room] for start in range(0, len(prepared), room)]
        return [features for part in parts for features in self._extract_with_fallbacks(part)]

    def _extract_with_fallbacks(self, prepared: Sequence[Prepared]) -> list[UnstackedFeatures]:
        """Extract a batch, splitting it where memory or half precision do not suffice; float32 is the last resort."""
        try:
            return self._extract_batch(prepared)
        except NonFiniteActivation:
            if self.backbone.precision == "float32":
                raise
            full = False
        except torch.OutOfMemoryError:
            full = True
        # Outside the clauses above: the exception keeps the batch's tensors alive until its clause ends.
        if full and self.backbone.forget_graphs():  # which hold memory even where it was not the network that ran out
            return self._extract_with_fallbacks(prepared)
        if full and len(prepared) == 1 and self._timesteps_per_forward == 1:
            raise DeviceFull(
                f"{self.backbone.device} has no room for one photograph of {self.spec.resolution} pixels; read it at a "
                "smaller --resolution, with --precision float16, or with --device cpu"
            )
        if len(prepared) > 1:
            half = len(prepared) // 2
            if full:
                self._room = half
            return [*self.extract_unstacked(prepared[:half]), *self.extract_unstacked(prepared[half:])]
        if full:
            self._timesteps_per_forward = 1
            return self._extract_with_fallbacks(prepared)
        with self.backbone.in_float32():
            features = self._extract_batch(prepared)
        self._fallbacks.append(f"{prepared[0].key.image_id[:12]} ({prepared[0].key.view})")
        return features

    def take_fallbacks(self) -> list[str]:
        """Return, and forget, the views that fell back to float32 since the last call."""
        taken, self._fallbacks = self._fallbacks, []
        return taken

    def _extract_batch(self, prepared: Sequence[Prepared]) -> list[UnstackedFeatures]:
        x0 = self._on_device(torch.cat([one.input.x0 for one in prepared]))
        inside = self._on_device(torch.from_numpy(np.stack([one.input.fov for one in prepared])))
        residuals: dict[int, torch.Tensor] = {}
        steps: dict[str, list[Encoded]] = {block.name: [] for block in self.spec.blocks}
        started, encoding = time.perf_counter(), 0.0
        for step in self.walk(x0, prepared):
            if step.x0_hat is not None:  # stays on the device: reading it now would wait for the network
                residuals[step.t] = residual(step.x0_hat, x0, inside)
            step_done = time.perf_counter()
            for name, maps in step.features.items():
                steps[name].append(self.codec.encode(name, maps, self._copies or at_once))
            encoding += time.perf_counter() - step_done
        if self._copies is not None:
            self._copies.finish()
        self.stages.add("encode", encoding)
        self.stages.add("network", time.perf_counter() - started - encoding)
        self.forwards += len(prepared) * len(self.spec.grid)
        residuals_of = {t: at.tolist() for t, at in residuals.items()}
        return [
            UnstackedFeatures(
                {name: [encoded[i] for encoded in at] for name, at in steps.items()},
                one.input,
                {t: at[i] for t, at in residuals_of.items()},
            )
            for i, one in enumerate(prepared)
        ]

    def _on_device(self, values: torch.Tensor) -> torch.Tensor:
        """Move values to the network's device; to a CUDA device from page-locked memory, without waiting."""
        if self._copies is None:
            return values.to(self.backbone.device)
        return values.pin_memory().to(self.backbone.device, non_blocking=True)

    def walk(self, x0: torch.Tensor, prepared: Sequence[Prepared]) -> Iterator[Step]:
        """Walk the spec's trajectory from x0, float32 (b, 3, R, R); the steps at kept timesteps have feature maps."""
        spec, blocks = self.spec, [block.name for block in self.spec.blocks]
        match spec.trajectory:
            case "ddim":
                return invert(self.backbone, x0, spec.grid, blocks, keep=spec.timesteps, clip=spec.clip)
            case "anchored":
                return anchor(
                    self.backbone, x0, spec.timesteps, blocks, timesteps_per_forward=self._timesteps_per_forward
                )
            case "stochastic":
                assert spec.seed is not None
                noise = torch.cat([image_noise(one.key, spec.seed, spec.resolution) for one in prepared])
                noise = noise.to(x0.device)
                return diffuse(
                    self.backbone, x0, spec.timesteps, blocks, noise, timesteps_per_forward=self._timesteps_per_forward
                )


def _rendering(key: Key) -> Rendering | None:
    """The rendering that a view applies to pixels, None if it applies none; a photometric one depends on the image."""
    seed = photometric_seed(key.view)
    if seed is None:
        return fixed_rendering(key.view)
    return lambda image: camera_rendering(image, np.random.default_rng([seed, int(key.image_id[:16], 16)]))


def image_noise(key: Key, seed: int, resolution: int) -> torch.Tensor:
    """Gaussian noise, float32 (1, 3, R, R), that depends on image, view and seed and not on the batch."""
    name = hashlib.sha256(f"{seed}/{key.image_id}/{key.view}".encode()).digest()
    random = np.random.default_rng(np.frombuffer(name, dtype=np.uint32))
    return torch.from_numpy(random.standard_normal((1, 3, resolution, resolution), dtype=np.float32))
