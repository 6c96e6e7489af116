"""The request of an extraction, in a form that can be repeated from another folder or on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from extractor.backbones import UNTRAINED, is_shipped
from extractor.datasets import DataSet, load_dataset, selected
from extractor.errors import DatasetError
from store.extraction_command import options_of_spec
from store.feature_store import FeatureStore
from store.pixels import holds_pixels
from store.spec import FeatureSpec, preprocessing_name
from store.views import IDENTITY


@dataclass(frozen=True)
class Request:
    """The parameters of an extraction: everything that determines its result.

    Attributes:
        dataset: ADAPTER:PATH.
        spec: spec of the features.
        backbone: name or place of the spec's backbone.
        views: renderings of each photograph.
        name: what the data set is called in the store; named after its adapter or folder if None.
        split: only this split.
        limit: at most this number of photographs, the first ones.
        images: only photographs whose file names match this pattern.
        labelled: only photographs that have a mask of a target.
        codebook: file of the codebook for the compact encoding; the backbone's own if None.
        class_label: the class that a class-conditional backbone is run with.
    """

    dataset: str
    spec: FeatureSpec
    backbone: str
    views: tuple[str, ...] = (IDENTITY,)
    name: str | None = None
    split: str | None = None
    limit: int | None = None
    images: str | None = None
    labelled: bool = False
    codebook: Path | None = None
    class_label: int | None = None

    def photographs(self) -> DataSet:
        """Load the photographs that the request selects; DatasetError if there are none."""
        whole = load_dataset(self.dataset, self.name)
        return selected(whole, self.split, self.limit, self.images, labelled=self.labelled)

    def options(self) -> dict[str, str | bool]:
        """The options of ``extractor run`` that make the same entries again, with absolute paths."""
        given = {
            "dataset": absolute_dataset(self.dataset),
            "name": self.name,
            "split": self.split,
            "limit": self.limit,
            "images": self.images,
            "views": ",".join(self.views),
            "class-label": None if holds_pixels(self.spec) else self.class_label,
            "codebook": self.codebook and self.codebook.resolve(),
        }
        how = options_of_spec(self.spec, absolute_backbone(self.backbone))
        if preprocessing_name(self.spec.preprocessing) is None:  # it has no name: it is the backbone's own
            how["backbone"] = absolute_backbone(self.backbone)
            del how["preprocessing"]
        flags = {"labelled": True} if self.labelled else {}
        return {name: str(value) for name, value in given.items() if value is not None} | flags | how


def require_own_name(store: FeatureStore, name: str, dataset: str) -> None:
    """Raise DatasetError if the store knows another folder's photographs by the name that this data set would take."""
    mine = absolute_dataset(dataset)
    for record in store.records.all():
        theirs = str(record.options.get("dataset", mine))
        if record.dataset == name and theirs != mine and Path(theirs.partition(":")[2]).exists():
            raise DatasetError(
                f"{store.location} has the photographs of {theirs} under the name {name!r}, which {mine} would take, "
                "too; give it another name with --name, or as NAME=ADAPTER:PATH after --data (or give it this name, to "
                "replace them)"
            )


def absolute_dataset(dataset: str) -> str:
    """ADAPTER:PATH with an absolute path."""
    adapter, _, folder = dataset.partition(":")
    return f"{adapter}:{Path(folder).expanduser().resolve()}"


def absolute_backbone(backbone: str) -> str:
    """The backbone's name or place, with an absolute path if it is a folder."""
    prefix = UNTRAINED if backbone.startswith(UNTRAINED) else ""
    name = backbone.removeprefix(UNTRAINED)
    return prefix + (str(Path(name).resolve()) if not is_shipped(name) and Path(name).is_dir() else name)


def absolute_store(store: str) -> str:
    """The store's URL or absolute path, which workers find from any folder."""
    return store if "://" in store else str(Path(store).expanduser().resolve())
