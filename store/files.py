"""Atomic replacement of files, and one error for full disks."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store.errors import StoreFull

_NO_ROOM = 65536
"""Free bytes below which a disk counts as full, since its last blocks cannot always be allocated."""


@contextmanager
def raising_store_full(path: Path) -> Iterator[None]:
    """In this context, raise StoreFull, which names ``path``, if its disk is full, whatever a library raises then.

    torch raises a RuntimeError about a position in the file, safetensors an error of its own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StoreFull) or not _is_full(path, error):
            raise
        raise StoreFull(
            f"{path}: there is no room left on its disk; free some space and run the same command again to continue"
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Return whether an error of the operating system says that a disk or a quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_full(path: Path, error: Exception) -> bool:
    if is_disk_full(error):
        return True
    existing = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return existing is not None and shutil.disk_usage(existing).free < _NO_ROOM


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file to write, which replaces ``path`` after the context; if an error is raised, ``path`` stays.

    Several threads, processes and machines may write the same path, since each has a temporary file of its own. The
    file gets the permissions of any file that this process makes; safetensors would let only its owner read it.

    Raises:
        StoreFull: there is no room for the file.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with raising_store_full(path):
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def replace_json(path: Path, content: Any) -> None:
    """Write JSON in place of a file, which stays as it was if the process is killed meanwhile or finds no room."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def require_same_json(
    path: Path,
    mine: dict[str, Any],
    complete: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    other: type[Exception],
    damaged: type[Exception],
) -> None:
    """Check that a folder's record of what is done there is this one, and write it.

    Args:
        path: the record, below the folder.
        mine: the record of this run, plain values. Fields that the stored one lacks are not compared.
        complete: completes a stored record that an earlier version wrote.

    Raises:
        other: the stored record is another one; the message names what differs.
        damaged: it cannot be read.
    """
    if path.is_file():
        theirs = complete(read_json(path, damaged))
        if differing := [field for field in mine if mine[field] != theirs.get(field, mine[field])]:
            listed = "; ".join(line for field in differing for line in _differences(field, theirs[field], mine[field]))
            raise other(
                f"{path.parent} holds a run with other {', '.join(differing)} ({listed}); choose another folder to "
                "start anew"
            )
    replace_json(path, mine)


def _differences(name: str, former: Any, now: Any) -> list[str]:
    """Describe where two JSON values differ, a line for each part, by its path; for long lists give their lengths."""
    if isinstance(former, dict) and isinstance(now, dict):
        keys = [key for key in {**former, **now} if former.get(key) != now.get(key)]
        return [line for key in keys for line in _differences(f"{name}.{key}", former.get(key), now.get(key))]
    if isinstance(former, (list, tuple)) and isinstance(now, (list, tuple)) and max(len(former), len(now)) > 5:
        others = len(set(map(str, former)) ^ set(map(str, now)))
        return [f"{name}: {len(former)}, now {len(now)}, {others} of them in one only"]
    return [f"{name}: {former}, now {now}"]


def read_json(path: Path, otherwise: type[Exception]) -> Any:
    """Read what ``replace_json`` wrote; if the file is not JSON, raise ``otherwise``, which names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise otherwise(f"{path}: damaged ({error}); restore it, or choose another folder to start anew") from error
