"""The ``interpreter`` command: from cached features and a few masks to a network that segments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from interpreter.adapt_cli import app as adapt_commands
from interpreter.domain_cli import app as domain_commands
from interpreter.errors import ConfigurationError, InterpreterError
from interpreter.evaluate_cli import app as evaluate_commands
from interpreter.options import AsJson
from interpreter.probe_cli import app as probe_commands
from interpreter.segment_cli import app as segment_commands
from interpreter.train_cli import app as train_commands
from store import console
from store.errors import StoreError

app = typer.Typer(
    help="Train a small network to read cached diffusion features, and measure it.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some photographs of --data were left out, 130 interrupted "
    "(run again to continue).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
)
console.add_version_option(app)


@app.command(epilog="Examples: interpreter models --json · interpreter models runs/mine")
def models(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of further interpreters to list.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped interpreters, with their data, metrics and sha256; each is loaded, which checks its files."""
    from interpreter.registry import listed

    console.print_models(listed(folders or []), as_json=as_json)


app.add_typer(train_commands)
app.add_typer(evaluate_commands)
app.add_typer(probe_commands)
app.add_typer(adapt_commands)
app.add_typer(segment_commands)
app.add_typer(domain_commands)


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, InterpreterError, StoreError, usage=(ConfigurationError,))


if __name__ == "__main__":
    main()
