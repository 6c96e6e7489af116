"""How the four commands talk: progress on stderr, results on stdout, errors in one line."""

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

from store.cores import keep_to_quota
from store.files import is_disk_full

WIDE = 160
"""Columns of a table that goes to a file or another program, which rich would cut to 80."""

out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True)


class Exit(IntEnum):
    """Exit codes of all commands."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3  # some of the work was done, the rest is listed
    DAMAGED = 4  # the store holds damaged or incomplete entries
    INTERRUPTED = 130


def add_version_option(app: typer.Typer) -> None:
    """Give a command of several commands the option ``--version``."""

    @app.callback()
    def options(
        _version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
        ] = False,
    ) -> None: ...


def print_version(asked: bool) -> None:
    """What ``--version`` does."""
    if asked:
        typer.echo(f"diffdgss {metadata.version('diffdgss')}")
        raise typer.Exit


def run(app: typer.Typer, *expected: type[Exception], usage: tuple[type[Exception], ...] = ()) -> NoReturn:
    """Run a command and exit; expected errors become one line on stderr.

    Args:
        usage: of the expected errors those that only other options can mend.
    """
    keep_to_quota()
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
        first = error.errors()[0]
        _fail(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}", Exit.USAGE)
    except (OSError, json.JSONDecodeError) as error:
        full = is_disk_full(error) and getattr(error, "filename", None) is None
        _fail(f"{error}; make room and run the same command again to go on" if full else error, Exit.FAILED)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = getattr(error, "exit_code", Exit.USAGE)  # one of click's usage errors
        if message := error.format_message():  # empty where help was asked for and printed
            text = message.replace("Value error, ", "").rstrip(".")  # of pydantic, which typer lets check choices
            _fail(f"{text}; see --help", code)
        sys.exit(code)
    if code == Exit.INTERRUPTED:  # typer makes this code of an interrupt
        err.print("interrupted; run the same command again to go on")
    sys.exit(code if isinstance(code, int) else Exit.OK)


def _fail(message: object, code: int) -> NoReturn:
    """One line on stderr, and the end of the process."""
    plain = str(message).replace("[", r"\[")  # file names are no markup
    err.print(f"[bold red]error:[/] {plain}", highlight=False, soft_wrap=True)
    sys.exit(code)


def options_given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Which of a command's options stand on the command line.

    Args:
        names: of the parameters.

    Returns:
        The options as they are typed, such as --class-label.
    """
    typed = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    return [typed[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def exit_after(left_out: Sized) -> None:
    """End the command; with ``Exit.PARTIAL`` if something was left out."""
    if left_out:
        raise typer.Exit(Exit.PARTIAL)


def require_unused(out: Path, *, overwrite: bool) -> None:
    """BadParameter if a folder that is to be made holds files, and they are not to be replaced."""
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise typer.BadParameter(f"{out} holds files already; choose another folder, or replace them with --overwrite")


def note(text: str) -> None:
    """What a user may want to know, on stderr; the work goes on."""
    plain = text.replace("[", r"\[")
    err.print(f"[yellow]note:[/] {plain}", highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout; ValueError for NaN, which JSON does not have."""
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def human_bytes(count: float) -> str:
    """1536 -> '1.5 kB', in powers of 1000 as file managers and cloud bills do."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


class Described(Protocol):
    """What can be listed: by its name, in full for programs, in short for the eye."""

    @property
    def name(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...

    def facts(self) -> Mapping[str, str | Sequence[str]]: ...


def print_models(found: Sequence[Described], *, as_json: bool) -> None:
    """One JSON document, or one model below the other."""
    if as_json:
        print_json({one.name: one.to_json() for one in found})
        return
    for one in found:
        _print_described(one.name, one.facts())


def _print_described(name: str, facts: Mapping[str, str | Sequence[str]]) -> None:
    """A name, and below it a line for each fact that there is; those of several values have a line for each."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts.items():
        text = value if isinstance(value, str) else "\n".join(value)
        if text:
            grid.add_row(f"  {label}", Text(text))
    out.print(Text(name, style="bold"))
    out.print(grid, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="cyan")


@contextmanager
def progress(
    description: str, total: int | None, *, as_json: bool = False, hidden: bool = False
) -> Iterator[Callable[..., None]]:
    """A bar with count, rate and time left on stderr; yields ``advance(done, note="")``.

    Args:
        as_json: a program reads the results: a bar at a terminal only.
        hidden: no bar.
    """
    bar = Progress(
        TextColumn("{task.description}"),
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
