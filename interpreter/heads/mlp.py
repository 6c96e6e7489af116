"""The pixel classifier of DDPM-Seg (Baranchuk et al. 2022), DiffDGSS's row "w/o adaptive interpreter".

All maps of all timesteps are upsampled to R x R and concatenated; ten small perceptrons, trained each
for itself, classify every pixel alone, and the majority of the ten is the prediction.

b  images    t  timesteps    p  pixels    f  features of a pixel    m  models    n  scores    R  square
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from interpreter.bilinear import at_pixels
from interpreter.config import InterpreterConfig
from interpreter.heads.head import Head, Loss, Maps, coarsest_step, side_by_side
from store.spec import FeatureSpec

MODELS = 10
PIXELS = 1024  # drawn for each model from each image of a batch
ROWS = 64  # of pixels classified at once: memory


def _perceptron(f: int, n: int) -> nn.Sequential:
    """DDPM-Seg's network for less than thirty classes."""
    return nn.Sequential(
        nn.Linear(f, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 32), nn.ReLU(), nn.BatchNorm1d(32),
        nn.Linear(32, n),
    )  # fmt: skip


class MlpEnsemble(Head):
    """Ten perceptrons; (b, t, c, h, w) maps in."""

    all_timesteps = True

    def __init__(self, spec: FeatureSpec, config: InterpreterConfig) -> None:
        super().__init__()
        self.names = [block.name for block in spec.blocks]
        self.step = coarsest_step(spec)
        self.scale = spec.resolution // spec.blocks[0].height  # at whatever resolution it is read
        f = len(spec.timesteps) * sum(block.channels for block in spec.blocks)
        self.models = nn.ModuleList([_perceptron(f, config.outputs) for _ in range(MODELS)])

    def voters(self, _timesteps: Sequence[int]) -> tuple[str, ...]:
        return tuple(f"model {m}" for m in range(MODELS))

    def loss(
        self, maps: Maps, _t: torch.Tensor, truth: torch.Tensor, inside: torch.Tensor, measure: Loss
    ) -> torch.Tensor:
        """Sum of the models' losses, each on pixels of its own; no weight is shared, so each learns alone."""
        losses, planes = [], self._planes(maps)
        for model in self.models:
            pixels = _draw_pixels(inside)  # (b, p)
            x = _features(planes, pixels, truth.shape[-1])  # (b, p, f)
            logits = model(x.flatten(0, 1)).float().unflatten(0, x.shape[:2]).movedim(2, 1)  # (b, n, p)
            at = truth.flatten(1).gather(1, pixels)
            losses.append(measure(logits, at, inside.flatten(1).gather(1, pixels)))
        return torch.stack(losses).sum()

    def votes(self, read: Callable[[int], Maps], timesteps: Sequence[int]) -> Iterator[torch.Tensor]:
        """One vote of each model.

        The first layer is linear, and so is upsampling: the layer goes first, at the size of each map,
        which takes a fifth of the operations.
        """
        planes = [of_block.movedim(1, 3) for of_block in self._planes(side_by_side(read, timesteps))]  # (1, h, w, t c)
        side, rows = planes[0].shape[1] * self.scale, max(ROWS // self.step, 1) * self.step
        for model in self.models:
            assert isinstance(model, nn.Sequential)
            first, rest = model[0], model[1:]
            assert isinstance(first, nn.Linear)
            scores = [rest(self._first_layer(first, planes, side, top, rows)) for top in range(0, side, rows)]
            yield torch.cat(scores).T.float().unflatten(1, (side, side))[None]

    def _first_layer(
        self, layer: nn.Linear, planes: Sequence[torch.Tensor], side: int, top: int, rows: int
    ) -> torch.Tensor:
        """What a layer makes of all maps, upsampled and concatenated, of ``rows`` rows from ``top`` on: (p, k)."""
        rows = min(rows, side - top)
        total = layer.bias.expand(1, rows, side, -1).movedim(3, 1)
        weights = layer.weight.split([of_block.shape[3] for of_block in planes], dim=1)
        for of_block, weight in zip(planes, weights, strict=True):
            step = side // of_block.shape[1]
            first, last = max(top // step - 1, 0), (top + rows) // step + 1  # with a neighbour on either side
            seen = functional.linear(of_block[:, first:last], weight).movedim(3, 1)
            seen = functional.interpolate(seen, size=(step * seen.shape[2], side), mode="bilinear")
            total = total + seen[:, :, top - first * step :][:, :, :rows]
        return total.movedim(1, 3).flatten(0, 2)

    def _planes(self, maps: Maps) -> list[torch.Tensor]:
        """Each block's maps, float32 (b, t c, h, w), all values of a place side by side in memory."""
        flat = [maps[name].float().flatten(1, 2) for name in self.names]
        return [of_block.contiguous(memory_format=torch.channels_last) for of_block in flat]


def _features(planes: Sequence[torch.Tensor], pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Features (b, p, f) of pixels (b, p): what bilinear upsampling to a square of that side has there."""
    return torch.cat([at_pixels(of_block, pixels, side) for of_block in planes], dim=-1)


def _draw_pixels(inside: torch.Tensor) -> torch.Tensor:
    """Indices (b, p) of pixels drawn from those that count in each image."""
    drawn = []
    for one in inside:
        candidates = one.flatten().nonzero()[:, 0]
        drawn.append(candidates[torch.randint(len(candidates), (PIXELS,), device=candidates.device)])
    return torch.stack(drawn)
