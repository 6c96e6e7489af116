"""Routes that make, describe, read and delete the stored features of a photograph."""

from __future__ import annotations

import io
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from extractor.errors import naming
from service.context import Admitted, ReadyEngine, SharedContext, wait_for_flight
from service.engine import Engine
from service.errors import BadRequest, NoImage, NotFound, Unavailable
from service.flights import Ticket
from service.options import KEY_PATTERN, FeatureOptions, merge_options
from service.routes.problems import problems
from service.routes.segment import FEATURES_BODY
from service.schemas import BlockInfo, FeaturesInfo
from service.uploads import read_body
from store.errors import MissingEntry, SpecError
from store.features import Key
from store.spec import FeatureSpec

router = APIRouter(tags=["features"])
_KEY = Annotated[
    str, Path(pattern=KEY_PATTERN, description="first 16 digits of the spec's digest, a dot, sha256 of the photograph")
]


@router.post(
    "/v1/features",
    response_model=FeaturesInfo,
    responses=problems(400, 401, 404, 408, 409, 413, 415, 429, 503),
    openapi_extra=FEATURES_BODY,
    operation_id="make_features",
)
async def make(
    request: Request,
    engine: ReadyEngine,
    context: SharedContext,
    _key: Admitted,
    options: Annotated[FeatureOptions, Query()],
) -> FeaturesInfo:
    """Store the features of a photograph, unless they are there; later requests may send their key instead of it."""
    upload = await read_body(request, context.uploads, context.settings.max_bytes)
    if not upload.files:
        raise NoImage("expected a photograph in the field 'image' or as the body")
    name, data = upload.files[0]
    ticket = Ticket(context.settings.deadline)
    options = merge_options(options, upload.fields)
    question = await run_in_threadpool(engine.question, data, options.model, mirrored=options.mirrored)
    with naming(name):
        kept = await wait_for_flight(request, engine, engine.ask_features(question, ticket), ticket)
    if not kept.stored:
        raise Unavailable("the features could not be stored; /readyz says why", retry_after=30)
    try:
        info = await run_in_threadpool(described, engine, kept.key)
    except NotFound as error:  # another process has claimed the entry and is still writing it
        raise Unavailable("another process is storing these features; ask again", retry_after=5) from error
    return info.model_copy(update={"cached": kept.cached, "forwards": kept.forwards})


@router.get(
    "/v1/features/{key}",
    response_model=FeaturesInfo,
    responses=problems(400, 401, 404, 429, 503)
    | {200: {"content": {"application/x-npy": {"schema": {"type": "string", "format": "binary"}}}}},
    operation_id="read_features",
)
async def read(
    key: _KEY,
    engine: ReadyEngine,
    _key: Admitted,
    block: Annotated[
        str | None, Query(max_length=100, description="answer with the feature maps of this block, as float32 .npy")
    ] = None,
    timestep: Annotated[
        int | None, Query(ge=0, le=1_000_000, description="timestep of the block to answer with; all by default")
    ] = None,
) -> Response | FeaturesInfo:
    """Describe the stored features of a photograph, or read one block as ``.npy`` of shape (t, c, h, w)."""
    if block is None and timestep is not None:
        raise BadRequest("timestep was given without a block; name the block, too")
    if block is None:
        return await run_in_threadpool(described, engine, key)
    data = await run_in_threadpool(_block, engine, key, block, timestep)
    return Response(data, media_type="application/x-npy")


@router.delete(
    "/v1/features/{key}", status_code=204, responses=problems(401, 403, 404, 429, 503), operation_id="delete_features"
)
async def delete(key: _KEY, engine: ReadyEngine, context: SharedContext, name: Admitted) -> None:
    """Delete the features of a photograph in all views, and its cached answers; only for keys named in ``admins``.

    Features are shared by everybody who has the photograph, and by training, so not every key may delete them.
    """
    context.require_admin(name, "delete features")
    spec, entry_key, _ = _located(engine, key)
    if not await run_in_threadpool(engine.forget, spec, entry_key.image_id):
        raise NotFound("no such features here (any more)")


def described(engine: Engine, key: str) -> FeaturesInfo:
    """The description of stored features; NotFound if there are none."""
    spec, entry_key, models = _located(engine, key)
    stored = engine.storage.stored_bytes(spec, entry_key)
    if stored is None:
        raise NotFound("no such features here (any more)")
    blocks = [BlockInfo(name=b.name, shape=[len(spec.timesteps), b.channels, b.height, b.width]) for b in spec.blocks]
    return FeaturesInfo(
        key=key,
        image_id=entry_key.image_id,
        spec=spec.digest,
        timesteps=list(spec.timesteps),
        blocks=blocks,
        bytes=stored,
        models=models,
    )


def _block(engine: Engine, key: str, block: str, timestep: int | None) -> bytes:
    spec, entry_key, _ = _located(engine, key)
    try:
        maps = engine.storage.block(spec, entry_key, block, None if timestep is None else [timestep])
    except MissingEntry as error:
        raise NotFound("no such features here (any more)") from error
    except SpecError as error:
        raise NotFound(str(error)) from error
    buffer = io.BytesIO()
    np.save(buffer, maps)
    return buffer.getvalue()


def _located(engine: Engine, key: str) -> tuple[FeatureSpec, Key, list[str]]:
    readers, image_id = engine.models.readers(key)
    return readers[0].card.spec, Key(image_id), [reader.name for reader in readers]
