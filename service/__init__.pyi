"""The names that are promised; everything else may move."""

from .answers import Answer
from .app import create_app
from .client import Client
from .engine import Engine, load_engine
from .errors import (
    Abandoned,
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    Busy,
    Conflict,
    DeadlinePassed,
    DeviceLost,
    DicomError,
    Forbidden,
    NoImage,
    NoRoom,
    NotFound,
    NotReady,
    ServiceError,
    TooManyRequests,
    Unauthorised,
    Unavailable,
    UnsupportedAnswer,
    WrongSettings,
)
from .question import Limits
from .settings import Settings

__all__ = [
    "Abandoned",
    "Answer",
    "BadRequest",
    "BodyTooLarge",
    "BodyTooSlow",
    "Busy",
    "Client",
    "Conflict",
    "DeadlinePassed",
    "DeviceLost",
    "DicomError",
    "Engine",
    "Forbidden",
    "Limits",
    "NoImage",
    "NoRoom",
    "NotFound",
    "NotReady",
    "ServiceError",
    "Settings",
    "TooManyRequests",
    "Unauthorised",
    "Unavailable",
    "UnsupportedAnswer",
    "WrongSettings",
    "create_app",
    "load_engine",
]
