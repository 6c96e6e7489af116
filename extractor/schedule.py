"""Noise schedules: how much of the photograph is left at timestep t.

T     number of steps
a_t   alphas_cumprod[t], the share of x0's variance left in x_t, t = 0..T-1

    q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I)

Tables are float64, as in guided-diffusion; a schedule is named ``cosine-4000`` or ``linear-1000``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from extractor.errors import ScheduleError

MAX_BETA = 0.999


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A named table of a_t, float64 (T,)."""

    name: str
    alphas_cumprod: NDArray[np.float64]

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.alphas_cumprod)

    def require(self, timesteps: Sequence[int]) -> None:
        """Raise ScheduleError unless the timesteps are strictly increasing and within this schedule."""
        if not timesteps or list(timesteps) != sorted(set(timesteps)):
            raise ScheduleError(f"expected strictly increasing timesteps, got {tuple(timesteps)}")
        if timesteps[0] < 0 or timesteps[-1] >= self.steps:
            raise ScheduleError(f"expected timesteps within 0..{self.steps - 1} of {self.name}, got {tuple(timesteps)}")

    def shares(self, t: int | Sequence[int], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of image and noise at t: sqrt(a_t) and sqrt(1 - a_t), each (b, 1, 1, 1), or (1, 1, 1, 1).

        Args:
            t: one timestep for all images, or one for each.
            like: a tensor of the dtype and on the device that the factors should have.
        """
        a = torch.from_numpy(self.alphas_cumprod[np.atleast_1d(t)])[:, None, None, None]
        return a.sqrt().to(like), (1 - a).sqrt().to(like)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, t: int | Sequence[int]) -> torch.Tensor:
        """x_t ~ q(x_t | x0) with this noise, of the same shape; ``t`` is for all images, or one for each."""
        image, noisy = self.shares(t, x0)
        return image * x0 + noisy * noise


def cosine(steps: int) -> NoiseSchedule:
    """Nichol and Dhariwal 2021, Eq. 17: a(s) = cos^2(((s + 0.008) / 1.008) pi / 2), s = t / T."""

    def alpha_bar(s: float) -> float:
        return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((t + 1) / steps) / alpha_bar(t / steps), MAX_BETA) for t in range(steps)]
    return NoiseSchedule(f"cosine-{steps}", np.cumprod(1 - np.array(betas, dtype=np.float64), dtype=np.float64))


def linear(steps: int) -> NoiseSchedule:
    """Ho et al. 2020: beta from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T for other T."""
    scale = 1000 / steps
    betas = np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
    return NoiseSchedule(f"linear-{steps}", np.cumprod(1 - betas, dtype=np.float64))


_BUILDERS = {"cosine": cosine, "linear": linear}


def noise_schedule(name: str) -> NoiseSchedule:
    """The schedule named ``name``, such as ``cosine-4000``."""
    kind, _, steps = name.partition("-")
    if kind not in _BUILDERS or not steps.isdecimal() or int(steps) < 2:
        raise ScheduleError(f"unknown noise schedule {name!r}; expected one like cosine-4000 or linear-1000")
    return _BUILDERS[kind](int(steps))
