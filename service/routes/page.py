"""The web page at ``/`` and its scripts, styles and icon; the page loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Response

from service.errors import NotFound

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in _TYPES}


@router.get("/")
async def page() -> Response:
    """The web page, where photographs are dropped to be segmented."""
    return _file("index.html")


@router.get("/page/{name}")
async def part(name: str) -> Response:
    """A style sheet, script or icon of the page."""
    return _file(name)


def _file(name: str) -> Response:
    if name not in _FILES:
        raise NotFound("the page has no such file")
    headers = {"Cache-Control": "no-cache"}
    return Response(_FILES[name], headers=headers, media_type=_TYPES[Path(name).suffix])
