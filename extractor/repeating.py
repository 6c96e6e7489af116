"""What the store is told of a run so that it can be run again, from another folder and on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extractor.errors import DatasetError
from extractor.presets import UNTRAINED, is_shipped
from store.extraction_command import REPEATABLE
from store.feature_store import FeatureStore
from store.spec import FeatureSpec, preprocessing_name


def repeatable_options(given: Mapping[str, Any], spec: FeatureSpec) -> dict[str, str | bool]:
    """The options that make the same entries again, by name on the command line; paths absolute.

    Args:
        given: all options of ``extractor run``, by parameter.
        spec: what they came to; it says what a preset left open.
    """
    said = {name.replace("_", "-"): value for name, value in given.items()}
    options = {name: value for name, value in said.items() if value is not None and name in REPEATABLE}
    options["encoding"] = spec.encoding.kind
    if (prepared := preprocessing_name(spec.preprocessing)) is not None:
        options["preprocessing"] = prepared
    options["dataset"] = lasting_dataset(str(options["dataset"]))
    if "codebook" in options:
        options["codebook"] = str(Path(options["codebook"]).resolve())
    if "backbone" in options:
        options["backbone"] = lasting_backbone(options["backbone"])
    return {name: value if value is True else str(value) for name, value in options.items() if value is not False}


def require_own_name(store: FeatureStore, name: str, dataset: str) -> None:
    """DatasetError if the store knows another folder's photographs by the name that this one would take."""
    mine = lasting_dataset(dataset)
    for record in store.records.all():
        theirs = str(record.options.get("dataset", mine))
        if record.dataset == name and theirs != mine and Path(theirs.partition(":")[2]).exists():
            raise DatasetError(
                f"{store.location} knows the photographs of {theirs} as {name!r}, which {mine} would be called, too; "
                "give it a name of its own with --name (or this one, to take its place)"
            )


def lasting_dataset(dataset: str) -> str:
    """ADAPTER:PATH as it can be found again from another folder."""
    adapter, _, folder = dataset.partition(":")
    return f"{adapter}:{Path(folder).expanduser().resolve()}"


def lasting_backbone(backbone: str) -> str:
    """The backbone's name or place as it can be found again from another folder."""
    prefix = UNTRAINED if backbone.startswith(UNTRAINED) else ""
    name = backbone.removeprefix(UNTRAINED)
    return prefix + (str(Path(name).resolve()) if not is_shipped(name) and Path(name).is_dir() else name)


def lasting_store(store: str) -> str:
    """The store's place as workers find it from another folder."""
    return store if "://" in store else str(Path(store).expanduser().resolve())
