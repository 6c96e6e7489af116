"""Our own commands, called from a recipe."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout
from typing import Any

from store import console


class StepFailed(Exception):
    """A command of the recipe ended with an error, which it has told."""


def call(command: str, *arguments: object) -> Any:
    """Run one of our commands in this process; what it printed, if that was JSON.

    Raises:
        StepFailed: it could not do all of its work.
    """
    words = [str(argument) for argument in arguments]
    console.err.print(f"$ {command} {' '.join(words)}", highlight=False, soft_wrap=True, style="dim")
    printed = io.StringIO()
    with redirect_stdout(printed):
        code = importlib.import_module(f"{command}.cli").app(words, standalone_mode=False)
    if code:
        raise StepFailed(f"`{command} {' '.join(words)}` ended with exit code {code}; see above")
    return json.loads(printed.getvalue()) if "--json" in words else None
