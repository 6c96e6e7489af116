"""Extraction: throughput against the plain loop, roofline share, scaling with workers, memory, accuracy.

    python benchmarks/extract.py [--json] [--photographs FOLDER]
    python benchmarks/extract.py --quick [--json]

Measures the small preset from files to stored bytes; what a ratio compares is run alternately. Photographs are
drawn if no folder is given. The full run takes about a quarter of an hour on two cores and writes its table into
docs/benchmarks.md; --quick uses fewer and smaller photographs and writes nothing. A CUDA device is used if there
is one, in full float32 (no TF32); the speedup by two workers is measured on CPUs only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # in place of this file's folder, whose modules would shadow packages

import numpy as np
import torch
from distributed import Client
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.drawn import draw_photograph
from benchmarks.measuring import DEVICE, peak_bytes, say, seconds
from benchmarks.plain import PlainLoop
from benchmarks.report import device_name, table, write_section
from extractor.backbone import Backbone
from extractor.backbone_folder import load_backbone
from extractor.backbones import backbone_source, open_backbone
from extractor.cluster import ExtractionJob, connected, extract_on_cluster
from extractor.cuda.recording import WARMUP_RUNS
from extractor.datasets import DataSet, Selection, load_dataset
from extractor.execution import Execution
from extractor.extraction import Extractor
from extractor.pipeline import default_batch
from extractor.presets import Preset, small
from extractor.request import Request
from extractor.runs import extract_dataset
from store import FeatureStore, FloatEncoding


@dataclass(frozen=True)
class Scale:
    """The size of a run.

    Attributes:
        resolution: side of the network's square, in pixels.
        photographs: number of photographs that a timed run extracts.
        rounds: repeats of every comparison, of which the median is reported.
        memory: numbers of views whose peak memory is compared.
    """

    resolution: int
    photographs: int
    rounds: int
    memory: tuple[int, int]


FULL = Scale(512, 8 if DEVICE == "cpu" else 96, 3, (10, 100))
QUICK = Scale(128, 3, 2, (3, 24) if DEVICE == "cpu" else (16, 64))


def seconds_alone_on_disk(run: Callable[[Path], object], work: Path) -> float:
    """Time a run into an empty folder; syncs before and deletes after, so that its writes do not slow the next run."""
    folder = work / "run"
    folder.mkdir()
    os.sync()
    taken = seconds(lambda: run(folder))
    shutil.rmtree(folder)
    return taken


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        Image.fromarray(draw_photograph(960, i)[0]).save(folder / f"eye{i}.jpg", quality=92)
    return folder


def part(dataset: DataSet, count: int) -> DataSet:
    return replace(dataset, photographs=dataset.photographs[:count])


def throughput(scale: Scale, recipe: Preset, dataset: DataSet, work: Path) -> dict[str, float]:
    """Images per second relative to the plain loop, from files to files, and the effect of the batch size."""
    network = open_backbone(recipe.backbone, device=DEVICE)
    spec = recipe.spec(network)
    plain, extractor = PlainLoop(recipe.backbone, spec, DEVICE), Extractor(network, spec)
    photographs = part(dataset, scale.photographs)
    paths = [p.image for p in photographs.photographs]
    batch = default_batch(DEVICE, spec.entry_bytes())

    def ours(batch: int) -> float:
        return seconds_alone_on_disk(
            lambda folder: extract_dataset(photographs, FeatureStore(folder), extractor, batch=batch), work
        )

    for size in (batch, 1, batch):  # recording a CUDA graph empties torch's cache of page-locked memory: not in a round
        ours(size)
    ratios, alone = [], []
    for _ in range(scale.rounds):
        usual = seconds_alone_on_disk(lambda folder: plain.run(paths, folder), work)
        quick = ours(batch)
        ratios.append(usual / quick)
        alone.append(quick / ours(1))
        say(f"plain loop / ours: {ratios[-1]:.2f}; one photograph in a forward: {alone[-1]:.2f} of the speed")
    return {
        "throughput_ratio": statistics.median(ratios),
        "one_in_a_forward": statistics.median(alone),
        "batch": batch,
    }


def difference(recipe: Preset, dataset: DataSet, work: Path) -> float:
    """Largest difference from the plain loop's features relative to their largest value, in batches of one and two."""
    network = open_backbone(recipe.backbone, device=DEVICE)
    spec = replace(recipe, encoding=FloatEncoding(kind="float32")).spec(network)
    extractor, photographs = Extractor(network, spec), dataset.photographs[:2]
    folder = work / "exact"
    folder.mkdir()
    PlainLoop(recipe.backbone, spec, DEVICE).run([p.image for p in photographs], folder)
    prepared = [extractor.prepare(p.image.read_bytes()) for p in photographs]
    alone = [extractor.features([one])[0] for one in prepared]
    worst = 0.0
    for one, first in zip(prepared, alone, strict=True):
        again = extractor.features([one])[0]
        assert all(np.array_equal(again.maps[b.name].values, first.maps[b.name].values) for b in spec.blocks)
    for found in (alone, extractor.features(prepared)):
        for photograph, features in zip(photographs, found, strict=True):
            for block in spec.blocks:
                for t, maps in zip(spec.timesteps, features.maps[block.name].values, strict=True):
                    expected = np.load(folder / f"{photograph.image.stem}_{block.name}_{t}.npy")
                    worst = max(worst, float(np.abs(maps - expected).max() / np.abs(expected).max()))
    return worst


def roofline(scale: Scale, recipe: Preset) -> dict[str, float]:
    """FLOP/s of a forward pass relative to those of the fastest square matrix product, both float32.

    FLOP are counted as for direct convolutions, so an algorithm that needs fewer may have a share above one.
    On a GPU the forward pass has the batch size of a run.
    """
    usual = load_backbone(backbone_source(recipe.backbone)).to(DEVICE)
    quick = open_backbone(recipe.backbone, device=DEVICE)
    batch = 1 if DEVICE == "cpu" else default_batch(DEVICE, recipe.spec(quick).entry_bytes())
    x = torch.randn(batch, 3, scale.resolution, scale.resolution, device=DEVICE)
    blocks = [f"block_{i}" for i in recipe.blocks]
    with FlopCounterMode(display=False) as counter:
        usual.estimate(x, 10, blocks)
    matrices = {n: (torch.randn(n, n, device=DEVICE), torch.randn(n, n, device=DEVICE)) for n in (1024, 2048, 4096)}

    def forward(backbone: Backbone) -> float:
        return counter.get_total_flops() / min(
            seconds(lambda: backbone.estimate(x, 10, blocks)) for _ in range(WARMUP_RUNS + 2)
        )

    shares: dict[str, list[float]] = {"roofline_share": [], "of torch": []}
    for backbone in (usual, quick):
        backbone.estimate(x, 10, blocks)
    for _ in range(scale.rounds):
        best = max(2 * n**3 / min(seconds(lambda a=a, b=b: a @ b) for _ in range(2)) for n, (a, b) in matrices.items())
        shares["of torch"].append(forward(usual) / best)
        shares["roofline_share"].append(forward(quick) / best)
    return {name: statistics.median(found) for name, found in shares.items()}


def workers(scale: Scale, recipe: Preset, dataset: DataSet, work: Path) -> dict[str, float]:
    """Speedup of two single-threaded Dask workers over one, for extraction and for matrix products alone.

    The second is the limit of the machine, whose cores may share a clock, caches or units of one physical core.
    """
    spec = recipe.spec(open_backbone(recipe.backbone))
    photographs = part(dataset, 4 * scale.photographs)  # enough tasks for the last ones to weigh little
    request = Request(Selection(f"folder:{photographs.photographs[0].image.parent}"), spec, recipe.backbone)

    def extract(client: Client) -> float:
        def run(folder: Path) -> None:
            job = ExtractionJob(request, str(folder), Execution(workers=len(client.nthreads())))
            extract_on_cluster(photographs, job, client)

        return seconds_alone_on_disk(run, work)

    with ExitStack() as stack:
        clients = {n: stack.enter_context(connected(None, n)) for n in (1, 2)}
        for n, client in clients.items():
            client.wait_for_workers(n)
            extract(client)
        ratios, limits = [], []
        for _ in range(scale.rounds):
            taken = {n: extract(client) for n, client in clients.items()}
            made = {n: sum(client.run(products_per_second).values()) for n, client in clients.items()}
            ratios.append(taken[1] / taken[2])
            limits.append(made[2] / made[1])
            say(f"two workers over one: {ratios[-1]:.2f}; of matrix products alone: {limits[-1]:.2f}")
    return {"two_worker_speedup": statistics.median(ratios), "two_worker_limit": statistics.median(limits)}


def products_per_second() -> float:
    """Matrix products per second of one thread, measured for three seconds."""
    torch.set_num_threads(1)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    made, started = 0, time.perf_counter()
    while time.perf_counter() < started + 3:
        a @ b
        made += 1
    return made / (time.perf_counter() - started)


def peak_memory(count: int, photographs: Path, resolution: int) -> float:
    """Peak resident bytes of a separate process that extracts ``count`` views."""
    call = [sys.executable, __file__, "--memory-of", str(count), str(resolution), "--photographs", str(photographs)]
    return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def extract_views(count: int, photographs: Path, resolution: int) -> None:
    recipe = replace(small(), resolution=resolution)
    network = open_backbone(recipe.backbone, device=DEVICE)
    spec, dataset = recipe.spec(network), load_dataset(f"folder:{photographs}")
    views = ("identity", *(f"photometric-{i}" for i in range(-(-count // len(dataset.photographs)) - 1)))
    with tempfile.TemporaryDirectory() as folder:
        extract_dataset(
            part(dataset, min(count, len(dataset.photographs))),
            FeatureStore(folder),
            Extractor(network, spec),
            views=views,
            batch=default_batch(DEVICE, spec.entry_bytes()),
        )
    print(peak_bytes())


def measure(scale: Scale, photographs: Path, work: Path) -> dict[str, float | str | None]:
    recipe, dataset = replace(small(), resolution=scale.resolution), load_dataset(f"folder:{photographs}")
    figures: dict[str, float | str | None] = dict(throughput(scale, recipe, dataset, work))
    figures |= roofline(scale, recipe)
    say(f"share of the best matrix product: {figures['roofline_share']:.2f}")
    if DEVICE == "cpu":
        figures |= workers(scale, recipe, dataset, work)
    else:
        figures |= {"two_worker_speedup": None, "two_worker_limit": None}
    few, many = (peak_memory(count, photographs, scale.resolution) for count in scale.memory)
    figures["peak_memory_ratio"] = many / few
    figures["max_relative_difference"] = difference(recipe, dataset, work)
    figures["device"] = DEVICE
    return figures


def lines(figures: dict[str, float | str | None], scale: Scale) -> list[str]:
    few, many = scale.memory
    told = {
        "throughput_ratio": "images per second, files to stored bytes, over the plain loop",
        "one_in_a_forward": f"speed with one photograph in a forward instead of {figures['batch']}",
        "roofline_share": "FLOP/s of a forward, counted as direct convolutions, over the best matrix product",
        "of torch": "the same of torch's own convolutions",
        "two_worker_speedup": "two Dask workers of one thread over one",
        "two_worker_limit": "the same of matrix products that these workers make: what the machine has to give",
        "peak_memory_ratio": f"peak memory, {many} images over {few}",
        "max_relative_difference": "largest difference to the plain loop's features over their largest value",
    }
    return [
        "`python benchmarks/extract.py`: the small preset at 512 pixels, int8. The plain loop is "
        "`benchmarks/plain.py`: same weights, float32, default memory format, one photograph at a time, "
        "hooks, `.npy` written in the loop" + ("; convolutions in all bits, no TF32." if DEVICE != "cpu" else "."),
        "",
        *table(
            [f"on {device_name(DEVICE)}", ""],
            [[text, figures[name]] for name, text in told.items() if figures[name] is not None],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of photographs; drawn if not given")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", type=int, nargs=2, metavar=("COUNT", "RESOLUTION"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        extract_views(given.memory_of[0], given.photographs, given.memory_of[1])
        return
    torch.backends.cudnn.allow_tf32 = False  # for the plain loop; the extractor's float32 never uses TF32
    scale = QUICK if given.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        figures = measure(scale, given.photographs or draw(work / "drawn", 4 * scale.photographs), work)
    text = lines(figures, scale)
    print("\n".join(text))
    if not given.quick:
        write_section("Extraction", text, device=DEVICE)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
