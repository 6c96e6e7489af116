"""The feature store: size, Dice and reading speed of every encoding, and its choices of codec, chunks and prefetch.

    python benchmarks/store.py --data DATA --work FOLDER [--json] [--seeds 0 1]
    python benchmarks/store.py --quick [--json]

DATA holds STARE, HRF_1024 and CHASE_DB1. Features (20 GB) and trainings are kept in FOLDER, so that a
run which was stopped resumes; on two cores the trainings, one per encoding and seed, take about 20 minutes
each. --quick does everything on six drawn photographs at 128 pixels and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # in place of this file's folder, whose store.py would shadow `store`

import numpy as np
import torch

from benchmarks.drawn import draw_data
from benchmarks.measuring import say
from benchmarks.reading import Coded, choices, peak_memory, prefetching, reading, stream_images
from benchmarks.report import table, write_section
from extractor.backbones import codebook_for, encoding_of, open_backbone
from extractor.datasets import DataSet, load_dataset, of_split
from extractor.extraction import Extractor
from extractor.presets import small
from extractor.runs import extract_dataset
from interpreter.checkpoint import load_interpreter
from interpreter.config import InterpreterConfig
from interpreter.data import labelled_images
from interpreter.evaluation import evaluate
from interpreter.metrics import bootstrap_interval
from interpreter.settings import TrainingSettings
from interpreter.task import Task
from interpreter.training import Training
from store import Features, FeatureStore, FloatEncoding
from store.codecs import codec_for
from store.exporting import authors_levels
from store.spec import EncodingName

ENCODINGS: tuple[EncodingName, ...] = ("float32", "float16", "int8", "compact")
TASK = Task(name="vessels", targets=("vessel",))
TRAIN, TEST = ("stare", "hrf"), "chase_db1"


def coded_specs(resolution: int) -> dict[str, Coded]:
    """The spec of the small preset in every encoding, by name."""
    recipe = replace(small(), resolution=resolution, encoding=FloatEncoding(kind="float32"))
    spec = recipe.spec(open_backbone(recipe.backbone))
    specs = {name: spec.with_encoding(encoding_of(name, recipe.backbone)) for name in ENCODINGS}
    return {name: Coded(coded, codebook_for(coded, recipe.backbone)) for name, coded in specs.items()}


def of_one_split(dataset: DataSet, split: str | None) -> DataSet:
    return replace(dataset, photographs=tuple(of_split(dataset.photographs, split)) if split else dataset.photographs)


def fill(store: FeatureStore, specs: dict[str, Coded], sets: Sequence[tuple[DataSet, tuple[str, ...]]]) -> None:
    """Extract the features once, as float32, and write them in every other encoding."""
    exact = specs["float32"].spec
    extractor = Extractor(open_backbone(small().backbone), exact)
    for dataset, views in sets:
        say(f"extracting {dataset.name}")
        extract_dataset(dataset, store, extractor, views=views)
    for name in ENCODINGS[1:]:
        say(f"encoding as {name}")
        spec, codebook = specs[name]
        codec = codec_for(spec, codebook)
        store.register(spec, small().backbone, codebook)
        for key in store.keys(exact):
            if not store.has(spec, key):
                entry = store.entry(exact, key)
                blocks = {b.name: codec.encode(b.name, torch.from_numpy(entry.read(b.name))) for b in spec.blocks}
                store.write(spec, key, Features(blocks, entry.fov, entry.geometry))


def bytes_ratios(store: FeatureStore, specs: dict[str, Coded]) -> dict[str, float]:
    """Size of the authors' float32 .npy files over the stored size, of all identity views, for each encoding."""
    spec = specs["float32"].spec
    header = 128 * len(spec.timesteps) * len(authors_levels(spec))
    ratios = {}
    for name, (one, _) in specs.items():
        sizes = [store.stored_bytes(one, key) or 0 for key in store.keys(one) if key.view == "identity"]
        ratios[name] = len(sizes) * (spec.float32_bytes() + header) / sum(sizes)
    return ratios


def dice(
    store: FeatureStore, specs: dict[str, Coded], settings: TrainingSettings, work: Path, seeds: Sequence[int]
) -> dict[str, list[np.ndarray]]:
    """Train and test an interpreter for each encoding and seed: {encoding: [Dice of every test image, per seed]}."""
    scores: dict[str, list[np.ndarray]] = {name: [] for name in ENCODINGS}
    images = [image for name in TRAIN for image in labelled_images(store, name, None, TASK)]
    test = labelled_images(store, TEST, None, TASK)
    config = InterpreterConfig(classes=2, vss_max_size=64)
    for seed in seeds:
        for name, (spec, _) in specs.items():
            say(f"training on {name}, seed {seed}")
            folder = work / f"training-{name}-{seed}"
            seeded = settings.model_copy(update={"seed": seed})
            Training(store, spec, TASK, images, config, seeded, folder, small().backbone).run()
            found = evaluate(load_interpreter(folder)[0], store, spec, TASK, test)
            scores[name].append(np.array([image.dice for image in found.images]))
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--work", type=Path, help="kept; a temporary folder if not given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stream", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        stream_images(options.stream[0], options.stream[1], int(options.stream[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        results, lines = measure(options, options.work or Path(temporary))
    print("\n".join(lines))
    if not options.quick:
        write_section("Feature store", lines)
    if options.json:
        print(json.dumps(results))


def measure(options: argparse.Namespace, work: Path) -> tuple[dict[str, Any], list[str]]:
    quick: bool = options.quick
    views = ("identity",) if quick else ("identity", "photometric-0", "photometric-1")
    data = draw_data(work / "drawn", 2) if quick else options.data
    places = {"stare": f"stare:{data}/STARE", "hrf": f"hrf:{data}/HRF_1024", "chase_db1": f"chase_db1:{data}/CHASE_DB1"}
    splits = {"stare": None, "hrf": "train", "chase_db1": "test"}
    if quick:
        places, splits = {n: f"folder:{data}/{n}" for n in places}, dict.fromkeys(places)
    sets = [
        (of_one_split(load_dataset(place, name), splits[name]), ("identity",) if name == TEST else views)
        for name, place in places.items()
    ]
    specs = coded_specs(128 if quick else 512)
    store = FeatureStore(work / "features.zarr")
    fill(store, specs, sets)
    repeats = 1 if quick else 7
    settings = TrainingSettings(
        epochs=1 if quick else options.epochs,
        learning_rate=2e-3,
        decay="cosine",
        views=views,
        evaluate_every=10,
        validation_share=0.34 if quick else 0.15,
    )
    scores = dice(store, specs, settings, work, options.seeds)
    sizes = bytes_ratios(store, specs)
    rates = list(reading(store, specs, work, 4 if quick else 8, repeats))
    digest = specs["int8"].spec.digest
    memory = {n: peak_memory(work / "features.zarr", digest, n) for n in ((4, 12) if quick else (20, 200))}
    small_count, large_count = memory
    results = {
        "bytes_ratio": sizes,
        "dice": {name: float(np.mean(of_seed)) for name, of_seed in scores.items()},
        "dice_by_seed": {name: [float(one.mean()) for one in of_seed] for name, of_seed in scores.items()},
        "read_ratio": {row[0]: row[1] for row in rates},
        "read_ratio_cold": {row[0]: row[2] for row in rates},
        "read_ratio_batches": {row[0]: row[3] for row in rates},
        "read_ratio_batches_cold": {row[0]: row[4] for row in rates},
        "read_ratio_batches_decoded": {row[0]: row[5] for row in rates},
        "peak_memory_ratio": memory[large_count] / memory[small_count],
        "images": sum(1 for key in store.keys(specs["int8"].spec) if key.view == "identity"),
        "seeds": options.seeds,
        "epochs": settings.epochs,
    }
    ahead = prefetching(store, specs["int8"].spec, repeats)
    return results, report(results, scores, rates, list(choices(store, specs, repeats)), ahead)


Rows = list[list[object]]


def report(
    results: dict[str, Any], scores: dict[str, list[np.ndarray]], rates: Rows, chosen: Rows, prefetch: Rows
) -> list[str]:
    exact = np.stack(scores["float32"])
    rows = []
    for name in ENCODINGS:
        lost = 100 * (np.stack(scores[name]) - exact)
        low, high = bootstrap_interval(lost.mean(axis=0))
        against = f"{lost.mean():+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append([name, results["bytes_ratio"][name], f"{100 * results['dice'][name]:.2f}", against])
    return [
        f"`python benchmarks/store.py`: {results['images']} photographs, the small preset. Dice on CHASE_DB1's test "
        f"images of an interpreter trained on that encoding (STARE and HRF_1024's training split, {results['epochs']} "
        f"epochs; seeds {', '.join(map(str, results['seeds']))}); the interval is over test images.",
        "",
        *table(["encoding", "float32 .npy / bytes", "Dice", "against float32 (95 %)"], rows),
        "",
        "Images per second of `store.batches.stream`, in batches of four and all timesteps, encoded as a GPU would be "
        "sent them, over `np.load` alone of the authors' files, and over the batches that torch's DataLoader makes of "
        "those files; the last column is decoded on the CPU as well. Cold: the system was asked to forget the files.",
        "",
        *table(
            [
                "encoding",
                "/ np.load, warm",
                "cold",
                "/ DataLoader, warm",
                "cold",
                "decoded on the CPU / DataLoader, warm",
            ],
            rates,
        ),
        "",
        f"Peak memory of a process that streams ten times as many int8 images: {results['peak_memory_ratio']:.2f}.",
        "",
        "Lossless codec and chunk, one entry in memory; speed is relative to lz4-bits by timestep:",
        "",
        *table(["encoding", "codec", "chunk", "float32 / bytes", "read all", "read one timestep"], chosen),
        "",
        "Prefetch depth, speed relative to no batch ahead, with a consumer that works as long as reading takes:",
        "",
        *table(["batches ahead", "speed"], prefetch),
    ]


if __name__ == "__main__":
    main()
