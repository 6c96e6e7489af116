"""Files that are replaced as a whole."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from store.errors import StoreFull

_NO_ROOM = 65536
"""Free bytes of a disk that is full: the last blocks of one are not always given."""


@contextmanager
def raising_store_full(path: Path) -> Iterator[None]:
    """While in this context, StoreFull names ``path`` where its disk is full, however a library puts that.

    torch has a RuntimeError of a position for it, safetensors an error of its own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StoreFull) or not _is_full(path, error):
            raise
        raise StoreFull(
            f"{path}: there is no room left on its disk; make some and run the same command again to go on"
        ) from error


def is_disk_full(error: Exception) -> bool:
    """Whether an operating system says that a disk or a quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_full(path: Path, error: Exception) -> bool:
    if is_disk_full(error):
        return True
    existing = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    return existing is not None and shutil.disk_usage(existing).free < _NO_ROOM


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` after the context; what goes wrong leaves the former one.

    Several threads, processes and machines may write the same: each has a temporary file of its own. Whoever may read
    files that this process makes may read it: safetensors gives its files to nobody else.

    Raises:
        StoreFull: there is no room for it.
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
    """Write JSON; a process that is killed meanwhile, or finds no room, leaves the former file."""
    with replaced(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path, otherwise: type[Exception]) -> Any:
    """What ``replace_json`` wrote; ``otherwise`` is raised of a file that is no JSON, and names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise otherwise(f"{path}: damaged ({error}); restore it, or choose another folder to start anew") from error
