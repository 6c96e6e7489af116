"""The route that segments one photograph."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from extractor.errors import naming
from service.answers import Answer, relabelled
from service.context import Admitted, Context, ReadyEngine, SharedContext, wait_for_flight
from service.engine import Engine
from service.errors import Abandoned, BadRequest, DeadlinePassed, NoImage
from service.flights import Ticket
from service.options import FeatureOptions, Options, merge_options
from service.outputs import OUTPUTS, SourcePhotograph, negotiate_output
from service.routes.problems import SEGMENT
from service.schemas import SegmentResponse
from service.uploads import read_body

router = APIRouter(tags=["segment"])
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RAW = (
    "image/png", "image/jpeg", "image/tiff", "image/x-portable-anymap", "application/dicom", "application/octet-stream"
)  # fmt: skip


def _body(description: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a body with a photograph: raw bytes, or multipart with form fields."""
    form = {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}} | fields}
    content = {"multipart/form-data": {"schema": form}} | dict.fromkeys(_RAW, _BINARY)
    return {"requestBody": {"description": description, "required": False, "content": content}}


OPTION_FIELDS: dict[str, Any] = Options.model_json_schema()["properties"]
BODY = _body("The photograph; empty if `key` is given. Options may also be form fields.", OPTION_FIELDS)
FEATURES_BODY = _body("The photograph.", FeatureOptions.model_json_schema()["properties"])
HEADERS: dict[str, dict[str, Any]] = {
    "X-Image-Id": {"description": "sha256 of the photograph", "schema": {"type": "string"}},
    "X-Cached": {
        "description": "whether the features, or the whole answer, came from the cache",
        "schema": {"type": "boolean"},
    },
    "X-Output": {"description": "name of the output format", "schema": {"type": "string"}},
    "X-Engine-Seconds": {
        "description": "time spent on this answer, without waiting in queues",
        "schema": {"type": "number"},
    },
    "X-Abstain": {
        "description": "whether the answer should not be relied on; absent if that is not known",
        "schema": {"type": "boolean"},
    },
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer in the format that `output` or `Accept` asks for",
        "content": {one.media_type: _BINARY for one in OUTPUTS.values() if one.media_type != "application/json"},
        "headers": HEADERS,
    }
}


@router.post(
    "/v1/segment",
    response_model=SegmentResponse,
    responses=_ANSWERS | SEGMENT,
    openapi_extra=BODY,
    operation_id="segment",
)
@router.post(
    "/segment",
    response_model=SegmentResponse,
    responses=_ANSWERS | SEGMENT,
    openapi_extra=BODY,
    operation_id="segment_short",
)
async def segment(
    request: Request, engine: ReadyEngine, context: SharedContext, _key: Admitted, options: Annotated[Options, Query()]
) -> Response:
    """Segment one photograph, or a photograph whose features are in the store, by their key."""
    upload = await read_body(request, context.uploads, context.settings.max_bytes)
    options = merge_options(options, upload.fields)
    name, output = negotiate_output(options.output, request.headers.get("accept", "*/*"))
    file, data = upload.files[0] if upload.files else ("image", None)
    if options.key is None and data is None:
        raise NoImage("expected a photograph in the field 'image' or as the body, or a key of /v1/features")
    if options.key is not None and data is not None:
        raise BadRequest("expected a photograph or a key, found both")
    source, ticket = SourcePhotograph(data, context.settings.max_pixels), Ticket(context.settings.deadline)
    with naming(file):
        output.check(source)
        answer = await answered(request, engine, options, data, ticket)
        async with _turn(request, context, ticket):
            started = time.perf_counter()
            body = await run_in_threadpool(lambda: output.render(relabelled(answer, options), options, source))
            engine.metrics.observe("render", time.perf_counter() - started)
    headers = {
        "X-Image-Id": answer.image_id,
        "X-Cached": str(answer.cached).lower(),
        "X-Output": name,
        "X-Engine-Seconds": f"{sum(s for stage, s in answer.seconds.items() if stage != 'queue'):.4f}",
    }
    if answer.abstain is not None:
        headers["X-Abstain"] = str(answer.abstain).lower()
    return Response(body, media_type=output.media_type, headers=headers)


@asynccontextmanager
async def _turn(request: Request, context: Context, ticket: Ticket) -> AsyncIterator[None]:
    """Hold one of the few slots for rendering answers, which are limited because arrays at native size are large.

    Raises:
        DeadlinePassed: no slot became free before the deadline. Abandoned: the client has disconnected.
    """
    try:
        async with asyncio.timeout(ticket.remaining):
            await context.rendering.acquire()
    except TimeoutError as error:
        raise DeadlinePassed("the deadline passed before the answer was written; ask again, it is kept") from error
    try:
        if await request.is_disconnected():
            raise Abandoned("the client went away")
        yield
    finally:
        context.rendering.release()


async def answered(request: Request, engine: Engine, options: Options, data: bytes | None, ticket: Ticket) -> Answer:
    """The answer to a request: from the cache of finished answers if possible, else made by the engine."""
    if options.fov_only:
        if data is None:
            raise NoImage("fov_only needs the photograph; send it instead of its key")
        return await wait_for_flight(request, engine, engine.ask_field_of_view(data, ticket), ticket)
    if data is None:
        assert options.key is not None
        question = engine.question_by_key(options.key, options.model, options.timesteps, mirrored=options.mirrored)
    else:
        question = await run_in_threadpool(
            engine.question, data, options.model, options.timesteps, mirrored=options.mirrored
        )
    options.require_classes(question.model.card.task.classes)
    known = engine.cached_answer(question)
    if known is not None:
        return known
    return await wait_for_flight(request, engine, engine.ask(question, ticket), ticket)
