"""Assessment of a backbone on some photographs: how well it denoises them at several levels, and reconstructs them.

All numbers are PSNR in dB of values in [-1, 1], inside the field of view, so that backbones of every prediction
type can be compared:

    noisy       x_t / sqrt(a_t), what the network is given: the baseline
    denoised    x0_hat, the network's estimate of the photograph
    walked      the photograph after inversion up the grid (Eq. 6) and reconstruction back down (Eq. 4)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from extractor.backbone import Backbone
from extractor.datasets import Photograph
from extractor.errors import naming
from extractor.images import decode_image, image_id, read_bytes
from extractor.inversion import psnr, residual, round_trip
from extractor.preprocess import preprocess
from extractor.schedule import NoiseSchedule
from store.spec import Preprocessing

LEVELS = (1, 10, 100, 500, 1000, 2000)


@dataclass(frozen=True)
class Assessment:
    """Mean PSNR over some photographs.

    Attributes:
        photographs: number of photographs.
        denoised: {timestep: dB} of x0_hat.
        walked: dB of the reconstruction after inversion.
    """

    photographs: int
    denoised: Mapping[int, float]
    walked: float


def noisy_psnr(schedule: NoiseSchedule, t: int) -> float:
    """Expected PSNR in dB of a network's noisy input at a timestep; the same for every photograph."""
    a = float(schedule.alphas_cumprod[t])
    return psnr((1 - a) / a)


def assess(
    backbone: Backbone,
    photographs: Sequence[Photograph],
    resolution: int,
    how: Preprocessing,
    *,
    levels: Sequence[int] = LEVELS,
    grid: Sequence[int] = (1, 10, 100, 500),
    seed: int = 0,
    advance: Callable[[str], None] | None = None,
) -> Assessment:
    """Measure how well a backbone denoises and reconstructs some photographs.

    Args:
        resolution: side R of the network's square.
        how: how the photographs are preprocessed.
        levels: timesteps whose noise is added.
        grid: timesteps of the inversion and of the way back.
        seed: seed of the noise; a photograph's noise depends on its bytes and the seed, not on the other photographs.
        advance: called with the name of each photograph that is done.

    Raises:
        ImageError: a photograph cannot be used.
        ScheduleError: ``levels`` or ``grid`` are not strictly increasing timesteps of the backbone's schedule.
    """
    backbone.schedule.require(levels)
    denoised: dict[int, list[float]] = {t: [] for t in levels}
    walked: list[float] = []
    for photograph in photographs:
        data = read_bytes(photograph.image)
        with naming(photograph.image):
            prepared = preprocess(decode_image(data), resolution, how)
        x0, inside = prepared.x0.to(backbone.device), torch.from_numpy(prepared.fov)[None].to(backbone.device)
        drawn = np.random.default_rng([seed, int(image_id(data)[:16], 16)]).standard_normal(x0.shape, np.float32)
        noise = torch.from_numpy(drawn).to(x0.device)
        for t in levels:
            estimate = backbone.estimate(backbone.schedule.noised(x0, noise, t), t).x0
            assert estimate is not None
            denoised[t].append(psnr(float(residual(estimate, x0, inside))))
        walked.append(round_trip(backbone, x0, grid, prepared.fov)[1])
        if advance is not None:
            advance(photograph.name)
    return Assessment(len(walked), {t: fmean(of_each) for t, of_each in denoised.items()}, fmean(walked))
