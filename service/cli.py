"""The ``service`` command: segmentation over HTTP."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from service.errors import HANDLED_ERRORS, WrongSettings
from service.security import is_loopback
from service.settings import CONFIG, Settings, read_settings, settings_table
from store import console
from store.errors import StoreError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class Action(StrEnum):
    """What the command is asked to do."""

    serve = "serve"
    check = "check"


def _epilog() -> str:
    rows = [f"{name} ({default or 'none'}): {text}" for name, default, text in settings_table()]
    return "\n\n".join(
        [
            "Example: service --model vessels --store features.zarr --port 8000, then open http://127.0.0.1:8000/ . "
            "`service check` tests settings, models, store and folders without starting anything.",
            f"Settings are read from the environment, and from the TOML file that {CONFIG} names, in small letters "
            "without DIFFDGSS_. In the environment, lists are separated by commas or JSON, and tables are JSON:",
            *(row.replace("[", r"\[") for row in rows),
            "SIGHUP reloads settings, keys and models.",
            "Exit codes: 0 stopped (143 by SIGTERM), 1 failed, 2 wrong usage.",
        ]
    )


@app.command(epilog=_epilog())
def serve(
    action: Annotated[
        Action, typer.Argument(help="serve: start the service; check: test settings and models, and exit.")
    ] = Action.serve,
    model: Annotated[str | None, typer.Option(help="Shipped name or folder of an interpreter.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Shipped name, folder or hub id.", show_default="the model's")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Folder of the feature store, or s3://bucket/prefix.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8000")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=console.print_version, is_eager=True),
    ] = False,
) -> None:
    """Start the service: the API under /v1, POST /segment, and a page at /."""
    given = {"model": model, "backbone": backbone, "store": store, "host": host, "port": port, "device": device}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        settings = read_settings(**chosen)
    except WrongSettings as error:
        raise typer.BadParameter(str(error)) from error
    if action is Action.check:
        _check(settings)
    else:
        _serve(settings, chosen)


def _check(settings: Settings) -> None:
    """Load the models and probe store, jobs and folders; errors end the command with one line."""
    from service.context import engine_from

    engine = engine_from(settings)
    troubles = engine.storage.probe(every=0)
    for model in engine.models.by_name.values():
        console.print_line(f"model {model.name} ({model.version}): {', '.join(model.card.task.classes)}")
    keys = (
        f"API keys of {len(settings.api_keys)} names"
        if settings.api_keys
        else "no API keys: anyone who can reach the service may use it"
    )
    state = "; ".join(f"cannot {doing} ({why})" for doing, why in troubles.items()) or "can be read and written"
    console.print_line(f"store {settings.store_location}: {state}")
    console.print_line(keys)
    engine.close()
    kept = _jobs_are_kept(settings)
    if not _folders_are_read(settings) or not kept or troubles:
        raise typer.Exit(console.Exit.FAILED)


def _jobs_are_kept(settings: Settings) -> bool:
    """Print whether the jobs' location can be written to, and return it."""
    from store.objects import open_objects

    state = "can be read and written"
    try:
        open_objects(settings.jobs_location).require_writable()
    except (StoreError, OSError) as error:
        state = str(error)
    console.print_line(f"jobs {settings.jobs_location}: {state}")
    return state == "can be read and written"


def _folders_are_read(settings: Settings) -> bool:
    """Print how many photographs each folder of jobs holds, or why it cannot be read; return whether all can be."""
    from service.sources import Sources

    sources, fine = Sources(settings.folders, settings.store_timeout), True
    for name in settings.folders:
        try:
            state = f"{len(sources.keys(name))} photographs"
        except HANDLED_ERRORS as error:
            state, fine = str(error), False
        console.print_line(f"folder {name}: {state}")
    sources.close()
    return fine


def _serve(settings: Settings, chosen: dict[str, Any]) -> None:
    import uvicorn  # imported late, with everything that loads torch: `--help` answers at once
    from structlog import get_logger

    from service import logs
    from service.models import load_servable

    _allow_many_connections()
    for name in (settings.model, *settings.models):
        load_servable(name)  # so that a wrong name fails now, not at the first request
    logs.configure(settings.log_level)
    if not settings.api_keys and not is_loopback(settings.host):
        get_logger(__name__).warning(
            "no API keys: anyone who can reach this address may use the service", host=settings.host
        )
    config = uvicorn.Config(
        _app(settings, chosen),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.deadline) + 1,
    )
    listening = bound(config)  # before models are loaded, so that readiness can be queried meanwhile
    server = uvicorn.Server(config)
    try:
        with suppress(KeyboardInterrupt):  # uvicorn has shut down for it already, and raises it again
            server.run(sockets=[listening])
        if not server.started:
            raise typer.Exit(console.Exit.FAILED)
    finally:
        listening.close()
        _leave_what_hangs()


def bound(config: uvicorn.Config) -> socket.socket:
    """A socket at the configuration's address; raises typer.Exit if it cannot be had."""
    try:
        listening = config.bind_socket()
    except SystemExit as ended:  # uvicorn has logged the reason, such as a port in use
        console.note(f"the service cannot listen at {config.host}:{config.port}; choose another --port or --host")
        raise typer.Exit(console.Exit.FAILED) from ended
    # Connections inherit it. Without it the end of an answer waits 40 ms for the client's acknowledgement of its head;
    # asyncio sets it only on sockets that name their protocol, which this one does not.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _allow_many_connections() -> None:
    """Raise the process's limit of open files as far as it may: each connection takes one, even an idle one."""
    with suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _leave_what_hangs() -> None:
    """End the process even if a store or folder does not answer: Python would wait for its threads for ever."""
    from structlog import get_logger

    until = time.monotonic() + 1  # threads that are not stuck end by themselves
    while hanging := [one.name for one in threading.enumerate() if one.name.startswith(("store_", "source-", "jobs"))]:
        if time.monotonic() > until:
            get_logger(__name__).warning("stopped while a store or folder does not answer", threads=hanging)
            os._exit(console.Exit.INTERRUPTED)
        time.sleep(0.02)


def _app(settings: Settings, chosen: dict[str, Any]) -> FastAPI:
    from service.app import create_app

    return create_app(settings, read_settings=lambda: read_settings(**chosen))


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, *HANDLED_ERRORS)


if __name__ == "__main__":
    main()
