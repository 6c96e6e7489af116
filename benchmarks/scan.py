"""The selective scan: the Numba path against the readable reference, both in this process.

    python benchmarks/scan.py [--json] [--quick]

Prints a table and writes it into docs/benchmarks.md; with --json the last line is one JSON object.
Runs alternate, ratios are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

import torch

from benchmarks.report import write_section
from interpreter.scan import selective_scan


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
    return [tensor.requires_grad_() for tensor in tensors]


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(channels: int, length: int, state: int, repeats: int) -> dict[str, float]:
    """Median ratios reference / numba and the largest relative error."""
    tensors, shorter = arguments(channels, length, state), arguments(channels, length // 8, state)

    def forward(method: str) -> torch.Tensor:
        with torch.no_grad():
            return selective_scan(*tensors, method=method)  # type: ignore[arg-type]

    def both(method: str) -> None:
        # The reference keeps every state for its gradient: the whole sequence would take minutes.
        y = selective_scan(*shorter, method=method)  # type: ignore[arg-type]
        torch.autograd.grad(y.square().sum(), shorter)

    both("numba")  # compile
    exact = forward("reference")
    error = float((forward("numba") - exact).abs().max() / exact.abs().max())
    pairs = [(seconds(lambda: forward("reference")), seconds(lambda: forward("numba"))) for _ in range(repeats)]
    pairs_both = [(seconds(lambda: both("reference")), seconds(lambda: both("numba"))) for _ in range(repeats)]
    return {
        "forward_ratio": statistics.median(a / b for a, b in pairs),
        "forward_backward_ratio": statistics.median(a / b for a, b in pairs_both),
        "max_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a shorter sequence, one repeat; writes nothing")
    options = parser.parse_args()
    channels, length, repeats = (64, 2048, 1) if options.quick else (256, 16384, 2)
    results = {state: measure(channels, length, state, repeats) for state in (16, 1)}
    lines = [
        f"`python benchmarks/scan.py`: four groups, reference / Numba; forward at "
        f"(1, {channels}, {length}), forward and backward at (1, {channels}, {length // 8}).",
        "",
        "| state | forward | forward and backward | largest relative error |",
        "|---|---|---|---|",
    ]
    for state, row in results.items():
        lines.append(
            f"| {state} | {row['forward_ratio']:.1f} | {row['forward_backward_ratio']:.1f} | {row['max_error']:.1e} |"
        )
    lines += [
        "",
        "Most of the backward ratio is the reference's own: autograd fills a full gradient for every position.",
    ]
    print("\n".join(lines))
    if not options.quick:
        write_section("Selective scan", lines)
    if options.json:
        print(json.dumps({str(state): row for state, row in results.items()}))


if __name__ == "__main__":
    main()
