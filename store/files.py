"""Files that are replaced as a whole."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` behind the context; what goes wrong leaves the former one.

    Several threads, processes and machines may write the same: each has a temporary file of its own. Whoever may read
    files that this process makes may read it: safetensors gives its files to nobody else.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
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
