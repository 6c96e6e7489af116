"""Deterministic diffusion features, kept: specs, geometry, Zarr layout, batches through Dask."""

from store.batches import Batch, Plan, lazy_maps, plan_epoch, stream
from store.collection import Collection, Collections, Sample
from store.errors import (
    DamagedEntry,
    FormatError,
    MissingEntry,
    NonFiniteFeatures,
    SpecError,
    SpecMismatch,
    StoreError,
    StoreFull,
)
from store.feature_store import FeatureEntry, Features, FeatureStore, Key
from store.geometry import Geometry, Interpolation
from store.spec import Block, Clahe, Encoding, FeatureSpec, Preprocessing, parse_spec
from store.views import parse_views

__all__ = [
    "Batch",
    "Block",
    "Clahe",
    "Collection",
    "Collections",
    "DamagedEntry",
    "Encoding",
    "FeatureEntry",
    "FeatureSpec",
    "FeatureStore",
    "Features",
    "FormatError",
    "Geometry",
    "Interpolation",
    "Key",
    "MissingEntry",
    "NonFiniteFeatures",
    "Plan",
    "Preprocessing",
    "Sample",
    "SpecError",
    "SpecMismatch",
    "StoreError",
    "StoreFull",
    "lazy_maps",
    "parse_spec",
    "parse_views",
    "plan_epoch",
    "stream",
]
