"""Whether the service is alive and ready, its metrics, and the Open Inference Protocol's health and metadata."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from service.context import Context, ReadyEngine, SharedContext
from service.engine import Engine
from service.errors import DeviceLost, NotFound, NotReady
from service.models import Model
from service.routes.problems import problems
from service.schemas import Ready

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class TensorInfo(BaseModel):
    """One input or output, in the Open Inference Protocol's words."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, in the Open Inference Protocol's words."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServerMetadata(BaseModel):
    """The server, in the Open Inference Protocol's words."""

    name: str = "diffdgss"
    version: str
    extensions: list[str] = []


class Live(BaseModel):
    """The Open Inference Protocol's answer to whether the server lives."""

    live: bool = True


class ServerReady(BaseModel):
    """The Open Inference Protocol's answer to whether the server is ready."""

    ready: bool = True


class ModelReady(BaseModel):
    """The Open Inference Protocol's answer to whether a model is ready."""

    name: str
    ready: bool = True


@router.get("/healthz", response_model=Alive, responses=problems(503), operation_id="healthz")
async def healthz(context: SharedContext) -> Alive:
    """The process is alive; 503 where only a new one can answer again, since the device is lost to this one."""
    _require_device(context)
    return Alive()


@router.get("/readyz", response_model=Ready, responses=problems(503), operation_id="readyz")
async def readyz(context: SharedContext) -> Ready:
    """Models are warm, 503 before; ``degraded`` while the store is in trouble, which costs time and no answers."""
    if context.engine.done() and (error := context.engine.exception()):
        raise NotReady(f"models could not be loaded: {error}", retry_after=30)
    engine = context.ready_engine()
    _require_device(context)
    troubles = await run_in_threadpool(engine.storage.probe)
    return Ready(
        status="degraded" if troubles else "ready",
        model=engine.card.task.name,
        spec=engine.card.spec.digest,
        models=list(engine.models.by_name),
        store=troubles,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    operation_id="metrics",
)
async def metrics(context: SharedContext) -> Response:
    """For Prometheus."""
    text = context.http.text()
    if context.engine.done() and context.engine.exception() is None:
        text += context.engine.result().metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v2/health/live", response_model=Live, responses=problems(503), operation_id="v2_live")
async def live(context: SharedContext) -> Live:
    """The same as ``/healthz``."""
    _require_device(context)
    return Live()


@router.get("/v2/health/ready", response_model=ServerReady, responses=problems(503), operation_id="v2_ready")
async def ready(context: SharedContext, _engine: ReadyEngine) -> ServerReady:
    """Models are loaded and warm."""
    _require_device(context)
    return ServerReady()


@router.get("/v2", response_model=ServerMetadata, responses=problems(), operation_id="v2_server")
async def server_metadata(request: Request) -> ServerMetadata:
    """What answers here."""
    return ServerMetadata(version=request.app.version)


_NAME = Annotated[str, PathParameter(max_length=200)]


@router.get("/v2/models/{name}", response_model=ModelMetadata, responses=problems(404, 503), operation_id="v2_model")
async def model_metadata(name: _NAME, engine: ReadyEngine) -> ModelMetadata:
    """What a model takes and gives; -1 is any size. Answers are had from ``/v1/segment``."""
    model = _model(engine, name)
    classes = len(model.card.task.classes)
    return ModelMetadata(
        name=model.name,
        versions=[model.version],
        platform="pytorch_diffdgss",
        inputs=[TensorInfo(name="image", datatype="UINT8", shape=[-1, -1, 3])],
        outputs=[
            TensorInfo(name="labels", datatype="UINT8", shape=[-1, -1]),
            TensorInfo(name="probabilities", datatype="FP16", shape=[classes, -1, -1]),
        ],
    )


@router.get(
    "/v2/models/{name}/ready", response_model=ModelReady, responses=problems(404, 503), operation_id="v2_model_ready"
)
async def model_ready(name: _NAME, engine: ReadyEngine) -> ModelReady:
    """Whether a model is loaded."""
    return ModelReady(name=_model(engine, name).name)


def _require_device(context: Context) -> None:
    """DeviceLost where the device computes no more; nothing is wrong while models are being loaded."""
    if context.engine.done() and context.engine.exception() is None and context.engine.result().device.lost:
        raise DeviceLost


def _model(engine: Engine, name: str) -> Model:
    if name not in engine.models.by_name:
        raise NotFound(f"no model {name[:100]!r} here; there are {', '.join(engine.models.by_name)}")
    return engine.models.by_name[name]
