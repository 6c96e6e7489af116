"""Routes that list and reload the models."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from extractor.errors import ExtractorError
from interpreter.errors import InterpreterError
from service.context import Admitted, ReadyEngine, SharedContext
from service.errors import Conflict, WrongSettings
from service.models import Model
from service.routes.problems import problems
from service.schemas import ModelInfo, Reloaded
from store.errors import StoreError

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=list[ModelInfo], responses=problems(401, 429, 503), operation_id="list_models")
async def models(engine: ReadyEngine, _key: Admitted) -> list[ModelInfo]:
    """List all models, the default first."""
    return [described(model, model is engine.models.default) for model in engine.models.by_name.values()]


@router.post("/v1/reload", response_model=Reloaded, responses=problems(401, 403, 409, 429, 503), operation_id="reload")
async def reload(context: SharedContext, key: Admitted) -> Reloaded:
    """Reload settings, keys and models without interrupting requests; only for keys named in ``admins``."""
    context.require_admin(key, "reload")
    try:
        return Reloaded(models=await run_in_threadpool(context.reload))
    except (WrongSettings, ExtractorError, InterpreterError, StoreError) as error:
        raise Conflict(f"nothing was reloaded: {error}") from error


def described(model: Model, default: bool) -> ModelInfo:
    """The description of a model for clients."""
    card = model.card
    return ModelInfo(
        name=model.name,
        version=model.version,
        default=default,
        classes=list(card.task.classes),
        colours=list(card.task.palette),
        timesteps=list(card.spec.timesteps),
        spec=card.spec.digest,
        backbone=card.spec.backbone,
        resolution=card.spec.resolution,
        domain_threshold=None if model.domain is None else model.domain.threshold,
        residual_range=None if model.domain is None else model.domain.residual_range,
        validation_dice=card.metrics.validation_dice,
        training_images=len(card.training_ids),
        licence=card.licence,
    )
