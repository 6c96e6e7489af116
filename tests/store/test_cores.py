"""Threads of a process that has fewer cores than its machine. In processes of their own: torch asks once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from dask.system import cpu_count

needs_two_cores = pytest.mark.skipif(cpu_count() < 2, reason="one core cannot be shared")
COUNT = "import torch; print(torch.get_num_threads())"
WITH_QUOTA = "import store.cores; store.cores.cpu_count = lambda: 1; store.cores.limit_threads_to_quota(); "


def _said(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    call = [sys.executable, "-c", code]
    return subprocess.run(call, env=kept | environment, capture_output=True, text=True, check=True).stdout.strip()


@needs_two_cores
@pytest.mark.parametrize("first", ["", "import torch; "], ids=["before torch", "after torch"])
def test_torch_starts_as_many_threads_as_the_share_has_cores(first: str) -> None:
    assert int(_said(COUNT)) > 1
    assert _said(first + WITH_QUOTA + COUNT) == "1"


@needs_two_cores
def test_kernels_of_numba_follow() -> None:
    kernels = (
        "import numba; from store.threads import torch_threads\nwith torch_threads(): print(numba.get_num_threads())"
    )
    assert _said("import torch, numba; " + WITH_QUOTA + kernels) == "1"


def test_where_there_is_no_quota_nothing_changes() -> None:
    without = "import os, store.cores; store.cores.cpu_count = os.cpu_count; store.cores.limit_threads_to_quota(); "
    assert _said(without + "print('OMP_NUM_THREADS' in os.environ)") == "False"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_who_chose_a_number_keeps_it(name: str) -> None:
    unchanged = "import os; print(os.environ.get('OMP_NUM_THREADS'))"
    assert _said(WITH_QUOTA + unchanged, **{name: "3"}) == ("3" if name == "OMP_NUM_THREADS" else "None")


@needs_two_cores
def test_commands_keep_to_it() -> None:
    command = "import typer; from store import console\napp = typer.Typer()\n@app.command()\ndef told():\n    {}\n"
    counted = command.format(COUNT) + "console.run(app)"
    assert _said("import store.cores; store.cores.cpu_count = lambda: 1\n" + counted) == "1"
