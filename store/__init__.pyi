"""The names that are promised; everything else may move."""

from .batches import Batch, Plan, lazy_maps, plan_epoch, stream
from .codebook import Codebook, Moments, load_codebook
from .collection import Collection, Collections, Sample
from .encoded import Encoded
from .errors import (
    DamagedEntry,
    DamagedModel,
    FormatError,
    MissingEntry,
    NonFiniteFeatures,
    SpecError,
    SpecMismatch,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from .exporting import to_xarray
from .feature_store import FeatureStore
from .features import FeatureEntry, Features, Key
from .geometry import Geometry, Interpolation
from .spec import (
    AffineEncoding,
    Block,
    Clahe,
    Encoding,
    FeatureSpec,
    FloatEncoding,
    Preprocessing,
    TransformEncoding,
    parse_spec,
)
from .views import parse_views

__all__ = [
    "AffineEncoding",
    "Batch",
    "Block",
    "Clahe",
    "Codebook",
    "Collection",
    "Collections",
    "DamagedEntry",
    "DamagedModel",
    "Encoded",
    "Encoding",
    "FeatureEntry",
    "FeatureSpec",
    "FeatureStore",
    "Features",
    "FloatEncoding",
    "FormatError",
    "Geometry",
    "Interpolation",
    "Key",
    "MissingEntry",
    "Moments",
    "NonFiniteFeatures",
    "Plan",
    "Preprocessing",
    "Sample",
    "SpecError",
    "SpecMismatch",
    "StoreBusy",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
    "TransformEncoding",
    "lazy_maps",
    "load_codebook",
    "parse_spec",
    "parse_views",
    "plan_epoch",
    "stream",
    "to_xarray",
]
