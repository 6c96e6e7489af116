"""Kernels that are compiled once, and again when anything that is compiled into them has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HELPER = """
from store.kernels import inlined

@inlined()
def plus(x):
    return x + {}
"""
KERNEL = """
from package.helper import plus
from store.kernels import kernel

@kernel()
def twice(x):
    return plus(plus(x))
"""
MAIN = """
import numba
from package.work import twice

assert not numba.config.CACHE_DIR.count("kernels-")
print(twice(1), sum(twice.stats.cache_hits.values()))
"""


def test_a_change_in_what_is_compiled_into_a_kernel_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "work.py").write_text(KERNEL)

    def run(step: int) -> list[str]:
        (package / "helper.py").write_text(HELPER.format(step))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
        command = [sys.executable, "-c", MAIN]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert run(1) == ["3", "0"]
    assert run(1) == ["3", "1"]
    assert run(5) == ["11", "0"]
