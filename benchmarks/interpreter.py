"""The interpreter: its selective scan against the reference implementation, a training step, and its cost.

    python benchmarks/interpreter.py [--json] [--quick]

Prints tables and writes them into docs/benchmarks.md; with --json the last line is one JSON object. Runs that are
compared alternate; ratios are medians. On a machine with CUDA, the scan that ``auto`` chooses there is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch

from benchmarks.drawn import draw_photograph
from benchmarks.measuring import DEVICE, seconds
from benchmarks.report import table, write_section
from extractor.backbones import open_backbone
from extractor.presets import small
from interpreter.config import InterpreterConfig
from interpreter.counting import cost_of
from interpreter.data import labelled_images
from interpreter.network import Interpreter
from interpreter.scan import selective_scan
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from interpreter.training import Training
from store import Collection, Features, FeatureSpec, FeatureStore, Geometry, Key, Sample
from store.codecs import codec_for

BATCH = 4
TASK = Task(name="vessels", targets=("vessel",))


def arguments(channels: int, length: int, state: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = [
        normal(1, channels, length),
        normal(1, channels, length),
        -torch.rand(channels, state, generator=generator) * state - 0.05,
        normal(1, 4, state, length),
        normal(1, 4, state, length),
        normal(channels),
        normal(channels),
    ]
    return [tensor.to(DEVICE).requires_grad_() for tensor in tensors]


def measure_scan(channels: int, length: int, state: int, repeats: int) -> dict[str, float]:
    """Median ratios of time, reference / auto, and the largest errors relative to the largest value."""
    tensors = arguments(channels, length, state)

    def forward(method: str) -> torch.Tensor:
        with torch.no_grad():
            return selective_scan(*tensors, method=method)  # type: ignore[arg-type]

    def both(method: str) -> tuple[torch.Tensor, ...]:
        y = selective_scan(*tensors, method=method)  # type: ignore[arg-type]
        return torch.autograd.grad(y.square().mean(), tensors)

    found, exact = both("auto"), both("reference")  # also compiles the kernels before they are timed
    gradients = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))
    reference = forward("reference")
    error = float((forward("auto") - reference).abs().max() / reference.abs().max())
    pairs = [(seconds(lambda: forward("reference")), seconds(lambda: forward("auto"))) for _ in range(repeats)]
    pairs_both = [(seconds(lambda: both("reference")), seconds(lambda: both("auto"))) for _ in range(repeats)]
    return {
        "forward_ratio": statistics.median(a / b for a, b in pairs),
        "backward_ratio": statistics.median(a / b for a, b in pairs_both),
        "max_error": error,
        "max_gradient_error": gradients,
    }


def fill_store(folder: Path, spec: FeatureSpec, count: int) -> FeatureStore:
    """Fill a store with drawn photographs and random features; the timings do not depend on feature values."""
    store, random = FeatureStore(folder / "features.zarr"), np.random.default_rng(0)
    side, samples, codec = spec.resolution, [], codec_for(spec)
    for i in range(count):
        key = Key(f"{i:064x}")
        shapes = {b.name: (len(spec.timesteps), b.channels, b.height, b.width) for b in spec.blocks}
        maps = {
            name: codec.encode(name, torch.from_numpy(random.standard_normal(shape, dtype="f4")))
            for name, shape in shapes.items()
        }
        image, vessels = draw_photograph(side, i)
        store.write(spec, key, Features(maps, image.max(axis=2) > 0, Geometry.whole(side, side, side)))
        masks = {"vessel": store.collections.write_mask(vessels)}
        samples.append(Sample(image_id=key.image_id, name=str(i), masks=masks))
    store.collections.write(Collection(name="drawn", samples=tuple(samples)))
    return store


def measure_training(spec: FeatureSpec, config: InterpreterConfig, batches: int) -> dict[str, float]:
    """Median seconds of a step in the second epoch, and the share of that epoch spent waiting for features."""
    with tempfile.TemporaryDirectory() as folder:
        store = fill_store(Path(folder), spec, BATCH * batches + 1)
        images = labelled_images(store, "drawn", None, TASK)
        settings = TrainingSettings(epochs=2, batch=BATCH, evaluate_every=2)
        training = Training(
            store,
            spec,
            TASK,
            images[1:],
            config,
            settings,
            Path(folder) / "run",
            "drawn",
            DEVICE,
            validation=images[:1],
        )
        ends: list[float] = []
        training.run(lambda *_: ends.append(time.perf_counter()))
        last = ends[batches:]
        steps = [b - a for a, b in itertools.pairwise(last)]
        return {"step_seconds": statistics.median(steps), "data_wait_share": training.data_wait_share}


def shrunk(spec: FeatureSpec, factor: int) -> FeatureSpec:
    """A spec with the same blocks at a fraction of their resolution."""
    plain = spec.model_dump()
    for block in plain["blocks"]:
        block["height"] //= factor
        block["width"] //= factor
    return FeatureSpec.model_validate(plain | {"resolution": spec.resolution // factor})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="smaller tensors; writes nothing")
    options = parser.parse_args()
    channels, length, repeats = 256, 1024 if options.quick else 16384, 3
    scans = {state: measure_scan(channels, length, state, repeats) for state in (16, 1)}
    whole = small().spec(open_backbone("small"))
    spec = shrunk(whole, 4) if options.quick else whole
    training = measure_training(spec, InterpreterConfig(), batches=2 if options.quick else 4)
    lines = [
        f"`python benchmarks/interpreter.py` on {DEVICE}. The scan at (1, {channels}, {length}), four groups:",
        "the reference's time over that of the scan that `auto` takes; errors over the largest value.",
        "",
        *table(
            ["state", "forward", "forward and backward", "largest error", "of a gradient"],
            [[state, *(float(value) for value in row.values())] for state, row in scans.items()],
        ),
        "",
        f"One training step, {BATCH} images at {spec.resolution} pixels, one timestep each, {torch.get_num_threads()} "
        f"threads: {training['step_seconds']:.2f} s; {100 * training['data_wait_share']:.1f} % of an epoch of "
        "waiting for features.",
        "",
        *table(["variant", "k weights", "GFLOP for a photograph"], costs(spec)),
    ]
    print("\n".join(lines))
    if not options.quick:
        write_section("Interpreter", lines, device=DEVICE)
    if options.json:
        print(json.dumps(summary(scans) | training | {"device": DEVICE}))


def costs(spec: FeatureSpec) -> list[list[Any]]:
    rows = []
    for name, config in (
        ("v0, VSS up to 128 (default)", InterpreterConfig()),
        ("v0, VSS up to 64 (`lesions`; `fast` has half the steps)", InterpreterConfig(vss_max_size=64)),
        (
            "the same, levels twice as wide (the other shipped ones)",
            InterpreterConfig(vss_max_size=64, width_multiplier=2),
        ),
        ("v0, VSS everywhere (paper)", InterpreterConfig(vss_max_size=512)),
        ("v05, VSS up to 128", InterpreterConfig(vss="v05")),
        ("v05, VSS everywhere", InterpreterConfig(vss="v05", vss_max_size=512)),
        ("mlp", InterpreterConfig(head="mlp")),
    ):
        cost = cost_of(Interpreter(spec, config))
        rows.append([name, cost.parameters / 1e3, cost.flops / 1e9])
    return rows


def summary(scans: dict[int, dict[str, float]]) -> dict[str, Any]:
    return {
        "scan_forward_ratio": {str(state): row["forward_ratio"] for state, row in scans.items()},
        "scan_backward_ratio": {str(state): row["backward_ratio"] for state, row in scans.items()},
        "scan_max_error": max(row["max_error"] for row in scans.values()),
        "scan_max_gradient_error": max(row["max_gradient_error"] for row in scans.values()),
    }


if __name__ == "__main__":
    main()
