"""The HTTP application. Routes parse and call; the engine does the work."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.middleware.base import RequestResponseEndpoint
from starlette.types import Message, Receive

from interpreter.rendering import encode_labels
from service.engine import Engine, load_engine
from service.errors import EXPECTED, BodyTooLarge, NoImage, NotReady, UnsupportedAnswer, status_of
from service.schemas import Problem, SegmentResponse, to_response
from service.settings import Settings

logger = structlog.get_logger(__name__)
PAGE = Path(__file__).parent / "page.html"
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; base-uri 'none'",
}


def create_app(settings: Settings, load: Callable[[], Engine] | None = None) -> FastAPI:
    """The application.

    Args:
        settings: of the operator.
        load: makes the engine; by default from the settings. It runs in the background, so that
            the process answers ``/healthz`` while models are being loaded.
    """

    def from_settings() -> Engine:
        return load_engine(settings.model, settings.store, settings.backbone, settings.device, settings.max_pixels)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
            app.state.engine = loader.submit(load or from_settings)
            yield

    app = FastAPI(
        title="DiffDGSS",
        description="Segments retinal photographs from deterministic diffusion features. Research only.",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings

    @app.middleware("http")
    async def security_headers(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers.update(_SECURITY_HEADERS)
        return response

    for kind in EXPECTED:
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(Exception, _broken)
    _add_routes(app)
    return app


async def _told(_request: Request, error: Exception) -> JSONResponse:
    status = status_of(error)
    if status >= 500:
        logger.error("request failed", problem=str(error), status=status)
    headers = {"Retry-After": "5"} if status == 503 else None
    return JSONResponse({"detail": str(error)}, status_code=status, headers=headers)


async def _broken(_request: Request, error: Exception) -> JSONResponse:
    """What nobody expected: said without its text, which is for the log."""
    logger.error("unexpected error", kind=type(error).__name__, problem=str(error))
    return JSONResponse({"detail": "internal error; the log of the service has more"}, status_code=500)


def _engine(request: Request) -> Engine:
    loading: Future[Engine] = request.app.state.engine
    if not loading.done():
        raise NotReady("models are still being loaded; try again in a few seconds")
    if error := loading.exception():
        raise NotReady(f"models could not be loaded: {error}")
    return loading.result()


ReadyEngine = Annotated[Engine, Depends(_engine)]
_PROBLEMS: dict[int | str, dict[str, object]] = {
    400: {"model": Problem, "description": "No image in the request"},
    406: {"model": Problem, "description": "None of the accepted types can be answered"},
    413: {"model": Problem, "description": "Too many bytes or pixels"},
    415: {"model": Problem, "description": "Not an image, or a damaged one"},
    422: {"model": Problem, "description": "An image without a field of view"},
    503: {"model": Problem, "description": "Not ready"},
}


def _add_routes(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return PAGE.read_text()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": Problem, "description": "Not ready"}})
    def readyz(engine: ReadyEngine) -> dict[str, str]:
        """Models are loaded; 503 before."""
        return {"status": "ready", "model": engine.card.task.name, "spec": engine.card.spec.digest}

    @app.post(
        "/segment",
        response_model=SegmentResponse,
        responses={200: {"content": {"image/png": {}}, "description": "Mask: JSON, or PNG of class ids"}, **_PROBLEMS},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["image"],
                            "properties": {"image": {"type": "string", "format": "binary"}},
                        }
                    }
                },
            }
        },
    )
    async def segment(request: Request, engine: ReadyEngine) -> Response:
        """Segment one photograph; ``Accept: image/png`` answers with the mask alone."""
        answer_type = _negotiated(request.headers.get("accept", "*/*"))
        data, name = await _uploaded(request)
        answer = await run_in_threadpool(engine.segment, data, name)
        task = engine.card.task
        if answer_type == "image/png":
            headers = {"X-Image-Id": answer.image_id, "X-Cached": str(answer.cached).lower()}
            return Response(encode_labels(answer.labels, task.colours), media_type=answer_type, headers=headers)
        body = to_response(answer, task.name, engine.card.spec, task.classes, task.colours)
        return Response(body.model_dump_json(), media_type=answer_type)


def _negotiated(accept: str) -> str:
    """``application/json`` or ``image/png``, whichever the client names first."""
    for part in accept.split(","):
        match part.partition(";")[0].strip().lower():
            case "image/png" | "image/*":
                return "image/png"
            case "application/json" | "application/*" | "*/*" | "":
                return "application/json"
    raise UnsupportedAnswer(f"cannot answer with {accept}; application/json and image/png can be had")


async def _uploaded(request: Request) -> tuple[bytes, str]:
    """Bytes and name of the field ``image``."""
    limit = request.app.state.settings.max_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"the request has {declared} bytes, the limit is {limit}")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise NoImage("expected multipart/form-data with the photograph in the field 'image'")
    limited = Request(request.scope, receive=_limited(request.receive, limit))
    async with limited.form(max_files=1, max_fields=10) as form:
        upload = form.get("image")
        if not isinstance(upload, UploadFile):
            raise NoImage("expected a file in the field 'image'")
        return await upload.read(), Path(upload.filename or "image").name


def _limited(receive: Receive, limit: int) -> Receive:
    """The body as it arrives, cut off with BodyTooLarge: a length need not be declared, or true."""
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLarge(f"the request has more than {limit} bytes")
        return message

    return receive_limited
