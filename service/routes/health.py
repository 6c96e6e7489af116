"""Liveness, readiness and metrics, and the health and metadata routes of the Open Inference Protocol."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from service.context import Context, ReadyEngine, SharedContext
from service.errors import DeviceLost, NotReady
from service.routes.problems import problems
from service.schemas import Ready

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The answer of a live process."""

    status: str = "alive"


class TensorInfo(BaseModel):
    """One input or output tensor, as the Open Inference Protocol describes it."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, as the Open Inference Protocol describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ServerMetadata(BaseModel):
    """The server, as the Open Inference Protocol describes it."""

    name: str = "diffdgss"
    version: str
    extensions: list[str] = []


class Live(BaseModel):
    """The liveness of the server in the Open Inference Protocol."""

    live: bool = True


class ServerReady(BaseModel):
    """The readiness of the server in the Open Inference Protocol."""

    ready: bool = True


class ModelReady(BaseModel):
    """The readiness of a model in the Open Inference Protocol."""

    name: str
    ready: bool = True


@router.get("/healthz", response_model=Alive, responses=problems(503), operation_id="healthz")
async def healthz(context: SharedContext) -> Alive:
    """Liveness: 200 while the process can answer, 503 once its device is lost and only a restart helps."""
    _require_device(context)
    return Alive()


@router.get("/readyz", response_model=Ready, responses=problems(503), operation_id="readyz")
async def readyz(context: SharedContext) -> Ready:
    """Readiness: 503 until the models are loaded; ``degraded`` if the store or the storage of jobs is in trouble.

    A feature store that fails only costs time.
    """
    if (error := context.load_error()) is not None:
        raise NotReady(f"models could not be loaded: {error}", retry_after=30)
    engine = context.ready_engine()
    _require_device(context)
    troubles, jobs = await run_in_threadpool(engine.storage.probe), await run_in_threadpool(context.jobs.trouble)
    return Ready(
        status="degraded" if troubles or jobs else "ready",
        model=engine.card.task.name,
        spec=engine.card.spec.digest,
        models=list(engine.models.by_name),
        store=troubles,
        jobs=jobs,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    operation_id="metrics",
)
async def metrics(context: SharedContext) -> Response:
    """Metrics in the text format of Prometheus."""
    text = context.http.text()
    if (engine := context.loaded_engine()) is not None:
        text += engine.metrics.text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v2/health/live", response_model=Live, responses=problems(503), operation_id="v2_live")
async def live(context: SharedContext) -> Live:
    """Liveness, as ``/healthz``."""
    _require_device(context)
    return Live()


@router.get("/v2/health/ready", response_model=ServerReady, responses=problems(503), operation_id="v2_ready")
async def ready(context: SharedContext, _engine: ReadyEngine) -> ServerReady:
    """Readiness: 200 once the models are loaded, else 503."""
    _require_device(context)
    return ServerReady()


@router.get("/v2", response_model=ServerMetadata, responses=problems(), operation_id="v2_server")
async def server_metadata(request: Request) -> ServerMetadata:
    """Name and version of the server."""
    return ServerMetadata(version=request.app.version)


for _path, _answer in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics)):  # as monitors ask
    router.add_api_route(_path, _answer, methods=["HEAD"], include_in_schema=False)

_NAME = Annotated[str, PathParameter(max_length=200)]


@router.get("/v2/models/{name}", response_model=ModelMetadata, responses=problems(404, 503), operation_id="v2_model")
async def model_metadata(name: _NAME, engine: ReadyEngine) -> ModelMetadata:
    """Input and output tensors of a model, -1 for any size. Inference itself is ``POST /v1/segment``."""
    model = engine.models.get(name)
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
    """Readiness of a model: 404 if it is not loaded."""
    return ModelReady(name=engine.models.get(name).name)


def _require_device(context: Context) -> None:
    """Raise DeviceLost if the device has failed for good; before the models are loaded there is none to check."""
    engine = context.loaded_engine()
    if engine is not None and engine.device.lost:
        raise DeviceLost
