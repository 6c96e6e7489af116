"""Console output of the four commands: progress on stderr, results on stdout, errors in one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from enum import IntEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from store.cores import limit_threads_to_quota
from store.files import is_disk_full
from store.validation import first_problem

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]

WIDE = 160
"""Columns of a table that is written to a file or another program, for which rich would assume 80."""

# Without markup: brackets in names of files and data sets are not tags.
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE, markup=False, highlight=False)
err = Console(stderr=True, markup=False, highlight=False)


class Exit(IntEnum):
    """Exit codes of all commands."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3  # some of the work was done, the rest is listed
    DAMAGED = 4  # the store holds damaged or incomplete entries
    INTERRUPTED = 130


def add_version_option(app: typer.Typer) -> None:
    """Add the option ``--version`` to a command that has subcommands."""

    @app.callback()
    def options(
        _version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
        ] = False,
    ) -> None: ...


def print_version(asked: bool) -> None:
    """Callback of ``--version``: print the version and exit, if the option was given."""
    if asked:
        typer.echo(f"diffdgss {metadata.version('diffdgss')}")
        raise typer.Exit


def run(app: typer.Typer, *expected: type[Exception], usage: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Run a command and exit; expected errors become one line on stderr.

    Args:
        expected: errors of the command's work; exit code 1.
        usage: errors that only other options can resolve; exit code 2. They take precedence over ``expected``.
    """
    limit_threads_to_quota()
    try:
        code = app(standalone_mode=False)
    except usage as error:
        _fail(error, Exit.USAGE)
    except expected as error:
        _fail(error, Exit.FAILED)
    except (typer.Abort, KeyboardInterrupt):
        code = Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of stdout went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FAILED)
    except ValidationError as error:
        _fail(first_problem(error), Exit.USAGE)
    except (OSError, json.JSONDecodeError) as error:
        full = is_disk_full(error) and getattr(error, "filename", None) is None
        _fail(f"{error}; free some space and run the same command again to continue" if full else error, Exit.FAILED)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = getattr(error, "exit_code", Exit.USAGE)  # one of click's usage errors
        if message := error.format_message():  # empty if help was asked for and has been printed
            text = message.replace("Value error, ", "").rstrip(".")  # pydantic's prefix, from checks of options
            _fail(f"{text}; see --help", code)
        sys.exit(code)
    if code == Exit.INTERRUPTED:  # typer turns an interrupt into this code
        say("interrupted; run the same command again to continue")
    sys.exit(code if isinstance(code, int) else Exit.OK)


def _fail(message: object, code: int) -> NoReturn:
    """Print an error as one line on stderr and exit with ``code``."""
    say(Text.assemble(("error:", "bold red"), f" {message}"))
    sys.exit(code)


def options_given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """The options of a command that were given on the command line.

    Args:
        names: names of the parameters to look at.

    Returns:
        The options as they are typed, such as --class-label.
    """
    typed = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    return [typed[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def exit_after(left_out: Sized) -> None:
    """Exit with ``Exit.PARTIAL`` if something was left out."""
    if left_out:
        raise typer.Exit(Exit.PARTIAL)


def require_unused(out: Path, *, overwrite: bool) -> None:
    """Raise BadParameter if an output folder already holds files and ``overwrite`` is False."""
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} holds files already; choose another folder, or replace them with --overwrite")


def print_line(text: str | Text) -> None:
    """Print a line of the result on stdout. It is never folded: programs read it, and terminals fold by themselves."""
    out.print(text, soft_wrap=True)


def say(text: str | Text) -> None:
    """Print a line about the work on stderr; it is never folded."""
    err.print(text, soft_wrap=True)


def note(text: str) -> None:
    """Print a note for the user on stderr; the work continues."""
    say(Text.assemble(("note:", "yellow"), f" {text}"))


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; ValueError for NaN and infinity, which JSON does not have."""
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def human_bytes(count: float) -> str:
    """1536 -> '1.5 kB', in powers of 1000 as file managers and cloud bills do."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


class Described(Protocol):
    """A model that can be listed: its name, all of it as JSON for programs, and the main facts for people."""

    @property
    def name(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...

    def facts(self) -> Mapping[str, str | Sequence[str]]: ...


def print_models(found: Sequence[Described], *, as_json: bool) -> None:
    """Print models as one JSON document, or one below the other."""
    if as_json:
        print_json({one.name: one.to_json() for one in found})
        return
    for one in found:
        _print_described(one.name, one.facts())


def _print_described(name: str, facts: Mapping[str, str | Sequence[str]]) -> None:
    """Print a name and below it the facts that are not empty, with a line for each of their values."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts.items():
        text = value if isinstance(value, str) else "\n".join(value)
        if text:
            grid.add_row(f"  {label}", Text(text))
    print_line(Text(name, style="bold"))
    out.print(grid)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="cyan")


@contextmanager
def progress(
    description: str, total: int | None, *, as_json: bool = False, hidden: bool = False
) -> Iterator[Callable[..., None]]:
    """A progress bar with count, rate and time left on stderr; yields ``advance(done, note="")``.

    Args:
        total: number of steps; None if it is not known.
        as_json: whether a program reads the results; the bar is then shown at a terminal only.
        hidden: show no bar.
    """
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=err,
        disable=hidden or (as_json and not err.is_terminal),
    )
    with bar:
        task = bar.add_task(description, total=total, note="")

        def advance(done: int = 1, note: str = "") -> None:
            bar.update(task, advance=done, note=note)

        yield advance
