"""Three trajectories up the noise grid, and the way back down.

x0     clean image, float32 (b, 3, R, R) in [-1, 1]
x_t    state at timestep t, float32, same shape
a_t    alphas_cumprod[t], float64
grid   strictly increasing timesteps; the photograph is taken as the state at grid[0]

Each trajectory yields one ``Step`` for every timestep. ``invert`` is DiffDGSS (MICCAI 2024), Eq. 6:

    eps    = (sqrt(1 / a_t) x_t - x0_hat) / sqrt(1 / a_t - 1)
    x_next = sqrt(a_next) x0_hat + sqrt(1 - a_next) eps

The factors are rounded to float32 where guided-diffusion rounds them: a backbone amplifies the
rounding of the first steps, and features must be those of the original code
(docs/decisions/0002-inversion-arithmetic.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from extractor.backbone import Backbone
from extractor.schedule import NoiseSchedule


class Step(NamedTuple):
    """One step of a trajectory: the state x_t, features {block: (b, c, h, w)} at t, and x0_hat if it was computed."""

    t: int
    x: torch.Tensor
    features: dict[str, torch.Tensor]
    x0_hat: torch.Tensor | None


def invert(
    backbone: Backbone,
    x0: torch.Tensor,
    grid: Sequence[int],
    blocks: Sequence[str],
    *,
    keep: Sequence[int] | None = None,
    clip: bool = False,
    final_estimate: bool = False,
) -> Iterator[Step]:
    """Deterministic DDIM inversion: one forward for every timestep of the grid, unless nothing is wanted of the last.

    Args:
        keep: the timesteps whose features are taken; all of the grid if None.
        clip: clip x0_hat to [-1, 1].
        final_estimate: compute x0_hat at the last timestep, too, where by default only features are computed.
    """
    backbone.schedule.require(grid)
    x = x0
    for t, t_next in pairwise([*grid, None]):
        assert t is not None
        kept = keep is None or t in keep
        wanted = blocks if kept else ()
        features_only = t_next is None and not final_estimate
        if features_only and not wanted:
            yield Step(t, x, {}, None)
            return
        x0_hat, features = backbone.estimate(x, t, wanted, features_only=features_only)
        if x0_hat is not None and clip:
            x0_hat = x0_hat.clamp(-1, 1)
        yield Step(t, x, features, x0_hat)
        if t_next is not None:
            assert x0_hat is not None
            x = ddim_step(backbone.schedule, x, x0_hat, t, t_next)


def anchor(
    backbone: Backbone,
    x0: torch.Tensor,
    timesteps: Sequence[int],
    blocks: Sequence[str],
    *,
    timesteps_per_forward: int = 1,
) -> Iterator[Step]:
    """Features of the clean image at every timestep, without any noise.

    Args:
        timesteps_per_forward: number of timesteps in one forward.
    """
    return _independent_features(backbone, dict.fromkeys(timesteps, x0), blocks, timesteps_per_forward)


def diffuse(
    backbone: Backbone,
    x0: torch.Tensor,
    timesteps: Sequence[int],
    blocks: Sequence[str],
    noise: torch.Tensor,
    *,
    timesteps_per_forward: int = 1,
) -> Iterator[Step]:
    """Features of samples of q(x_t | x0), with the same noise, float32 (b, 3, R, R), at every timestep (DDPM-Seg).

    Args:
        timesteps_per_forward: number of timesteps in one forward.
    """
    backbone.schedule.require(timesteps)
    states = {t: backbone.schedule.noised(x0, noise, t) for t in timesteps}
    return _independent_features(backbone, states, blocks, timesteps_per_forward)


def _independent_features(
    backbone: Backbone, states: Mapping[int, torch.Tensor], blocks: Sequence[str], timesteps_per_forward: int
) -> Iterator[Step]:
    """Features of states that do not depend on each other, so that several timesteps can share a forward."""
    timesteps = list(states)
    backbone.schedule.require(timesteps)
    for start in range(0, len(timesteps), timesteps_per_forward):
        ts = timesteps[start : start + timesteps_per_forward]
        x = torch.cat([states[t] for t in ts])
        maps = backbone.features(x, [t for t in ts for _ in states[t]], blocks)
        parts = {name: m.chunk(len(ts)) for name, m in maps.items()}
        for i, t in enumerate(ts):
            yield Step(t, states[t], {name: part[i] for name, part in parts.items()}, None)


def residual(x0_hat: torch.Tensor, x0: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between an estimate and the image, float32 (b,), of values in [-1, 1].

    Args:
        x0_hat, x0: float32 (b, 3, R, R).
        inside: bool (b, R, R), the pixels that are compared; the result is 0 for an image without any.
    """
    squared = (x0_hat - x0).square().mean(dim=1) * inside
    return squared.sum(dim=(-2, -1)) / inside.sum(dim=(-2, -1)).clamp(min=1)


def reconstruct(backbone: Backbone, x: torch.Tensor, grid: Sequence[int], *, clip: bool = False) -> torch.Tensor:
    """Walk back down (Eq. 4 with eta = 0) from the state at grid[-1] to a clean image.

    The last step goes from grid[0] to no noise at all, where the state is x0_hat itself.
    """
    backbone.schedule.require(grid)
    for t, t_next in pairwise([*reversed(grid), None]):
        assert t is not None
        x0_hat = backbone.estimate(x, t).x0
        assert x0_hat is not None
        if clip:
            x0_hat = x0_hat.clamp(-1, 1)
        x = x0_hat if t_next is None else ddim_step(backbone.schedule, x, x0_hat, t, t_next)
    return x


def round_trip(
    backbone: Backbone, x0: torch.Tensor, grid: Sequence[int], inside: NDArray[np.bool_]
) -> tuple[torch.Tensor, float]:
    """Invert up to grid[-1] and walk back down; returns the reconstruction, in [-1, 1], and its PSNR in dB.

    Args:
        x0: one photograph, float32 (1, 3, R, R) in [-1, 1].
        inside: field of view, bool (R, R), where the PSNR is measured.
    """
    *_, last = invert(backbone, x0, grid, ())
    back = reconstruct(backbone, last.x, grid).clamp(-1, 1)
    return back, psnr(float(residual(back, x0, torch.from_numpy(inside)[None].to(x0.device))))


def psnr(error: float) -> float:
    """PSNR in dB of a mean squared error of values in [-1, 1]; infinite if the error is 0."""
    return 10 * math.log10(4 / error) if error else math.inf


def ddim_step(schedule: NoiseSchedule, x: torch.Tensor, x0_hat: torch.Tensor, t: int, t_next: int) -> torch.Tensor:
    """One step of Eq. 6 (t_next > t) or Eq. 4 with eta = 0 (t_next < t)."""
    a, a_next = float(schedule.alphas_cumprod[t]), float(schedule.alphas_cumprod[t_next])
    epsilon = (_float32((1 / a) ** 0.5) * x - x0_hat) / _float32((1 / a - 1) ** 0.5)
    return x0_hat * _float32(_float32(a_next) ** 0.5) + _float32((1 - _float32(a_next)) ** 0.5) * epsilon


def _float32(value: float) -> float:
    return float(np.float32(value))
