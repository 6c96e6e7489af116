"""What is done on a CPU is done on a CUDA device as well: features, cache, interpreter, service, pre-training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.backbone_folder import load_backbone, save_backbone
from extractor.backbones import open_backbone
from extractor.cluster import ExtractionJob, connected, extract_on_cluster
from extractor.datasets import Selection, load_dataset
from extractor.execution import Execution
from extractor.extraction import Extractor
from extractor.request import Request
from extractor.runs import extract_dataset
from interpreter.checkpoint import Card, load_interpreter, save_interpreter
from interpreter.config import InterpreterConfig
from interpreter.data import labelled_images
from interpreter.network import Interpreter
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from interpreter.training import Training
from service.engine import load_engine
from store import FeatureSpec, FeatureStore
from store.spec import Precision, Trajectory
from tests.conftest import TINY, draw_fundus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TASK = Task(name="vessels", targets=("mask",))


@pytest.fixture
def folder(backbone: Backbone, tmp_path: Path) -> Path:
    save_backbone(backbone, tmp_path / "backbone", half=False)
    return tmp_path / "backbone"


def extractor_of(
    folder: Path, device: str, trajectory: Trajectory = "ddim", precision: Precision = "float32"
) -> Extractor:
    network = open_backbone(str(folder), precision, device)
    return Extractor(network, TINY.with_trajectory(trajectory).spec(network))


@pytest.mark.parametrize("trajectory", ["ddim", "anchored", "stochastic"])
def test_features_are_those_of_the_cpu(folder: Path, dataset_folder: Path, trajectory: Trajectory) -> None:
    here, there = (extractor_of(folder, device, trajectory) for device in ("cpu", "cuda"))
    paths = sorted((dataset_folder / "images").iterdir())[:3]
    prepared = [here.prepare(path.read_bytes()) for path in paths]
    for one, other, alone in zip(
        here.features(prepared), there.features(prepared), [there.features([p])[0] for p in prepared], strict=True
    ):
        for block, maps in one.maps.items():
            scale = np.abs(maps.values).max()
            assert np.abs(other.maps[block].values - maps.values).max() < 2e-3 * scale  # stored as float16
            assert np.abs(alone.maps[block].values - other.maps[block].values).max() < 2e-3 * scale
        np.testing.assert_allclose(list(other.residuals.values()), list(one.residuals.values()), rtol=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(folder: Path, dataset_folder: Path, precision: Precision) -> None:
    exact, half = extractor_of(folder, "cuda"), extractor_of(folder, "cuda", precision=precision)
    prepared = [exact.prepare(next((dataset_folder / "images").iterdir()).read_bytes())]
    found = half.features(prepared)[0]
    assert not half.take_fallbacks()
    for block, maps in exact.features(prepared)[0].maps.items():
        difference = np.abs(found.maps[block].values - maps.values).mean()
        assert 0 < difference < 0.05 * maps.values.astype(np.float32).std()


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has other switches for TF32")
def test_float32_has_all_its_bits_whatever_torch_rounds_otherwise(folder: Path) -> None:
    here, there = (open_backbone(str(folder), device=device) for device in ("cpu", "cuda"))
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # as torch is unless it is told
    x = torch.randn(2, 3, 64, 64)
    expected, found = here.estimate(x, 7, ["block_1"]), there.estimate(x.cuda(), 7, ["block_1"])
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    scale = expected.features["block_1"].abs().max()
    assert (found.features["block_1"].cpu() - expected.features["block_1"]).abs().max() < 2e-5 * scale


def test_a_forward_is_run_recorded_and_replayed_to_the_same_bits(folder: Path) -> None:
    network, fresh = (open_backbone(str(folder), device="cuda") for _ in range(2))
    blocks = network.block_names[:2]
    one, other = torch.randn(2, 2, 3, 32, 32, device="cuda").unbind()

    def told(backbone: Backbone, x: torch.Tensor, t: int) -> list[torch.Tensor]:
        estimate = backbone.estimate(x, t, blocks)
        assert estimate.x0 is not None
        return [estimate.x0, *estimate.features.values()]

    run, *_, replayed = [told(network, one, 7) for _ in range(4)]
    assert network._graphs is not None
    assert len(network._graphs._graphs) == 1
    assert all(torch.equal(a, b) for a, b in zip(run, replayed, strict=True))
    again, expected = told(network, other, 90), told(fresh, other, 90)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(run, replayed, strict=True))  # nobody wrote over what was given out
    assert network._graphs.forget()
    assert all(torch.equal(a, b) for a, b in zip(told(network, one, 7), run, strict=True))


def test_a_device_that_is_full_gives_up_recordings_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = open_backbone(str(folder), device="cuda"), torch.zeros(1, 3, 32, 32, device="cuda")
    expected = [network.estimate(x, 7).x0 for _ in range(4)][-1]
    usual, left = network.unet.forward, 1

    def full_once(*given: object, **named: object) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError
        return usual(*given, **named)

    monkeypatch.setattr(network.unet, "forward", full_once)
    assert torch.isfinite(network.estimate(torch.zeros(2, 3, 32, 32, device="cuda"), 7).x0).all()  # type: ignore[arg-type]
    assert torch.equal(network.estimate(x, 7).x0, expected)  # type: ignore[arg-type]


def test_a_device_has_contiguous_maps_and_a_cpu_its_own(folder: Path) -> None:
    weight = "conv_in.weight"
    network = open_backbone(str(folder), device="cuda")
    assert network.unet.state_dict()[weight].is_contiguous()
    assert network.to("cpu").unet.state_dict()[weight].is_contiguous(memory_format=torch.channels_last)


def test_a_run_fills_a_store_that_an_interpreter_learns_from(
    folder: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    extractor, store = extractor_of(folder, "cuda"), FeatureStore(tmp_path / "features.zarr")
    report = extract_dataset(load_dataset(f"folder:{dataset_folder}", "eyes"), store, extractor, batch=4)
    assert report.extracted == 6
    images = labelled_images(store, "eyes", None, TASK)
    settings = TrainingSettings(epochs=2, batch=2, evaluate_every=1, validation_share=0.2)
    for device in ("cpu", "cuda"):  # one process may train on both
        run = tmp_path / device
        training = Training(store, extractor.spec, TASK, images, InterpreterConfig(), settings, run, "x", device)
        training.run()
        assert next(training.network.parameters()).device.type == device
        assert load_interpreter(run)[1].task == TASK


def test_a_worker_with_a_gpu_extracts(folder: Path, spec: FeatureSpec, dataset_folder: Path, tmp_path: Path) -> None:
    request = Request(Selection(f"folder:{dataset_folder}"), spec, str(folder))
    job = ExtractionJob(request, str(tmp_path / "features.zarr"), Execution("cuda", batch=1, workers=1))
    with connected(None, 1, gpu=True) as client:
        client.wait_for_workers(1)
        report = extract_on_cluster(load_dataset(f"folder:{dataset_folder}"), job, client)
    assert report.extracted == 6


def test_the_service_answers_as_on_the_cpu(folder: Path, spec: FeatureSpec, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Interpreter(spec, InterpreterConfig())
    torch.nn.init.normal_(network.head.head.weight, std=1.0)
    card = Card(spec=spec, backbone=str(folder), task=TASK, config=network.config)
    save_interpreter(tmp_path / "model", network, card)
    photograph = tmp_path / "eye.png"
    Image.fromarray(draw_fundus(seed=5)[0]).save(photograph)
    masks = []
    for device in ("cpu", "cuda"):
        engine = load_engine(str(tmp_path / "model"), tmp_path / f"{device}.zarr", device=device)
        masks.append(engine.segment(photograph.read_bytes()).labels)
        engine.close()
    assert 0 < masks[0].mean() < 1
    assert (masks[0] != masks[1]).mean() < 0.01


def test_a_backbone_is_pretrained_in_half_precision(dataset_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "unet.json").write_text(json.dumps(tiny_unet()))
    options = {
        "--images": dataset_folder / "images", "--out": tmp_path / "run", "--config": tmp_path / "unet.json",
        "--resolution": 32, "--crop": 16, "--steps": 6, "--workers": 1, "--mixed-precision": "fp16",
    }  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    # A process of its own: accelerate keeps one precision for each.
    subprocess.run([sys.executable, "-m", "extractor.cli", "pretrain", *words], check=True)
    weights = load_backbone(tmp_path / "run" / "backbone").unet.state_dict()
    assert list(weights["conv_in.weight"].shape) == [8, 3, 3, 3]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
