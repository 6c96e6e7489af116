"""OpenAPI descriptions and examples of the error responses."""

from __future__ import annotations

from typing import Any

from service.schemas import Problem

_TEXTS = {
    400: ("Malformed request", "expected a file in the field 'image'"),
    401: ("No API key, or an unknown one", "this API key is not known"),
    403: ("The key may not do this", "only the keys named in admins may reload"),
    404: ("Not found", "no model 'discs' here; there are vessels"),
    406: ("The answer is not available in the requested format", "cannot answer with text/plain"),
    408: ("The body did not arrive in time", "the body did not arrive within 600 s"),
    409: ("Not possible in the current state", "the job is running"),
    413: ("Too many bytes or pixels", "eye.png: 40000 x 40000 pixels are more than 50000000"),
    415: ("Not an image, or a damaged one", "eye.png: damaged or truncated image"),
    422: ("A photograph without a field of view, or invalid options", "eye.png: too dark"),
    429: ("The rate or concurrency limit of this key is reached", "more than 60 requests a minute of this key"),
    500: ("Unexpected error; details are in the log of the service", "internal error; the log of the service has more"),
    503: (
        "Not ready, overloaded, or not finished in time; Retry-After says when to retry",
        "models are still being loaded",
    ),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for these statuses, and for 422 and 500, which every route may answer."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 422, 500}):
        description, example = _TEXTS[status]
        response: dict[str, Any] = {
            "model": Problem,
            "description": description,
            "content": {"application/json": {"example": {"detail": example}}},
        }
        if status in (429, 503):
            response["headers"] = {
                "Retry-After": {"description": "seconds to wait before a retry", "schema": {"type": "integer"}}
            }
        found[status] = response
    return found


SEGMENT = problems(400, 401, 404, 406, 408, 413, 415, 429, 503)
"""Error responses of requests that carry a photograph."""
