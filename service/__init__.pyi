"""The names that are promised; everything else may move."""

from .answers import Answer
from .app import create_app
from .client import Client, Refused, Unreachable
from .engine import Engine, load_engine
from .errors import (
    BadRequest,
    Busy,
    DeadlinePassed,
    DeviceLost,
    DeviceOutOfMemory,
    DicomError,
    NotFound,
    NotReady,
    ServiceError,
    Unavailable,
    WrongSettings,
)
from .question import Limits
from .schemas import FeaturesInfo, JobStatus, ModelInfo, Ready, SegmentResponse
from .settings import Settings

__all__ = [
    "Answer",
    "BadRequest",
    "Busy",
    "Client",
    "DeadlinePassed",
    "DeviceLost",
    "DeviceOutOfMemory",
    "DicomError",
    "Engine",
    "FeaturesInfo",
    "JobStatus",
    "Limits",
    "ModelInfo",
    "NotFound",
    "NotReady",
    "Ready",
    "Refused",
    "SegmentResponse",
    "ServiceError",
    "Settings",
    "Unavailable",
    "Unreachable",
    "WrongSettings",
    "create_app",
    "load_engine",
]
