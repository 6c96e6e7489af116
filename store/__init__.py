"""Storage of deterministic diffusion features: specs, geometry, Zarr layout, and batches read through Dask."""

from store.batches import Batch, Plan, lazy_maps, plan_epoch, stream
from store.codebook import Codebook, Moments, load_codebook
from store.collection import Collection, Collections, Sample
from store.encoded import Encoded
from store.errors import (
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
from store.exporting import to_xarray
from store.feature_store import FeatureStore
from store.features import FeatureEntry, Features, Key
from store.geometry import Geometry, Interpolation
from store.spec import (
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
from store.views import parse_views

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
