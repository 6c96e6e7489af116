"""Calls of the project's own commands from a recipe."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout
from typing import Any

from rich.text import Text

from store import console


class StepFailed(Exception):
    """A command of the recipe failed; it has reported its error itself."""


def call(command: str, *arguments: object) -> Any:
    """Run one of the project's commands in this process; return the JSON document it printed with --json, else None.

    Args:
        command: the package whose ``cli`` holds it, such as ``extractor``.

    Raises:
        StepFailed: its exit code was not zero.
    """
    words = [str(argument) for argument in arguments]
    console.say(Text(f"$ {command} {' '.join(words)}", style="dim"))
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = importlib.import_module(f"{command}.cli").app(words, standalone_mode=False)
    if code:
        raise StepFailed(f"`{command} {' '.join(words)}` ended with exit code {code}; see above")
    return json.loads(printed.getvalue()) if "--json" in words else None
