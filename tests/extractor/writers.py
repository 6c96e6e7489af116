"""Processes that write into one store, and what happens to them. A program of its own, because it forks.

    python -m tests.extractor.writers kill STORE PHOTOGRAPHS KILLS
    python -m tests.extractor.writers together STORE PHOTOGRAPHS
    python -m tests.extractor.writers full FOLDER PHOTOGRAPHS      (FOLDER is a small tmpfs)

Prints one JSON object. Every finished write is noted in STORE.log, so that one written twice is seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from extractor.architectures import tiny_unet
from extractor.backbone import Backbone
from extractor.datasets import load_dataset
from extractor.diffusion import Diffusion
from extractor.extraction import Extractor
from extractor.runs import RunReport, extract_dataset
from extractor.schedule import noise_schedule
from extractor.unet import build_unet
from store import Features, FeatureSpec, FeatureStore, Key, StoreFull, parse_views
from store.repairing import check
from tests.conftest import TINY

VIEWS = parse_views("identity,flips,photometric:72")  # enough that fifty runs cannot finish them


class NotedStore(FeatureStore):
    """Notes every write behind its completion."""

    def write(self, spec: FeatureSpec, key: Key, features: Features) -> int:
        written = super().write(spec, key, features)
        with Path(f"{self.location}.log").open("a") as log:
            log.write(f"{key.image_id} {key.view}\n")
        return written


def extract(store: Path, photographs: Path) -> RunReport:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = Backbone(build_unet(tiny_unet()), Diffusion(noise_schedule("cosine-200"), "v_prediction"), tiny_unet())
    dataset = load_dataset(f"folder:{photographs}", "eyes")
    return extract_dataset(dataset, NotedStore(store), Extractor(backbone, TINY.spec(backbone)), views=VIEWS)


def in_child(work: Callable[[], object]) -> int:
    """Fork; the child works and leaves, its process number is returned."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def finished(child: int) -> bool:
    return os.waitpid(child, 0)[1] == 0


def kill(store: Path, photographs: Path, kills: int) -> dict[str, object]:
    """Kill as many runs: some while they start, others within the writes that follow none to three finished ones."""
    chance = random.Random(0)
    for _ in range(kills):
        enough = len(noted(store)) + chance.randrange(4)
        child = in_child(lambda: extract(store, photographs))
        while len(noted(store)) < enough:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit("a run ended before it was killed")
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(child, signal.SIGKILL)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            raise SystemExit("a run ended before it was killed")
    complete_before = len(noted(store))
    return {"kills": kills, "before_the_last_run": complete_before} | last(store, photographs)


def together(store: Path, photographs: Path) -> dict[str, object]:
    children = [in_child(lambda: extract(store, photographs)) for _ in range(2)]
    return {"succeeded": [finished(child) for child in children]} | last(store, photographs)


def full(folder: Path, photographs: Path) -> dict[str, object]:
    store = folder / "store"
    try:
        extract(store, photographs)
    except StoreFull as error:
        message = str(error)
    else:
        raise SystemExit("expected the store to be full")
    before = len(noted(store))
    subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
    return {"message": message, "before_the_last_run": before} | last(store, photographs)


def noted(store: Path) -> list[str]:
    log = Path(f"{store}.log")
    return log.read_text().splitlines() if log.exists() else []


def last(store: Path, photographs: Path) -> dict[str, object]:
    """One run to the end, and what the store holds then."""
    report = extract(store, photographs)
    features = FeatureStore(store)
    spec = features.specs()[0]
    keys = list(features.keys(spec))
    return {
        "expected": len(VIEWS) * len(load_dataset(f"folder:{photographs}", "eyes").photographs),
        "entries": len(keys),
        "last_run": report.counts(),
        "problems": [problem for one in check(features, [spec]) for problem in one.problems],
        "masks": len(features.objects.names("labels")),
        "noted": len(noted(store)),
        "noted_once": len(set(noted(store))),
        "claims_left": features.objects.keys("claims"),
    }


if __name__ == "__main__":
    mode, place, images, *more = sys.argv[1:]
    match mode:
        case "kill":
            result = kill(Path(place), Path(images), int(more[0]))
        case "together":
            result = together(Path(place), Path(images))
        case "full":
            result = full(Path(place), Path(images))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(result))
