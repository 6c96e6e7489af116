"""Real classes at tiny size: a two-level U-Net, photographs of 80 pixels, a network side of 32."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.datasets import load_dataset
from extractor.diffusion import Diffusion
from extractor.extraction import Extractor
from extractor.presets import Preset
from extractor.runs import extract_dataset
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from store import FeatureSpec, FeatureStore, console

SHARED = Path(os.environ.get("DIFFDGSS_SHARED", Path(__file__).parents[2] / "shared"))
TINY = Preset("tiny", "tiny", (1, 10, 100), (1, 10, 100), blocks=(0, 2), resolution=32)

torch.set_num_threads(2)


def draw_fundus(side: int = 80, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A lit disc with dark vessels: image uint8 (side, side + 16, 3), vessel mask bool."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, : side + 16].astype(np.float64)
    centre_y, centre_x = side / 2, (side + 16) / 2
    disc = np.hypot(y - centre_y, x - centre_x) < side * 0.46
    image = np.zeros((side, side + 16, 3))
    image[disc] = np.array([180, 90, 40]) + random.normal(0, 4, (int(disc.sum()), 3))
    phase = random.uniform(0, 6)
    vessel = disc & (np.abs(y - centre_y - side * 0.15 * np.sin(x / side * 6 + phase)) < side * 0.035)
    image[vessel] *= 0.5
    return image.clip(0, 255).astype(np.uint8), vessel


def changed(spec: FeatureSpec, **fields: object) -> FeatureSpec:
    """The spec with other fields, checked like a new one."""
    return FeatureSpec.model_validate({name: getattr(spec, name) for name in FeatureSpec.model_fields} | fields)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of fixtures and real images; tests that need it are skipped where it is absent."""
    if not all((SHARED / part).is_dir() for part in ("fixtures", "data")):
        pytest.skip(f"no folder {SHARED}; set DIFFDGSS_SHARED to run the tests that need real images")
    return SHARED


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(build_unet(tiny_unet()), Diffusion(noise_schedule("cosine-200"), "v_prediction"), tiny_unet())


@pytest.fixture(scope="session")
def spec(backbone: Backbone) -> FeatureSpec:
    return TINY.spec(backbone)


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs with masks of the same names, in the layout of ``folder``."""
    root = tmp_path_factory.mktemp("photographs")
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i in range(6):
        image, vessel = draw_fundus(seed=i)
        Image.fromarray(image).save(root / "images" / f"eye{i}.png")
        Image.fromarray(vessel).save(root / "masks" / f"eye{i}.png")
    return root


@pytest.fixture(scope="session")
def extracted(
    backbone: Backbone, spec: FeatureSpec, dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a store with the features of ``dataset_folder`` under the name ``eyes``; nobody writes to it."""
    folder = tmp_path_factory.mktemp("extracted") / "features.zarr"
    extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), FeatureStore(folder), Extractor(backbone, spec))
    return folder


@pytest.fixture
def filled_store(extracted: Path, tmp_path: Path) -> FeatureStore:
    """A copy of that store, to do anything with."""
    return FeatureStore(shutil.copytree(extracted, tmp_path / "features.zarr"))


class Result(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command's entry point in this process."""

    def run_command(command: str, *arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        monkeypatch.setattr(
            console, "limit_threads_to_quota", lambda: None
        )  # it would be this process's for all other tests
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"{command}.cli").main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run_command
