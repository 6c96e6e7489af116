"""The service under load: overhead, caches, many clients, bad input; masks are compared with those made offline.

    python benchmarks/service.py [--json] [--data FOLDER]
    python benchmarks/service.py --quick [--json]

Starts its own services on the loopback interface, with stores in a temporary folder, and sends them photographs that
are drawn or taken from FOLDER: 200 requests from 16 clients, with micro-batching off and on, under a time limit.
--quick draws at 128 pixels, sends 32 requests, and writes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # in place of this file's folder, whose service.py would shadow `service`

import httpx
import numpy as np
from PIL import Image

from benchmarks.drawn import draw_photograph
from benchmarks.report import table, write_section
from interpreter.rendering import encode_labels
from service.engine import load_engine

TITLE = "The service"
CLIENTS = 16
LIMIT = 1200.0
"""Seconds after which the remaining requests of a load are skipped."""


@dataclass
class Load:
    """The results of many requests.

    Attributes:
        seconds: the time of each answer with status 200.
        statuses: {status: number of responses}; 0 stands for skipped requests, and a 503 without Retry-After counts
            as 500.
        wrong: number of answers that differ from the offline mask.
        pixels: largest share of differing pixels among those answers, 0..1.
        wall: wall-clock seconds of all requests together.
        growth: largest resident memory in the last third of the requests over that in the two thirds before.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    wrong: int = 0
    pixels: float = 0.0
    wall: float = 0.0
    growth: float = 1.0

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share)) if self.seconds else float("nan")


@contextmanager
def service(folder: Path, **settings: str) -> Iterator[str]:
    """Run a service in a separate process; yield its URL once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {f"DIFFDGSS_{name.upper()}": value for name, value in settings.items()}
    given |= {"DIFFDGSS_JOBS": str(folder / "jobs"), "DIFFDGSS_LOG_LEVEL": "error"}
    call = [sys.executable, "-m", "service.cli", "--store", str(folder / "features.zarr"), "--port", str(port)]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(call, env=os.environ | given, cwd=root)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with {process.returncode}")
            try:
                if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(150)


def photographs(count: int, side: int, data: Path | None) -> list[bytes]:
    """The bytes of photographs: drawn PNGs, or the first files of a folder."""
    if data is not None:
        files = sorted(p for p in data.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".ppm", ".tif"))
        return [path.read_bytes() for path in files[:count]]
    drawn = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.fromarray(draw_photograph(side, 1000 + i)[0]).save(buffer, "PNG")
        drawn.append(buffer.getvalue())
    return drawn


def offline_masks(images: Sequence[bytes], folder: Path) -> list[bytes]:
    """The masks, as PNGs, that the same model makes without a service, one photograph at a time."""
    engine = load_engine("vessels", folder / "offline.zarr")
    answers = [engine.segment(image) for image in images]
    engine.close()
    return [encode_labels(answer.labels, answer.colours) for answer in answers]


def ask(client: httpx.Client, image: bytes, output: str = "png", **options: bool) -> tuple[httpx.Response, float]:
    started = time.perf_counter()
    asked = {"output": output} | options
    response = client.post("/v1/segment", params=asked, files={"image": ("eye.png", image)})
    return response, time.perf_counter() - started


def single(url: str, images: Sequence[bytes], repeats: int) -> dict[str, float]:
    """Measure one client alone.

    Returns:
        Medians: ``first``, seconds of a new photograph; ``overhead``, seconds beyond the engine's own;
        ``overhead_share``, the same over the engine's own; ``cached``, seconds of an answer that was finished before.
    """
    firsts, overheads, shares, finished = [], [], [], []
    with httpx.Client(base_url=url, timeout=300) as client:
        for image in images:
            response, seconds = ask(client, image)
            own = float(response.headers["x-engine-seconds"])
            firsts.append(seconds)
            overheads.append(seconds - own)
            shares.append((seconds - own) / own)
        for _ in range(repeats):
            finished += [ask(client, image, "json")[1] for image in images]
    return {
        "first": statistics.median(firsts),
        "overhead": statistics.median(overheads),
        "overhead_share": statistics.median(shares),
        "cached": statistics.median(finished),
    }


def load(url: str, images: Sequence[bytes], masks: Sequence[bytes], count: int) -> Load:
    """Send ``count`` requests from 16 clients, the photographs in turn, and compare each mask with the offline one."""
    result, deadline = Load(), time.monotonic() + LIMIT
    memory: list[float] = []

    def one(i: int) -> tuple[int, float, float | None, str | None]:
        if time.monotonic() > deadline:
            return 0, 0.0, None, None
        with httpx.Client(base_url=url, timeout=300) as client:
            response, seconds = ask(client, images[i % len(images)])
            if i % 8 == 0:
                memory.append(resident(client))
        wrong = None
        if response.status_code == 200 and response.content != masks[i % len(images)]:
            wrong = differing(response.content, masks[i % len(images)])
        return response.status_code, seconds, wrong, response.headers.get("retry-after")

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(one, range(count)))
    result.wall = time.perf_counter() - started
    for status, seconds, wrong, retry_after in answers:
        honest = status != 503 or retry_after is not None
        result.statuses[status if honest else 500] = result.statuses.get(status if honest else 500, 0) + 1
        if status == 200:
            result.seconds.append(seconds)
        if wrong is not None:
            result.wrong += 1
            result.pixels = max(result.pixels, wrong)
    third = max(1, len(memory) // 3)
    result.growth = max(memory[-third:]) / max(memory[:third] + memory[third : 2 * third])
    return result


def differing(one: bytes, other: bytes) -> float:
    a, b = (np.asarray(Image.open(io.BytesIO(data))) for data in (one, other))
    return float((a != b).mean()) if a.shape == b.shape else 1.0


def resident(client: httpx.Client) -> float:
    """Resident bytes of the service's process, from its metrics."""
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("diffdgss_resident_bytes "):
            return float(line.split()[1])
    raise RuntimeError("expected diffdgss_resident_bytes among the metrics of the service, found none")


def bad_input(url: str, good: bytes, mask: bytes) -> tuple[int, dict[int, int]]:
    """Send a corpus of bad files; return their number and {status: count}. A good request must still succeed after.

    Only the field of view is requested, so that files which can be read after all cost no inversion.
    """
    from tests.service.corpus import corpus

    statuses: dict[int, int] = {}
    count = 0
    with httpx.Client(base_url=url, timeout=60) as client:
        for _, data in corpus():
            status = ask(client, data, fov_only=True)[0].status_code
            statuses[status] = statuses.get(status, 0) + 1
            count += 1
        if ask(client, good)[0].content != mask:
            raise RuntimeError("a good request after the bad ones got a wrong mask")
    return count, statuses


def run(quick: bool, data: Path | None, work: Path) -> tuple[dict[str, Any], list[str]]:
    side, distinct, count = (128, 3, 32) if quick else (512, 20, 200)
    few = 1 if quick else 3
    images = photographs(distinct + few, side, data)
    alone, images = images[:few], images[few:]
    masks = offline_masks(images, work)
    loads: dict[str, Load] = {}
    with service(work / "one") as url:
        one = single(url, alone, 10)
        loads["off"] = load(url, images, masks, count)
        bad, bad_statuses = (0, {}) if quick else bad_input(url, images[0], masks[0])
    with service(work / "batches", batch="4", batch_wait="0.05") as url:
        loads["on"] = load(url, images, masks, count)
    plain = loads["off"]
    results = {
        "overhead_share": one["overhead_share"],
        "overhead_ms": 1000 * one["overhead"],
        "repeat_speedup": one["first"] / one["cached"],
        "cached_answer_ms": 1000 * one["cached"],
        "requests": sum(plain.statuses.values()),
        "wrong_answers": plain.wrong,
        "status_503": plain.statuses.get(503, 0),
        "status_5xx_other_than_503": sum(
            n for each in loads.values() for status, n in each.statuses.items() if status >= 500 and status != 503
        )
        + sum(n for status, n in bad_statuses.items() if status >= 500),
        "p50_ms": 1000 * plain.percentile(50),
        "p95_ms": 1000 * plain.percentile(95),
        "p99_ms": 1000 * plain.percentile(99),
        "throughput_rps": len(plain.seconds) / plain.wall,
        "memory_growth_ratio": plain.growth,
        "batched_wrong_answers": loads["on"].wrong,
        "batched_throughput_ratio": (len(loads["on"].seconds) / loads["on"].wall) / (len(plain.seconds) / plain.wall),
        "bad_files": bad,
    }
    return results, report(results, loads, one, bad_statuses, distinct, side)


def report(
    results: dict[str, Any],
    loads: dict[str, Load],
    one: dict[str, float],
    bad: dict[int, int],
    distinct: int,
    side: int,
) -> list[str]:
    first = one["first"]
    rows = [
        [
            name,
            str(each.statuses.get(200, 0)),
            str(each.statuses.get(503, 0)),
            str(each.wrong),
            f"{100 * each.pixels:.4f} %",
            *(each.percentile(share) / first for share in (50, 95, 99)),
            len(each.seconds) / each.wall * first,
            each.growth,
        ]
        for name, each in loads.items()
    ]
    return [
        f"`python benchmarks/service.py`: the shipped models, photographs of {side} pixels. Times over that of one new "
        "photograph asked for alone.",
        "",
        *table(
            ["figure", "value"],
            [
                ["answer time beyond the engine's own, share of it", results["overhead_share"]],
                ["new photograph / finished answer", results["repeat_speedup"]],
                ["finished answer, ms", results["cached_answer_ms"]],
            ],
        ),
        "",
        f"{results['requests']} requests from {CLIENTS} clients, {distinct} different photographs, answers compared "
        "byte by byte with the masks made offline; micro-batches are of four (off by default):",
        "",
        *table(
            [
                *("micro-batching", "answered", "503", "other mask", "pixels that differ, at most"),
                *("p50", "p95", "p99", "answers in that time", "memory, end / before"),
            ],
            rows,
        ),
        "",
        f"Bad files: {results['bad_files']} ({', '.join(f'{n} x {status}' for status, n in sorted(bad.items()))}); "
        "the good request behind them was answered rightly.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("one", "batches"):
            (work / name).mkdir()
        results, lines = run(options.quick, options.data, work)
    if not options.quick:
        write_section(TITLE, lines)
    print(json.dumps(results) if options.json else "\n".join(lines))


if __name__ == "__main__":
    main()
