"""Benchmarks run, and say what they promise to say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import table, write_section

ROOT = Path(__file__).parents[1]


def quick(name: str) -> dict[str, Any]:
    call = [sys.executable, str(ROOT / "benchmarks" / name), "--quick", "--json"]
    document = (ROOT / "docs" / "benchmarks.md").read_bytes()
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (ROOT / "docs" / "benchmarks.md").read_bytes() == document
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_store() -> None:
    result = quick("store.py")
    for figure in ("bytes_ratio", "dice", "read_ratio"):
        assert list(result[figure]) == ["float32", "float16", "int8", "compact"]
    sizes = list(result["bytes_ratio"].values())
    assert sizes == sorted(sizes)
    assert all(0 < dice <= 100 for dice in result["dice"].values())
    assert result["peak_memory_ratio"] > 0


def test_the_interpreter() -> None:
    result = quick("interpreter.py")
    for figure in ("scan_forward_ratio", "scan_backward_ratio"):
        assert list(result[figure]) == ["16", "1"]
        assert all(ratio > 1 for ratio in result[figure].values())
    assert result["scan_max_error"] < 1e-5
    assert result["scan_max_gradient_error"] < 1e-4
    assert result["step_seconds"] > 0
    assert 0 <= result["data_wait_share"] < 1
    assert result["device"] in ("cpu", "cuda")


@pytest.mark.slow
def test_the_service() -> None:
    result = quick("service.py")
    figures = {"overhead_share", "repeat_speedup", "cached_answer_ms", "requests", "wrong_answers", "p50_ms", "p95_ms"}
    assert figures | {"status_5xx_other_than_503", "p99_ms", "throughput_rps", "memory_growth_ratio"} <= set(result)
    assert (result["wrong_answers"], result["status_5xx_other_than_503"]) == (0, 0)
    assert result["requests"] == 32


@pytest.mark.slow
def test_the_extraction() -> None:
    result = quick("extract.py")
    assert result["max_relative_difference"] < 1e-4
    assert result["throughput_ratio"] > 0
    assert result["roofline_share"] > 0
    assert result["device"] == "cuda" or result["two_worker_speedup"] > 0
    assert result["peak_memory_ratio"] < 1.5


@pytest.mark.slow
def test_a_photograph() -> None:
    result = quick("photograph.py")
    assert 0 < result["seconds"] < 120
    assert 0.3 < result["peak_memory_gb"] < 3
    assert {"invert", "interpret"} <= set(result["stage_seconds"])


def test_sections_replace_themselves(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    write_section("First", ["one"], document)
    write_section("Second", table(["a", "b"], [["x", 0.12345]]), document)
    write_section("First", ["two"], document)
    text = document.read_text()
    assert text.startswith("# Benchmarks\n")
    assert text.index("## First\n\ntwo\n") < text.index("## Second")
    assert "| x | 0.123 |" in text
    assert "\none\n" not in text
