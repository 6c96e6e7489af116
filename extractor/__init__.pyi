"""The names that are promised; everything else may move."""

from .assessing import Assessment, assess
from .backbone import Backbone
from .backbone_folder import load_backbone, save_backbone
from .backbones import open_backbone
from .datasets import DataSet, Selection, load_dataset
from .diffusion import Diffusion
from .errors import (
    BackboneError,
    CheckpointError,
    ClusterError,
    DatasetError,
    DeviceFull,
    ExtractorError,
    ImageError,
    ImageTooLarge,
    NoFieldOfView,
    NonFiniteActivation,
    PretrainingError,
    ScheduleError,
)
from .execution import Execution, extract_recorded
from .extraction import Extractor
from .guided_diffusion import UnrecordedOptions, import_checkpoint, read_checkpoint
from .images import decode_image, image_id
from .inversion import anchor, diffuse, invert, reconstruct
from .photographs import PreparedPhotographs, prepare_photographs
from .presets import Preset, fast, paper, small
from .pretraining import Pretraining
from .pretraining_settings import PretrainingSettings
from .request import Request
from .run_report import RunReport
from .schedule import NoiseSchedule, noise_schedule

__all__ = [
    "Assessment",
    "Backbone",
    "BackboneError",
    "CheckpointError",
    "ClusterError",
    "DataSet",
    "DatasetError",
    "DeviceFull",
    "Diffusion",
    "Execution",
    "Extractor",
    "ExtractorError",
    "ImageError",
    "ImageTooLarge",
    "NoFieldOfView",
    "NoiseSchedule",
    "NonFiniteActivation",
    "PreparedPhotographs",
    "Preset",
    "Pretraining",
    "PretrainingError",
    "PretrainingSettings",
    "Request",
    "RunReport",
    "ScheduleError",
    "Selection",
    "UnrecordedOptions",
    "anchor",
    "assess",
    "decode_image",
    "diffuse",
    "extract_recorded",
    "fast",
    "image_id",
    "import_checkpoint",
    "invert",
    "load_backbone",
    "load_dataset",
    "noise_schedule",
    "open_backbone",
    "paper",
    "prepare_photographs",
    "read_checkpoint",
    "reconstruct",
    "save_backbone",
    "small",
]
