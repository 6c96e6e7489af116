"""The ``service`` command: segmentation over HTTP."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import structlog
import typer

from service.errors import EXPECTED
from store import console

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(
    epilog="Example: service --model vessels --store features.zarr --port 8000, then open http://127.0.0.1:8000/ . "
    "Every option can be set in the environment: DIFFDGSS_PORT=8001. Exit codes: 0 stopped, 1 failed, 2 wrong usage."
)
def serve(
    model: Annotated[str | None, typer.Option(help="Shipped name or folder of an interpreter.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Shipped name, folder or hub id; the model's if not given.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Folder of the feature store, or s3://bucket/prefix.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
) -> None:
    """Start the service: POST /segment, GET /healthz, GET /readyz, and a page at /."""
    import uvicorn  # imported late, with everything that loads torch: `--help` answers at once

    from interpreter.checkpoint import load_interpreter
    from service.app import create_app
    from service.settings import Settings

    given = {
        "model": model,
        "backbone": backbone,
        "store": store,
        "host": host,
        "port": port,
        "device": device,
    }
    settings = Settings.model_validate({name: value for name, value in given.items() if value is not None})
    load_interpreter(settings.model)  # a wrong name is told now, not by the first request
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, log_level="info")


def main() -> NoReturn:
    """Entry point of the command."""
    console.run(app, *EXPECTED)


if __name__ == "__main__":
    main()
