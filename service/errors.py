"""What the service answers when it cannot answer, and the status codes of all errors.

ServiceError
├── WrongSettings          settings that cannot be read
├── BadRequest             a malformed request
│   └── NoImage            a request without an image
├── BodyTooLarge           more bytes than the limit
├── BodyTooSlow            a body that does not arrive
├── UnsupportedAnswer      a media type that nobody here writes
├── Unauthorised           no key, or a wrong one
├── Forbidden              a key that may not do this
├── NotFound               no such model, features or job
├── Conflict               a job that is not in the state for this
├── TooManyRequests        a key's own rate or concurrency is used up
├── Unavailable            not now; Retry-After says when
│   ├── NotReady           models are still being loaded, or could not be
│   ├── NoRoom             the device has no memory for a photograph now
│   ├── DeviceLost         the device failed for good; only a new process has it again
│   ├── Busy               the queue is full, or the deadline passed in it
│   └── DeadlinePassed     the deadline passed while the answer was being made
└── Abandoned              nobody waits for the answer any more

extractor's ImageError
└── DicomError             a DICOM file that is no photograph, damaged, or contradicts itself
"""

from __future__ import annotations

import math

from extractor.errors import ExtractorError, ImageError, ImageTooLarge, NoFieldOfView
from interpreter.errors import InterpreterError
from store.errors import DamagedEntry, StoreBusy, StoreError, StoreFull, StoreUnavailable


class ServiceError(Exception):
    """Base of all errors of the service; the message says what to do."""


class WrongSettings(ServiceError):
    """Settings that cannot be read; names the variable or file, never what it holds."""


class BadRequest(ServiceError):
    """The request is malformed."""


class NoImage(BadRequest):
    """The request holds no image."""


class BodyTooLarge(ServiceError):
    """The request has more bytes than the limit allows."""


class BodyTooSlow(ServiceError):
    """The request's body did not arrive in time."""


class UnsupportedAnswer(ServiceError):
    """The client accepts none of the types that can be answered."""


class Unauthorised(ServiceError):
    """The request has no API key, or one that is not known."""


class Forbidden(ServiceError):
    """The key may not do what was asked for."""


class NotFound(ServiceError):
    """What was asked for is not here."""


class Conflict(ServiceError):
    """What was asked for cannot be done in this state."""


class TooManyRequests(ServiceError):
    """The limits of this key are used up.

    Args:
        message: for the client.
        retry_after: seconds.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ServiceError):
    """Not now.

    Args:
        message: for the client.
        retry_after: seconds.
    """

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Unavailable):
    """The models are not loaded."""


class NoRoom(Unavailable):
    """The device has no memory for a photograph now; others use it, since one was tried before the first request."""


class DeviceLost(Unavailable):
    """The device computes no more in this process.

    Args:
        by_this: it was lost while it was at this photograph, or at another one of its batch.
    """

    def __init__(self, *, by_this: bool = False) -> None:
        super().__init__("the device has failed and the service has to be started anew; ask again later", 30)
        self.by_this = by_this


class Busy(Unavailable):
    """More is asked for than can be done."""


class DeadlinePassed(Unavailable):
    """The answer took longer than the request was given; what was done is kept, so it is worth asking again."""


class Abandoned(ServiceError):
    """Nobody waits for the answer any more."""


class DicomError(ImageError):
    """Not a DICOM file that can be read here, or one whose parts contradict each other."""


EXPECTED = (ServiceError, ExtractorError, InterpreterError, StoreError)

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (BodyTooLarge, 413),
    (BodyTooSlow, 408),
    (ImageTooLarge, 413),
    (NoFieldOfView, 422),
    (ImageError, 415),
    (BadRequest, 400),
    (UnsupportedAnswer, 406),
    (Unauthorised, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (TooManyRequests, 429),
    (Unavailable, 503),
    (Abandoned, 499),
    (StoreUnavailable, 503),
    (StoreFull, 503),
    (StoreBusy, 503),
    (DamagedEntry, 404),
)


def status_of(error: Exception) -> int:
    """The HTTP status that tells a client whose fault it was."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def detail_of(error: Exception) -> str:
    """What a client is told. The store's own messages name places and are for the log."""
    if isinstance(error, DamagedEntry):
        return "these features are damaged; send the photograph, and they are made anew"
    if isinstance(error, (StoreUnavailable, StoreFull)):
        return "the storage does not answer or is full; ask again later"
    if isinstance(error, StoreBusy):
        return "these features are being made now; ask again later"
    if isinstance(error, StoreError):
        return "the storage cannot do this; the log of the service has more"
    return str(error)


def headers_of(error: Exception) -> dict[str, str]:
    """What a client should know besides the status: when to ask again, how to say who it is."""
    if isinstance(error, (Unavailable, TooManyRequests)):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, (StoreUnavailable, StoreFull, StoreBusy)):
        return {"Retry-After": "30"}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}
