"""Measurements of reading features: speed, codec and chunk shape, prefetch depth, memory; used by ``store.py``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import peak_bytes, seconds
from store import Codebook, FeatureSpec, FeatureStore, Key, plan_epoch, stream
from store.arrays import ArrayToWrite, StoredArray, packed
from store.exporting import authors_levels, export_npy
from store.objects import Objects, open_objects

Call = Callable[[], object]
BATCH = 4
ENCODED = ("float16", "int8", "compact")


class Coded(NamedTuple):
    """A spec in one encoding, with the codebook if the encoding needs one."""

    spec: FeatureSpec
    codebook: Codebook | None


def interleaved(calls: Mapping[str, Call], repeats: int, before: Call = lambda: None) -> dict[str, float]:
    """Median seconds of each call; every round runs all of them, and ``before`` ahead of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            before()
            times[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in times.items()}


def forget(folders: Sequence[Path]) -> None:
    """Ask the operating system to drop all files of these folders from its page cache."""
    for folder in folders:
        for path in (p for p in folder.rglob("*") if p.is_file()):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


class AuthorsFiles(Dataset[dict[int, dict[str, torch.Tensor]]]):
    """The authors' way of reading features: np.load of one file for each timestep and level of an image."""

    def __init__(self, folder: Path, timesteps: Sequence[int], levels: Sequence[str], count: int) -> None:
        self._folder, self._timesteps, self._levels, self._count = folder, timesteps, levels, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> dict[int, dict[str, torch.Tensor]]:
        return {
            t: {level: torch.from_numpy(self.load(t, level, row)) for level in self._levels} for t in self._timesteps
        }

    def load(self, t: int, level: str, row: int) -> np.ndarray:
        maps: np.ndarray = np.load(self._folder / f"X_{t}_{level}_{row}.npy")
        return maps

    def load_all(self) -> None:
        for row in range(self._count):
            for t in self._timesteps:
                for level in self._levels:
                    self.load(t, level, row)


def reading(
    store: FeatureStore, specs: dict[str, Coded], work: Path, count: int, repeats: int
) -> Iterator[list[object]]:
    """Images per second of ``stream`` relative to np.load alone and to a DataLoader over the authors' files.

    Yields a row per encoding: its name; over np.load, warm and cold; over the DataLoader, warm and cold; and over the
    DataLoader, warm, with decoding. Cold means that the files were dropped from the page cache.
    """
    exact = specs["float32"].spec
    keys = [key for key in store.keys(exact) if key.view == "identity"][:count]
    folder = work / f"npy-{count}"
    if not (folder / "done").is_file():
        export_npy(store, exact, keys, folder)
        (folder / "done").touch()
    files = AuthorsFiles(folder, exact.timesteps, list(authors_levels(exact)), count)
    everything = [folder, *(Path(store.location) / s.digest / k.image_id for s, _ in specs.values() for k in keys)]

    def read(spec: FeatureSpec, decode: bool) -> None:
        codec = store.codec(spec)
        for batch in stream(store, spec, plan_epoch(spec, keys, BATCH)):
            if decode:
                for name, encoded in batch.maps.items():
                    codec.decode(name, encoded)

    calls: dict[str, Call] = {"loader": lambda: list(DataLoader(files, BATCH)), "np.load": files.load_all}
    calls |= {name: partial(read, spec, False) for name, (spec, _) in specs.items()}
    calls |= {f"{name}, decoded": partial(read, spec, True) for name, (spec, _) in specs.items()}
    interleaved(calls, 1)
    warm = interleaved(calls, repeats)
    cold = interleaved(calls, max(repeats // 2, 1), lambda: forget(everything))
    for name in specs:
        yield [
            name,
            warm["np.load"] / warm[name],
            cold["np.load"] / cold[name],
            warm["loader"] / warm[name],
            cold["loader"] / cold[name],
            warm["loader"] / warm[f"{name}, decoded"],
        ]


def choices(store: FeatureStore, specs: dict[str, Coded], repeats: int) -> Iterator[list[object]]:
    """Compression and reading speed of one entry for each encoding, lossless codec and chunk shape.

    Yields rows: encoding, codec, chunk shape, float32 bytes / stored bytes, and the speeds of reading all and of
    reading one timestep, relative to lz4-bits with a chunk per timestep.
    """
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
    target = open_objects("memory://")
    for name, values in arrays.items():
        for below, data in packed(ArrayToWrite(values, ("t", "c", "h", "w"), by_row, codec)).items():
            target.put(f"{name}/{below}", *data)
    return target


def read_all(objects: Objects, arrays: list[str], rows: list[int] | None) -> None:
    for name in arrays:
        shard = f"{name}/c/0/0/0/0"
        StoredArray(objects, name, objects.get(f"{name}/zarr.json"), objects.size(shard)).read(rows)


def prefetching(store: FeatureStore, spec: FeatureSpec, repeats: int) -> list[list[object]]:
    """Speed of an epoch by the number of batches ahead, relative to 0; the consumer works as long as reading takes."""
    keys = [key for key in store.keys(spec) if key.view == "identity"][:8]
    plans = plan_epoch(spec, keys, 2)
    pause = seconds(lambda: list(stream(store, spec, plans, prefetch=0))) / len(plans)

    def epoch(depth: int) -> None:
        for _ in stream(store, spec, plans, prefetch=depth):
            time.sleep(pause)

    found = interleaved({str(depth): partial(epoch, depth) for depth in (0, 1, 3)}, repeats)
    return [[depth, found["0"] / value] for depth, value in found.items()]


def peak_memory(location: Path, digest: str, images: int) -> int:
    """Peak resident bytes of a separate process that streams so many images, cycling through the stored ones."""
    call = [sys.executable, str(Path(__file__).with_name("store.py")), "--stream", str(location), digest, str(images)]
    return int(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def stream_images(location: str, digest: str, images: int) -> None:
    store = FeatureStore(location, read_only=True)
    spec = store.spec(digest)
    keys: list[Key] = list(store.keys(spec))
    for _ in stream(store, spec, plan_epoch(spec, [keys[i % len(keys)] for i in range(images)], 4, seed=0)):
        pass
    print(peak_bytes())
