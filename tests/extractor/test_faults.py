"""Writers that are killed, that meet each other, and that run out of room: nothing is lost, nothing made twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from extractor.pipeline import default_threads

ROOT = Path(__file__).parents[2]


def writers(*arguments: str | Path, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    call = [*inside, sys.executable, "-m", "tests.extractor.writers", *map(str, arguments)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def is_whole(result: dict[str, Any], unnoted: int = 0) -> None:
    """Everything is there and nothing was made twice; a kill between a write and its note leaves it unnoted,
    one for each thread that writes."""
    assert result["problems"] == []
    assert result["entries"] == result["expected"]
    assert result["noted"] == result["noted_once"]
    assert result["expected"] - unnoted <= result["noted_once"] <= result["expected"]


def test_fifty_kills_lose_nothing_and_make_nothing_twice(dataset_folder: Path, tmp_path: Path) -> None:
    result = writers("kill", tmp_path / "store", dataset_folder / "images", "50")
    is_whole(result, unnoted=50 * default_threads("cpu", 2).writers)
    assert result["kills"] == 50
    assert 0 < result["before_the_last_run"] < result["expected"]
    last = result["last_run"]
    assert last["extracted"] + last["present"] == result["expected"]
    assert last["present"] >= result["before_the_last_run"]


def test_two_processes_share_the_work(dataset_folder: Path, tmp_path: Path) -> None:
    result = writers("together", tmp_path / "store", dataset_folder)
    is_whole(result)
    assert result["succeeded"] == [True, True]
    assert result["last_run"]["forwards"] == 0
    assert result["claims_left"] == []
    assert result["masks"] == 6


def test_a_full_disk_stops_a_run_which_then_goes_on(dataset_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=1m tmpfs {folder}"
    own = ("unshare", "--mount", "--map-root-user")
    if shutil.which("unshare") is None or subprocess.run([*own, "sh", "-c", mount], check=False).returncode:
        pytest.skip("this user may not mount a small tmpfs")
    mounted = (*own, "sh", "-c", f'{mount} && exec "$@"', "sh")
    result = writers("full", folder, dataset_folder / "images", inside=mounted)
    is_whole(result)
    assert "no room left while writing" in result["message"]
    assert "run the same command again" in result["message"]
    assert 0 < result["before_the_last_run"] < result["expected"]
