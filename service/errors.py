"""The service's exceptions, and how every error is reported over HTTP: status, detail and headers.

ServiceError
├── WrongSettings          settings that cannot be read
├── BadRequest             a malformed request
│   └── NoImage            a request without an image
├── BodyTooLarge           more bytes than the limit
├── BodyTooSlow            a body that does not arrive
├── UnsupportedAnswer      no media type that the client accepts can be written
├── Unauthorised           no key, or a wrong one
├── Forbidden              a key that may not do this
├── NotFound               no such model, features or job
├── Conflict               not possible in the present state of a job or photograph, or during a reload
├── TooManyRequests        the rate or concurrency of a key is used up
├── Unavailable            not possible now; Retry-After says when to try again
│   ├── NotReady           models are still being loaded, or could not be
│   ├── DeviceOutOfMemory  the device has no memory for a photograph now
│   ├── DeviceLost         the device has failed for good; only a new process can use it again
│   ├── Busy               the queue is full, or the deadline passed while the request was queued
│   └── DeadlinePassed     the deadline passed while the answer was being made
└── Abandoned              nobody waits for the answer any more

extractor's ImageError
└── DicomError             a DICOM file that is not a photograph, is damaged, or contradicts itself
"""

from __future__ import annotations

import math

from extractor.errors import ExtractorError, ImageError, ImageTooLarge, NoFieldOfView
from interpreter.errors import InterpreterError
from store.errors import DamagedEntry, FormatError, StoreBusy, StoreError, StoreFull, StoreUnavailable


class ServiceError(Exception):
    """Base of all errors of the service; the message says what to do."""


class WrongSettings(ServiceError):
    """Settings that cannot be read or are invalid; the message names the setting or file, and never an API key."""


class BadRequest(ServiceError):
    """The request is malformed."""


class NoImage(BadRequest):
    """The request holds no image."""


class BodyTooLarge(ServiceError):
    """The request has more bytes than the limit allows."""


class BodyTooSlow(ServiceError):
    """The request's body did not arrive in time."""


class UnsupportedAnswer(ServiceError):
    """The client accepts none of the media types that can be written."""


class Unauthorised(ServiceError):
    """The request has no API key, or an unknown one."""


class Forbidden(ServiceError):
    """The key may not do what was requested."""


class NotFound(ServiceError):
    """What was requested does not exist here."""


class Conflict(ServiceError):
    """What was requested cannot be done in the present state."""


class TooManyRequests(ServiceError):
    """The limits of this key are used up.

    Args:
        message: text for the client.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(ServiceError):
    """The request cannot be answered now, but may be later.

    Args:
        message: text for the client.
        retry_after: seconds after which the client should try again.
    """

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(Unavailable):
    """The models are not loaded."""


class DeviceOutOfMemory(Unavailable):
    """The device has no memory for a photograph now.

    Other processes must be using it: one photograph fitted when the models were run once before the first request.
    """


class DeviceLost(Unavailable):
    """The device has failed for good in this process.

    Args:
        by_this: whether it failed while processing this photograph, or another one of the same batch.
    """

    def __init__(self, *, by_this: bool = False) -> None:
        super().__init__("the device has failed and the service must be restarted; ask again later", 30)
        self.by_this = by_this


class Busy(Unavailable):
    """There are more requests than can be processed."""


class DeadlinePassed(Unavailable):
    """The answer took longer than the request allowed; finished stages are kept, so that asking again is worthwhile."""


class Abandoned(ServiceError):
    """Nobody waits for the answer any more."""


class DicomError(ImageError):
    """A file that is not a DICOM file that can be read here, or one whose parts contradict each other."""


HANDLED_ERRORS = (ServiceError, ExtractorError, InterpreterError, StoreError)

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
    """Return the HTTP status of an error; 500 for one that was not expected."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def detail_of(error: Exception) -> str:
    """Return the text for the client. The store's own messages contain locations and are for the log only."""
    if isinstance(error, DamagedEntry):
        return "these features are damaged; send the photograph, and they are extracted again"
    if isinstance(error, (StoreUnavailable, StoreFull)):
        return "the storage does not answer or is full; ask again later"
    if isinstance(error, StoreBusy):
        return "these features are being extracted now; ask again later"
    if isinstance(error, StoreError):
        return "the storage cannot do this; the log of the service has more"
    return str(error)


def trouble_of(error: Exception) -> str:
    """Return the kind of trouble that storage is in, without keys or addresses, which identify photographs."""
    if isinstance(error, StoreFull):
        return "no room left"
    if isinstance(error, StoreUnavailable):
        return "there is no such bucket" if "no such bucket" in str(error) else "it refuses access or does not answer"
    if isinstance(error, FormatError):
        return "it is of another kind or version than can be read here"
    if isinstance(error, StoreError):
        return "what it holds cannot be read"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def headers_of(error: Exception) -> dict[str, str]:
    """Return the headers of an error: when to try again, or how to authenticate."""
    if isinstance(error, (Unavailable, TooManyRequests)):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, (StoreUnavailable, StoreFull, StoreBusy)):
        return {"Retry-After": "30"}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorised) else {}
