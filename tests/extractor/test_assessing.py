"""What a backbone makes of noise, against networks whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

import pytest
import torch

from extractor.architectures import tiny_unet
from extractor.assessing import assess, noisy_psnr
from extractor.backbone import Backbone
from extractor.datasets import load_dataset
from extractor.diffusion import Diffusion
from extractor.errors import ScheduleError
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from store.spec import Preprocessing

SIDE = 32


def credulous() -> Backbone:
    """It finds no noise in anything."""
    unet = build_unet(tiny_unet())
    for weights in unet.conv_out.parameters():
        torch.nn.init.zeros_(weights)
    return Backbone(unet, Diffusion(noise_schedule("cosine-4000"), "epsilon"), tiny_unet())


def test_who_finds_no_noise_gives_back_what_was_given(dataset_folder: Path) -> None:
    backbone = credulous()
    found = assess(backbone, load_dataset(f"folder:{dataset_folder}").photographs, SIDE, Preprocessing())
    assert found.photographs == 6
    for t, psnr in found.denoised.items():
        assert psnr == pytest.approx(noisy_psnr(backbone.schedule, t), abs=0.3)
    assert found.walked > 100  # neither way changes anything


def test_numbers_are_means_over_photographs_each_with_noise_of_its_own(
    backbone: Backbone, dataset_folder: Path
) -> None:
    photographs = load_dataset(f"folder:{dataset_folder}").photographs[:2]

    def assessed(*chosen: int) -> list[float]:
        some = [photographs[i] for i in chosen]
        found = assess(backbone, some, SIDE, Preprocessing(), levels=(10, 100), grid=(1, 10))
        return [*found.denoised.values(), found.walked]

    one, other, both = assessed(0), assessed(1), assessed(1, 0)
    assert both == pytest.approx([fmean(pair) for pair in zip(one, other, strict=True)], rel=1e-5)
    assert one != other
    assert all(math.isfinite(number) for number in both)


def test_levels_that_the_schedule_lacks_are_told(backbone: Backbone, dataset_folder: Path) -> None:
    photographs = load_dataset(f"folder:{dataset_folder}").photographs[:1]
    beyond = backbone.schedule.steps
    with pytest.raises(ScheduleError, match=f"within 0..{beyond - 1}"):
        assess(backbone, photographs, SIDE, Preprocessing(), levels=(10, beyond))
