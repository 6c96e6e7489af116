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


def test_the_scan() -> None:
    result = quick("scan.py")
    assert set(result) == {"16", "1"}


@pytest.mark.slow
def test_the_service() -> None:
    result = quick("service.py")
    figures = {"overhead_share", "repeat_speedup", "cached_answer_ms", "requests", "wrong_answers", "p50_ms", "p95_ms"}
    assert figures | {"status_5xx_other_than_503", "p99_ms", "throughput_rps", "memory_growth_ratio"} <= set(result)
    assert (result["wrong_answers"], result["status_5xx_other_than_503"]) == (0, 0)
    assert result["requests"] == 32


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
