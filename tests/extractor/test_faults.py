"""Writers that are killed, that meet each other, and that run out of room: nothing is lost, nothing made twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def writers(*arguments: str | Path, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    call = [*inside, sys.executable, "-m", "tests.extractor.writers", *map(str, arguments)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def is_whole(result: dict[str, Any]) -> None:
    assert result["problems"] == []
    assert result["entries"] == result["expected"] == result["noted_once"]
    assert result["noted"] == result["noted_once"]


def test_fifty_kills_lose_nothing_and_make_nothing_twice(dataset_folder: Path, tmp_path: Path) -> None:
    result = writers("kill", tmp_path / "store", dataset_folder / "images", "50")
    is_whole(result)
    assert result["kills"] == 50
    assert 0 < result["before_the_last_run"] < result["expected"]
    assert result["last_run"]["extracted"] == result["expected"] - result["before_the_last_run"]


def test_two_processes_share_the_work(dataset_folder: Path, tmp_path: Path) -> None:
    result = writers("together", tmp_path / "store", dataset_folder / "images")
    is_whole(result)
    assert result["succeeded"] == [True, True]
    assert result["last_run"]["forwards"] == 0
    assert result["claims_left"] == []


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
