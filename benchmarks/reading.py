"""How fast features are read, and the choices that decide it: codec, chunk, prefetch depth."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from zarr.storage import MemoryStore

from store import Codebook, FeatureSpec, FeatureStore, Key, plan_epoch, stream
from store.arrays import ArrayToWrite, StoredArray, stage
from store.exporting import authors_levels, export_npy
from store.objects import Objects, held_in_memory

Call = Callable[[], object]
ENCODED = ("float16", "int8", "compact")


class Coded(NamedTuple):
    """A spec in one encoding."""

    spec: FeatureSpec
    codebook: Codebook | None


def seconds(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def interleaved(calls: Mapping[str, Call], repeats: int, before: Call = lambda: None) -> dict[str, float]:
    """Median seconds of each call; every round runs all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            before()
            times[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in times.items()}


def forget(folders: Sequence[Path]) -> None:
    """Ask the system to drop what it holds of these files in memory."""
    for folder in folders:
        for path in (p for p in folder.rglob("*") if p.is_file()):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def reading(store: FeatureStore, specs: dict[str, Coded], work: Path, count: int, repeats: int) -> dict[str, Any]:
    """Images per second of ``stream`` over those of np.load: warm, cold, and one timestep at a time."""
    exact = specs["float32"].spec
    keys = [key for key in store.keys(exact) if key.view == "identity"][:count]
    files = work / f"npy-{count}"
    if not (files / "done").is_file():
        export_npy(store, exact, keys, files)
        (files / "done").touch()
    names = [
        f"X_{t}_{level}_{row}.npy" for row in range(count) for t in exact.timesteps for level in authors_levels(exact)
    ]
    folders = [
        files,
        *(Path(store.location) / spec.digest / key.image_id for spec, _ in specs.values() for key in keys),
    ]

    def load(paths: Sequence[str]) -> None:
        for name in paths:
            np.load(files / name)

    def read(spec: FeatureSpec, one_timestep: bool) -> None:
        for _ in stream(store, spec, plan_epoch(spec, keys, 4, one_timestep=one_timestep)):
            pass

    ratios: dict[str, Any] = {}
    at_one_t = [name for name in names if name.startswith(f"X_{exact.timesteps[0]}_")]
    for case, one_timestep, before in (
        ("warm", False, lambda: None),
        ("cold", False, lambda: forget([files, *folders])),
        ("one timestep, warm", True, lambda: None),
    ):
        calls: dict[str, Callable[[], object]] = {
            "np.load": lambda paths=at_one_t if one_timestep else names: load(paths)
        }
        calls |= {name: lambda spec=spec, one=one_timestep: read(spec, one) for name, (spec, _) in specs.items()}
        if case == "warm":
            interleaved(calls, 1, before)
        found = interleaved(calls, repeats, before)
        ratios[case] = {name: found["np.load"] / found[name] for name in specs}
    return ratios


def choices(store: FeatureStore, specs: dict[str, Coded], repeats: int) -> Iterator[list[object]]:
    """Size and reading time of one entry for each lossless codec and chunk shape, as ratios to the first."""
    for name in ENCODED:
        spec = specs[name].spec
        key = next(iter(store.keys(spec)))
        entry = store.entry(spec, key)
        arrays = {block.name: entry.encoded(block.name).values for block in spec.blocks}
        stored = {}
        for codec in ("lz4", "lz4-bits", "zstd-bits"):
            for by_row in (True, False):
                objects = in_memory(arrays, codec, by_row)
                stored[codec, by_row] = objects, sum(len(objects.get(k)) for k in objects.keys(""))
        whole = {str(choice): partial(read_all, objects, list(arrays), None) for choice, (objects, _) in stored.items()}
        first = {str(choice): partial(read_all, objects, list(arrays), [0]) for choice, (objects, _) in stored.items()}
        whole_seconds, first_seconds = interleaved(whole, repeats), interleaved(first, repeats)
        base = str(("lz4-bits", True))
        for choice, (_, size) in stored.items():
            how = "timestep" if choice[1] else "block"
            ratio = spec.float32_bytes() / size
            speeds = [of[base] / of[str(choice)] for of in (whole_seconds, first_seconds)]
            yield [name, choice[0], how, ratio, *speeds]


def in_memory(arrays: dict[str, np.ndarray], codec: Any, by_row: bool) -> Objects:
    staged = MemoryStore()
    for name, values in arrays.items():
        stage(staged, name, ArrayToWrite(values, ("t", "c", "h", "w"), by_row, codec))
    target = Objects(MemoryStore(), "memory://")
    for key, data in held_in_memory(staged):
        target.put(key, data)
    return target


def read_all(objects: Objects, arrays: list[str], rows: list[int] | None) -> None:
    for name in arrays:
        shard = f"{name}/c/0/0/0/0"
        StoredArray(objects, name, objects.get(f"{name}/zarr.json"), objects.size(shard)).read(rows)


def prefetching(store: FeatureStore, spec: FeatureSpec, repeats: int) -> list[list[object]]:
    """Time of an epoch with a consumer that works as long as reading takes, over that without prefetching."""
    keys = [key for key in store.keys(spec) if key.view == "identity"][:8]
    plans = plan_epoch(spec, keys, 2)
    pause = seconds(lambda: list(stream(store, spec, plans, prefetch=1))) / len(plans)

    def epoch(depth: int) -> None:
        for _ in stream(store, spec, plans, prefetch=depth):
            time.sleep(pause)

    found = interleaved({str(depth): partial(epoch, depth) for depth in (1, 2, 4)}, repeats)
    return [[depth, found["1"] / value] for depth, value in found.items()]


def peak_memory(location: Path, digest: str, images: int) -> int:
    """Peak resident bytes of a process that streams so many images (the stored ones, over and over)."""
    call = [sys.executable, str(Path(__file__).with_name("store.py")), "--stream", str(location), digest, str(images)]
    return int(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def stream_images(location: str, digest: str, images: int) -> None:
    store = FeatureStore(location, read_only=True)
    spec = store.spec(digest)
    keys: list[Key] = list(store.keys(spec))
    for _ in stream(store, spec, plan_epoch(spec, [keys[i % len(keys)] for i in range(images)], 4, seed=0)):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
