"""What the service answers when it cannot answer, and the status codes of all errors.

ServiceError
├── BodyTooLarge           more bytes than the limit
├── NoImage                a request without an image
├── NotReady               models are still being loaded, or could not be
└── UnsupportedAnswer      a media type that nobody here writes
"""

from __future__ import annotations

from extractor.errors import ExtractorError, ImageError, ImageTooLarge, NoFieldOfView
from interpreter.errors import InterpreterError
from store.errors import StoreError


class ServiceError(Exception):
    """Base of all errors of the service; the message says what to do."""


class BodyTooLarge(ServiceError):
    """The request has more bytes than the limit allows."""


class NoImage(ServiceError):
    """The request holds no image."""


class NotReady(ServiceError):
    """The models are not loaded."""


class UnsupportedAnswer(ServiceError):
    """The client accepts none of the types that can be answered."""


EXPECTED = (ServiceError, ExtractorError, InterpreterError, StoreError)

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (BodyTooLarge, 413),
    (ImageTooLarge, 413),
    (NoFieldOfView, 422),
    (ImageError, 415),
    (NoImage, 400),
    (UnsupportedAnswer, 406),
    (NotReady, 503),
)


def status_of(error: Exception) -> int:
    """The HTTP status that tells a client whose fault it was."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
