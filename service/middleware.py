"""Middleware around every request: its id, log line and metrics, security headers, and a 500 for what went wrong."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import HttpMetrics
from service.security import is_loopback
from service.settings import Settings

logger = structlog.get_logger(__name__)
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
}
ANSWER_SECONDS = 600.0
"""Longest time that a client may take to accept one piece of an answer."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET = ("/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Middleware that gives each request an id, security headers, a log line and metrics.

    It is pure ASGI, so that the routes still notice when a client disconnects.
    """

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        request_id = _request_id(scope)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = request_id
                if scope["path"] != "/":
                    headers.setdefault("Cache-Control", "no-store")
            async with asyncio.timeout(ANSWER_SECONDS):
                await send(message)

        self._metrics.in_flight.inc()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_headers)
            except Exception as error:
                status = 499 if isinstance(error, ClientDisconnect) else 500  # even after a 200: it was cut off
                raise
            except asyncio.CancelledError:
                status = 499
                raise
            finally:
                self._metrics.in_flight.dec()
                self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")  # not the path: every URL would be a label
        method = scope["method"] if scope["method"] in _METHODS else "other"  # clients may send any word as the method
        self._metrics.requests.labels(route, method if route != "unknown" else "any", str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if scope["path"] not in _QUIET:
            logger.info("request", route=route, method=scope["method"], status=status, seconds=round(seconds, 4))


class LocalMiddleware:
    """Middleware that keeps pages of other sites from using a service that listens on its own machine without keys.

    A browser on the machine would pass on what any page asks for. Requests are refused if their ``Host`` is another
    name, which may have been made to resolve to this machine (DNS rebinding), and those that are sent by another
    site's page, unless CORS allows its origin.

    Args:
        settings: returns the settings that are in force.
    """

    def __init__(self, app: ASGIApp, settings: Callable[[], Settings]) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope), scope["method"])) is not None:
            await JSONResponse({"detail": refusal}, status_code=403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, method: str) -> str | None:
        settings = self._settings()
        if settings.api_keys or not is_loopback(settings.host):
            return None
        asked = headers.get("host", "")
        host, trusted = _host_of(f"//{asked}"), {name.lower() for name in settings.trusted_hosts}
        if asked and not is_loopback(host) and not {"*", host} & trusted:
            return "without API keys this service is for its own machine: set api_keys, or trusted_hosts to this host"
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        # Browsers leave the first one out for names that are neither https nor of this machine.
        elsewhere = site == "cross-site" if site else origin is not None and _host_of(origin) != host
        if elsewhere and method not in ("GET", "HEAD", "OPTIONS") and not {"*", origin} & {*settings.cors_origins}:
            return "a page of another site may not ask this service; name its origin in cors_origins"
        return None


def _host_of(url: str) -> str:
    """The host of a URL in small letters; empty if it is malformed."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""


class UnexpectedErrorMiddleware:
    """Middleware that turns unexpected exceptions into a 500, whose message is only logged.

    FastAPI's own handler of ``Exception`` runs outside of all middleware: its answers would have
    neither a request id nor security headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if begun or scope["type"] != "http":  # too late for a 500: the answer that has begun is cut off
                raise
            logger.exception("unexpected error", kind=type(error).__name__)
            answer = JSONResponse({"detail": "internal error; the log of the service has more"}, status_code=500)
            await answer(scope, receive, send)


def _request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is well-formed, so that requests can be traced across services, else a new id."""
    offered = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    return offered if _ID.fullmatch(offered) else uuid.uuid4().hex
