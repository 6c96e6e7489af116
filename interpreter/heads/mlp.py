"""The pixel classifiers of DDPM-Seg (Baranchuk et al. 2022), DiffDGSS's row "w/o adaptive interpreter".

All maps of all timesteps are upsampled to R x R and concatenated; ten small perceptrons, trained
independently, classify each pixel on its own, and the majority of the ten is the prediction.

b  images    t  timesteps    p  pixels    f  features of a pixel    m  models    n  scores    R  square
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from interpreter.bilinear import at_pixels
from interpreter.config import InterpreterConfig
from interpreter.heads.head import Head, Loss, Maps, coarsest_stride, stack_timesteps
from store.spec import FeatureSpec

MODELS = 10
PIXELS_PER_MODEL = 1024  # drawn per model from each image of a batch
ROWS = 64  # rows of pixels classified at once, to bound memory


def _perceptron(f: int, n: int) -> nn.Sequential:
    """The network that DDPM-Seg uses for fewer than thirty classes."""
    return nn.Sequential(
        nn.Linear(f, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 32), nn.ReLU(), nn.BatchNorm1d(32),
        nn.Linear(32, n),
    )  # fmt: skip


class MlpEnsemble(Head):
    """Ten independent perceptrons, each a voter; they read the maps of all timesteps, (b, t, c, h, w)."""

    all_timesteps = True

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig) -> None:
        super().__init__()
        self.names = [block.name for block in spec.blocks]
        self.stride = coarsest_stride(spec)
        self.scale = spec.resolution // spec.blocks[0].height  # a ratio, which holds at any resolution
        f = len(spec.timesteps) * sum(block.channels for block in spec.blocks)
        self.models = nn.ModuleList([_perceptron(f, config.outputs) for _ in range(MODELS)])

    def voters(self, _timesteps: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"model {m}" for m in range(MODELS))

    def loss(
        self, maps: Maps, _t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        """Sum the models' losses, each on its own random pixels; no weights are shared, so each model learns alone."""
        losses, planes = [], self._planes(maps)
        for model in self.models:
            pixels = _draw_pixels(inside)  # (b, p)
            x = _features(planes, pixels, truth.shape[-1])  # (b, p, f)
            logits = model(x.flatten(0, 1)).float().unflatten(0, x.shape[:2]).movedim(2, 1)  # (b, n, p)
            at = truth.flatten(1).gather(1, pixels)
            losses.append(measure(logits, at, inside.flatten(1).gather(1, pixels)))
        return torch.stack(losses).sum()

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield the logits (1, n, R, R) of each model.

        The first layer is linear, as is upsampling, so the layer is applied first, at the size of each map,
        which takes a fifth of the operations.
        """
        planes = [maps.movedim(1, 3) for maps in self._planes(stack_timesteps(read, timesteps))]  # (1, h, w, t c)
        side, rows = planes[0].shape[1] * self.scale, max(ROWS // self.stride, 1) * self.stride
        for model in self.models:
            assert isinstance(model, nn.Sequential)
            first, rest = model[0], model[1:]
            assert isinstance(first, nn.Linear)
            scores = [rest(self._first_layer(first, planes, side, top, rows)) for top in range(0, side, rows)]
            yield torch.cat(scores).T.float().unflatten(1, (side, side))[None]

    def _first_layer(
        self, layer: nn.Linear, planes: Sequence[torch.Tensor], side: int, top: int, rows: int
    ) -> torch.Tensor:
        """The layer's outputs (p, k) for ``rows`` rows of pixels from ``top`` on, as if all maps were upsampled."""
        rows = min(rows, side - top)
        total = layer.bias.expand(1, rows, side, -1).movedim(3, 1)
        weights = layer.weight.split([of_block.shape[3] for of_block in planes], dim=1)
        for of_block, weight in zip(planes, weights, strict=True):
            step = side // of_block.shape[1]
            first, last = max(top // step - 1, 0), (top + rows) // step + 1  # interpolation needs the rows beside
            seen = functional.linear(of_block[:, first:last], weight).movedim(3, 1)
            seen = functional.interpolate(seen, size=(step * seen.shape[2], side), mode="bilinear")
            total = total + seen[:, :, top - first * step :][:, :, :rows]
        return total.movedim(1, 3).flatten(0, 2)

    def _planes(self, maps: Maps) -> list[torch.Tensor]:
        """The maps of each block as float32 (b, t c, h, w), channels last in memory."""
        flat = [maps[name].float().flatten(1, 2) for name in self.names]
        return [of_block.contiguous(memory_format=torch.channels_last) for of_block in flat]


def _features(planes: Sequence[torch.Tensor], pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Features (b, p, f) at pixels (b, p): the values there of the maps upsampled bilinearly to (side, side)."""
    return torch.cat([at_pixels(of_block, pixels, side) for of_block in planes], dim=-1)


def _draw_pixels(inside: torch.Tensor) -> torch.Tensor:
    """Draw pixels, with replacement, from those that count in each image: flat indices (b, p)."""
    drawn = []
    for one in inside:
        candidates = one.flatten().nonzero()[:, 0]
        drawn.append(candidates[torch.randint(len(candidates), (PIXELS_PER_MODEL,), device=candidates.device)])
    return torch.stack(drawn)
