"""Threads of a process that has fewer cores than its machine. In processes of their own: torch asks once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNT = "import torch, numba; print(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)"


def _said(code: str, **environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=True
    ).stdout.split()


@pytest.mark.parametrize("first", ["", "import torch; "], ids=["before torch", "after torch"])
def test_torch_and_numba_start_as_many_threads_as_there_are_cores(first: str) -> None:
    assert _said(f"{first}from store.cores import keep_to; keep_to(1); {COUNT}") == ["1", "1"]


QUOTA = "import store.cores as c; c.cpu_count = lambda: {share}; c.keep_to_quota(); "


def test_a_share_of_the_cores_is_kept_to() -> None:
    if os.cpu_count() == 1:
        pytest.skip("one core cannot be shared")
    assert _said(QUOTA.format(share=1) + COUNT) == ["1", "1"]


def test_where_there_is_no_quota_nothing_changes() -> None:
    assert _said("from store.cores import keep_to_quota; keep_to_quota(); " + COUNT) == _said(COUNT)


def test_who_chose_a_number_keeps_it() -> None:
    assert _said(QUOTA.format(share=1) + COUNT, OMP_NUM_THREADS="2")[0] == "2"
