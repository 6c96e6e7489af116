"""Photographs in request bodies, raw or multipart. Everything is held in memory; nothing is spooled to disk."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.errors import Abandoned, BadRequest, BodyTooLarge, BodyTooSlow, Busy, NoImage

RAW_TYPES = ("image/", "application/octet-stream", "application/dicom")


class Upload(NamedTuple):
    """The contents of a request body.

    Attributes:
        files: (name, bytes) of each file.
        fields: text fields by name; values of a repeated field are joined by commas.
    """

    files: list[tuple[str, bytes]]
    fields: dict[str, str]


class UploadBudget:
    """The memory budget for the bodies of all requests together.

    Args:
        limit: bytes of the budget.
        seconds: time within which a body has to arrive.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self.seconds = seconds
        self._limit, self._used = limit, 0
        self._lock = threading.Lock()

    def reserve(self, request: Request, count: int) -> None:
        """Reserve ``count`` more bytes for a request's body; Busy if the budget is used up."""
        budget, reserved = getattr(request.state, "reserved", (self, 0))
        assert budget is self, "a body is read once"
        with self._lock:
            if self._used + count > self._limit:
                raise Busy("other requests' photographs take all the memory for uploads; ask again later")
            self._used += count
        request.state.reserved = self, reserved + count

    def release(self, count: int) -> None:
        """Release bytes that were reserved before."""
        with self._lock:
            self._used -= count


def release_body(request: Request) -> None:
    """Give a body's memory back to the budget it was taken from, which a reload may have replaced in between."""
    budget, reserved = getattr(request.state, "reserved", (None, 0))
    if budget is not None:
        budget.release(reserved)
        del request.state.reserved


class _InMemory(MultiPartParser):
    """A multipart parser without temporary files; the size of the body is limited before it gets here."""

    spool_max_size = 2**62
    is_whole = False
    """Whether the boundary that ends the body has been read."""

    def on_end(self) -> None:
        super().on_end()
        self.is_whole = True


async def read_body(request: Request, budget: UploadBudget, limit: int, files: int = 1) -> Upload:
    """Read the body of a request.

    Args:
        budget: budget in which its bytes are reserved until the request is answered.
        limit: most bytes, counted as they arrive, since the declared length may be missing or wrong.
        files: most files that it may have.

    Raises:
        BodyTooLarge: the body has more than ``limit`` bytes.
        BadRequest: the multipart is malformed or has too many files, or the content type is unknown.
        BodyTooSlow: the body did not arrive in time.
        Busy: the budget is used up.
        Abandoned: the client disconnected while sending.
    """
    try:
        async with asyncio.timeout(budget.seconds):
            return await _read_body(request, budget, limit, files)
    except TimeoutError as error:
        raise BodyTooSlow(f"the body did not arrive within {budget.seconds:.0f} s") from error
    except ClientDisconnect as error:
        raise Abandoned("the client went away before all of the body had arrived") from error


async def _read_body(request: Request, budget: UploadBudget, limit: int, files: int) -> Upload:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(f"the request has {declared} bytes, the limit is {limit}")
    content_type = request.headers.get("content-type", "").lower()
    if content_type.startswith("multipart/form-data"):
        return await _multipart(request, budget, limit, files)
    if content_type.startswith(RAW_TYPES):
        data = b"".join([chunk async for chunk in _limited(request, budget, limit)])
        return Upload([("image", data)] if data else [], {})
    if any([chunk async for chunk in _limited(request, budget, limit)]):
        raise NoImage(
            "expected multipart/form-data with the photograph in the field 'image', or its bytes as image/* or "
            "application/octet-stream"
        )
    return Upload([], {})


async def _multipart(request: Request, budget: UploadBudget, limit: int, files: int) -> Upload:
    chunks = _limited(request, budget, limit)
    parser = _InMemory(request.headers, chunks, max_files=files, max_fields=20, max_part_size=10_000)
    try:
        form = await parser.parse()
        if not parser.is_whole:
            raise MultiPartException("it ends before its last boundary")
        uploads = [(key, value) for key, value in form.multi_items() if isinstance(value, UploadFile)]
        if strange := [key for key, _ in uploads if key != "image"]:
            raise NoImage(f"expected photographs in the field 'image', found a file in {strange[0][:40]!r}")
        fields: dict[str, str] = {}
        for key, value in form.multi_items():
            if isinstance(value, str):
                fields[key] = f"{fields[key]},{value}" if key in fields else value
        if "image" in fields:
            raise NoImage("expected a file in the field 'image', found text; with curl, write -F image=@FILE")
        return Upload([(plain_name(file.filename), await file.read()) for _, file in uploads], fields)
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        raise BadRequest(f"malformed multipart body ({error})") from error
    finally:
        for file in parser._files_to_close_on_error:  # files of incomplete parts are in no form
            file.close()


async def _limited(request: Request, budget: UploadBudget, limit: int) -> AsyncGenerator[bytes, None]:
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > limit:
            raise BodyTooLarge(f"the request has more than {limit} bytes")
        budget.reserve(request, len(chunk))
        yield chunk


LONGEST_NAME = 100
"""Bytes of a photograph's name that are kept, the last ones: files in a ZIP are named after it."""


def plain_name(filename: str | None) -> str:
    """The last component of a file name, with unusual characters replaced; for messages and results, never a path."""
    name = Path((filename or "image").replace("\\", "/")).name
    plain = re.sub(r"[^\w.\- ()]", "_", name).encode()[-LONGEST_NAME:].decode(errors="ignore")
    return plain or "image"
