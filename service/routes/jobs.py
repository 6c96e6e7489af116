"""Routes of jobs, which segment many photographs in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from service.archive import archived
from service.context import Admitted, Context, ReadyEngine, SharedContext
from service.engine import Engine
from service.errors import BadRequest, Conflict, NoImage
from service.job_record import FINISHED, JobRecord
from service.jobs import Submitted
from service.options import Options, merge_options
from service.outputs import negotiate_output
from service.routes.problems import problems
from service.routes.segment import OPTION_FIELDS
from service.schemas import JobProblem, JobStatus
from service.security import as_utf8
from service.uploads import plain_name, read_body

router = APIRouter(tags=["jobs"])
_ID = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$", description="id of the job")]


_BODY: dict[str, Any] = {
    "requestBody": {
        "description": "The photographs, each in a field `image`; none if `folder` is given.",
        "required": False,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "folder": {"type": "string", "description": "the same as the header X-Folder"},
                    }
                    | OPTION_FIELDS,
                }
            }
        },
    }
}


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=JobStatus,
    responses=problems(400, 401, 403, 404, 406, 408, 413, 429, 503),
    openapi_extra=_BODY,
    operation_id="start_job",
)
async def start(
    request: Request,
    response: Response,
    engine: ReadyEngine,
    context: SharedContext,
    key: Admitted,
    options: Annotated[Options, Query()],
    folder: Annotated[
        str | None,
        Header(
            alias="X-Folder", max_length=1000, description="NAME or NAME/PREFIX of a folder that the operator allowed"
        ),
    ] = None,
) -> JobStatus:
    """Start a job that segments many photographs: uploaded ones, or those of a folder that the operator allowed."""
    upload = await read_body(request, context.uploads, context.settings.job_bytes, context.settings.job_images)
    folder = upload.fields.pop("folder", folder and as_utf8(folder))
    options = _checked(merge_options(options, upload.fields), engine)
    output, _ = negotiate_output(options.output, "image/png")
    options = options.model_copy(update={"output": output})
    if folder is not None and upload.files:
        raise BadRequest("expected photographs or a folder, found both")
    if folder is not None:
        photographs = await run_in_threadpool(_photographs, folder, context)
    else:
        photographs = [Submitted(name, data) for name, data in upload.files]
    if not photographs:
        raise NoImage(
            "expected photographs in fields 'image', or a folder that has some (header X-Folder or field 'folder')"
        )
    record = await context.jobs.create(key, options, photographs)
    if context.runner is not None:
        context.runner.wake()
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    return _status(record)


@router.get("/v1/jobs", response_model=list[JobStatus], responses=problems(401, 429, 503), operation_id="list_jobs")
async def listed(context: SharedContext, key: Admitted) -> list[JobStatus]:
    """List the jobs of this key that are still kept, oldest first."""
    records = await context.jobs.all()
    return [_status(record) for record in records if record.owner == key]


@router.get(
    "/v1/jobs/{job_id}", response_model=JobStatus, responses=problems(401, 404, 429, 503), operation_id="read_job"
)
async def read(job_id: _ID, context: SharedContext, key: Admitted) -> JobStatus:
    """The state and progress of a job."""
    return _status(await context.jobs.get(job_id, key))


@router.delete(
    "/v1/jobs/{job_id}",
    response_model=JobStatus,
    responses=problems(401, 404, 409, 429, 503),
    operation_id="cancel_job",
)
async def cancel(job_id: _ID, context: SharedContext, key: Admitted) -> JobStatus:
    """Cancel a job after the photograph in progress; the results so far can still be fetched."""
    record = await context.jobs.get(job_id, key)
    return _status(await context.jobs.cancel(record))


@router.get(
    "/v1/jobs/{job_id}/results",
    response_class=StreamingResponse,
    responses=problems(401, 404, 409, 429, 503)
    | {200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
    operation_id="read_job_results",
)
async def results(job_id: _ID, context: SharedContext, key: Admitted) -> StreamingResponse:
    """Download a ZIP of all answers; ``images.csv`` and ``job.json`` have a summary or the error of each photograph."""
    record = await context.jobs.get(job_id, key)
    if record.state not in FINISHED:
        raise Conflict(f"the job is {record.state}: {record.count('done')} of {len(record.items)} are done")
    disposition = {"Content-Disposition": f'attachment; filename="{job_id}.zip"'}
    pieces = _archive(context, record)
    first = await anext(pieces)  # before the answer begins, so that a storage that hangs is answered with 503
    return StreamingResponse(_chained(first, pieces), media_type="application/zip", headers=disposition)


@router.delete(
    "/v1/jobs/{job_id}/results",
    status_code=204,
    responses=problems(401, 404, 409, 429, 503),
    operation_id="delete_job",
)
async def delete(job_id: _ID, context: SharedContext, key: Admitted) -> None:
    """Delete a finished job and its results now, rather than when it expires."""
    record = await context.jobs.get(job_id, key)
    await context.jobs.remove(record)


async def _archive(context: Context, record: JobRecord) -> AsyncIterator[bytes]:
    """Yield the ZIP of a job's answers; meanwhile this service does not delete the job."""
    with context.jobs.reading(record.id):
        async for piece in archived(record, partial(context.jobs.result, record)):
            yield piece


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _checked(options: Options, engine: Engine) -> Options:
    """Return the options with the model named; invalid ones are refused now and not at the first photograph."""
    if options.key is not None or options.fov_only:
        raise BadRequest("a job segments photographs; expected neither key nor fov_only")
    question = engine.question(b"", options.model, options.timesteps)
    options.require_classes(question.model.card.task.classes)
    return options.model_copy(update={"model": question.model.name})  # a reload may change the default


def _photographs(folder: str, context: Context) -> list[Submitted]:
    """The photographs in the folder NAME or NAME/PREFIX, where NAME is one that the operator allowed."""
    most = context.settings.job_images
    found = context.sources.keys(folder, most + 1)
    if len(found) > most:
        raise BadRequest(f"the folder has more than {most} photographs; name a prefix with fewer")
    return [Submitted(plain_name(source), source=source) for source in found]


def _status(record: JobRecord) -> JobStatus:
    done, failed = record.count("done"), record.count("failed")
    failures = [
        JobProblem(number=number, name=item.name, source=item.source, detail=item.problem or "")
        for number, item in enumerate(record.items)
        if item.state == "failed"
    ]
    return JobStatus(
        id=record.id,
        state=record.state,
        total=len(record.items),
        done=done,
        failed=failed,
        abstained=sum(item.answer is not None and bool(item.answer.abstain) for item in record.items),
        progress=(done + failed) / max(1, len(record.items)),
        created=record.created,
        finished=record.finished,
        problems=failures[:100],
        trouble=record.trouble if record.state not in FINISHED else None,
        results=f"/v1/jobs/{record.id}/results",
    )
