"""Segmenting one photograph with a shipped model, from bytes to mask: time and memory on two cores, or with a GPU.

    python benchmarks/photograph.py [--json] [--quick] [--model vessels] [--device cuda]

Prints the measurements and writes them into docs/benchmarks.md; with --json the last line is one JSON object.
``seconds`` is wall-clock time; ``processor_seconds`` is the processor time of both cores together, which does not
depend on what else runs on them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])
THREADS = 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # must be set before torch is loaded

import cv2
import numpy as np

from benchmarks.report import device_name, table, write_section


def renamed_copies(count: int) -> list[bytes]:
    """Copies of scikit-image's retina that differ in one dark pixel, so that no two have the same bytes (PNG)."""
    data = files("skimage.data").joinpath("retina.jpg").read_bytes()
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    copies = []
    for i in range(count):
        pixels[0, 0] = i
        ok, encoded = cv2.imencode(".png", pixels)
        assert ok
        copies.append(encoded.tobytes())
    return copies


def measure(model: str, count: int, device: str) -> dict[str, Any]:
    started = time.perf_counter()
    import torch

    from benchmarks.measuring import peak_bytes
    from service.engine import load_engine

    with tempfile.TemporaryDirectory() as folder:
        engine = load_engine(model, Path(folder) / "features.zarr", device=device)
        loading = time.perf_counter() - started
        clock: list[float] = []
        processor: list[float] = []
        stages: dict[str, list[float]] = {}
        for data in renamed_copies(count):
            at, spent = time.perf_counter(), time.process_time()
            answer = engine.segment(data)
            clock.append(time.perf_counter() - at)
            processor.append(time.process_time() - spent)
            for stage, seconds in answer.seconds.items():
                stages.setdefault(stage, []).append(seconds)
    warm = slice(1, None)  # the first photograph compiles kernels
    return {
        "model": model,
        "device": device_name(device),
        "device_memory_gb": 0.0 if device == "cpu" else torch.cuda.max_memory_reserved(device) / 1e9,
        "threads": THREADS,
        "seconds": statistics.median(clock[warm]),
        "processor_seconds": statistics.median(processor[warm]),
        "first_seconds": clock[0],
        "load_seconds": loading,
        "stage_seconds": {stage: statistics.median(seconds[warm]) for stage, seconds in stages.items()},
        "peak_memory_gb": peak_bytes() / 1e9,
        "photographs": count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two photographs, and docs/benchmarks.md stays as it is")
    parser.add_argument("--model", default="vessels")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    result = measure(chosen.model, 2 if chosen.quick else 6, chosen.device)
    stages = {name: value / result["seconds"] for name, value in result["stage_seconds"].items()}
    on_cpu = chosen.device == "cpu"
    lines = [
        f"`{result['model']}`, a photograph of 1411 x 1411 pixels, {THREADS} threads, models loaded. Peak memory",
        f"of the whole process, loading included: {result['peak_memory_gb']:.2f} GB. What the first photograph takes",
        f"over the median of the others: {result['first_seconds'] / result['seconds']:.3g}.",
        *([] if on_cpu else [f"{result['device']}, of whose memory {result['device_memory_gb']:.2f} GB are taken."]),
        "",
        *table(["stage", "share of the time from bytes to mask"], sorted(stages.items(), key=lambda item: -item[1])),
    ]
    print("\n".join(lines))
    if not chosen.quick:
        write_section("A photograph", lines, device=chosen.device)
    if chosen.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
