"""The HTTP application. Routes parse and call; the engine does the work."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.context import Context
from service.engine import Engine
from service.errors import HANDLED_ERRORS, NotReady, Unavailable, detail_of, headers_of, status_of
from service.middleware import LocalMiddleware, RequestMiddleware, UnexpectedErrorMiddleware
from service.routes import features, health, jobs, models, page, segment
from service.routes.segment import HEADERS
from service.settings import Settings
from store.errors import StoreError
from store.validation import problem_text

logger = structlog.get_logger(__name__)


def create_app(
    settings: Settings,
    load: Callable[[], Engine] | None = None,
    read_settings: Callable[[], Settings] | None = None,
) -> FastAPI:
    """Create the application.

    Args:
        settings: the operator's settings.
        load: builds the engine; by default from the settings. It runs in a background thread, so that
            the process answers ``/healthz`` while models are being loaded.
        read_settings: reads the settings again for a reload; by default ``settings`` stay in force.
    """
    context = Context(settings, load, read_settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loader = threading.Thread(target=context.start, name="load")
        loader.start()
        _reload_on_hangup(context)
        yield
        await asyncio.to_thread(loader.join)
        await asyncio.to_thread(context.stop)

    app = FastAPI(
        title="DiffDGSS",
        description="Segments retinal photographs from deterministic diffusion features. For research only; "
        "not a medical device.",
        version=metadata.version("diffdgss"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings, app.state.context = settings, context
    for kind in HANDLED_ERRORS:
        app.add_exception_handler(kind, _expected_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    for routes in (page, health, segment, features, jobs, models):
        app.include_router(routes.router)
    app.add_middleware(UnexpectedErrorMiddleware)  # innermost, so that its answers pass through the other middlewares
    app.add_middleware(LocalMiddleware, settings=lambda: context.settings)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[*HEADERS, "X-Request-Id", "Retry-After", "Location"],
        )
    app.add_middleware(RequestMiddleware, metrics=context.http)
    return app


def _reload_on_hangup(context: Context) -> None:
    """Reload on SIGHUP; where no signal handler can be installed, only the endpoint reloads."""

    def reload() -> None:
        try:
            context.reload()
        except Exception as error:  # the old settings and models stay in use
            logger.error("reload failed; the old settings and models stay in use", problem=str(error))

    with contextlib.suppress(ValueError, RuntimeError, NotImplementedError, AttributeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: threading.Thread(target=reload).start())


async def _expected_error(request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    request.app.state.context.http.refused.labels(type(error).__name__).inc()
    worth_a_line = status >= 500 or isinstance(error, StoreError)
    if worth_a_line and not isinstance(error, NotReady):  # expected while somebody polls for readiness
        log = logger.warning if isinstance(error, Unavailable) else logger.error
        log("request failed", problem=str(error), status=status)
    return JSONResponse({"detail": detail_of(error)}, status_code=status, headers=headers_of(error))


async def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    """Answer invalid parameters with their location and the reason, never with the values that were sent."""
    assert isinstance(error, RequestValidationError)
    found = [problem_text(one) for one in error.errors()[:5]]
    return JSONResponse({"detail": "; ".join(found)}, status_code=422)


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer HTTP errors of the framework, such as unknown routes and methods, in the format of all errors."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": str(error.detail)}, status_code=error.status_code, headers=error.headers)
