"""Memory that training keeps. In processes of their own: allocators are told for good."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FRAGMENTED = """
import torch
from store.memory import HeapTrimmer, keep_freed_memory, resident_bytes
keep_freed_memory()
holes = HeapTrimmer(slack=1 << 20)
assert not holes.trim_if_fragmented()
before = resident_bytes()
many = [torch.ones(1 << 18) for _ in range({count})]  # 1 MiB each
kept, many = many[::2], None  # a hole beside each
full = resident_bytes()
gone = holes.trim_if_fragmented()
print(gone, full - before, resident_bytes() - before)
"""


def _run(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def _said(count: int) -> list[str]:
    return _run(FRAGMENTED.format(count=count))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_holes_are_handed_back_once_they_are_as_much_as_a_step_needs() -> None:
    gone, full, left = _said(1000)
    assert gone == "True"
    assert int(full) > 900 << 20
    assert int(left) < 600 << 20  # half of the tensors are in use


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_holes_of_earlier_work_do_not_count_as_needed() -> None:
    begun = FRAGMENTED.format(count=1000).replace("holes.trim_if_fragmented()\nprint", "HeapTrimmer() and None\nprint")
    _, full, left = _run(begun)
    assert int(full) > 900 << 20
    assert int(left) < 600 << 20


def test_what_a_step_needs_stays() -> None:
    gone, full, left = _said(30)
    assert gone == "False"
    assert int(left) > int(full) - (1 << 20)


def test_a_process_knows_what_it_takes() -> None:
    code = "from store.memory import resident_bytes as r; b = r(); x = bytearray(b'1') * (100 << 20); print(r() - b)"
    assert int(_run(code)[0]) > 50 << 20
