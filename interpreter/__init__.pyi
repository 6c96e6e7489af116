"""The names that are promised; everything else may move."""

from .checkpoint import Card, Validation, load_interpreter, save_interpreter
from .config import InterpreterConfig
from .data import LabelledImage, all_images, labelled_in
from .domain import Domain, DomainScore, load_domain
from .errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    ExtractionFailed,
    InterpreterError,
    NonFinitePrediction,
    ScanUnavailable,
    TrainingDiverged,
)
from .evaluation import ImageScores, Scores, evaluate
from .network import Interpreter
from .prediction import Prediction, Segmentation, predict, segment
from .presets import TRAINING_PRESETS, TrainingPlan
from .pseudo_labels import PseudoLabels
from .rules import Rules
from .segmenting import SegmentedPhotograph, segment_into
from .settings import TrainingRecord, TrainingSettings
from .task import Task
from .training import Training

__all__ = [
    "TRAINING_PRESETS",
    "Card",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "Domain",
    "DomainScore",
    "ExtractionFailed",
    "ImageScores",
    "Interpreter",
    "InterpreterConfig",
    "InterpreterError",
    "LabelledImage",
    "NonFinitePrediction",
    "Prediction",
    "PseudoLabels",
    "Rules",
    "ScanUnavailable",
    "Scores",
    "Segmentation",
    "SegmentedPhotograph",
    "Task",
    "Training",
    "TrainingDiverged",
    "TrainingPlan",
    "TrainingRecord",
    "TrainingSettings",
    "Validation",
    "all_images",
    "evaluate",
    "labelled_in",
    "load_domain",
    "load_interpreter",
    "predict",
    "save_interpreter",
    "segment",
    "segment_into",
]
