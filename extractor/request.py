"""The request of an extraction, in a form that can be repeated from another folder or on another machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from extractor.backbones import is_shipped
from extractor.datasets import Selection, absolute_reference
from extractor.errors import DatasetError
from store.extraction_command import UNTRAINED, as_options, options_of_spec
from store.feature_store import FeatureStore
from store.pixels import PIXELS, holds_pixels
from store.spec import FeatureSpec
from store.views import IDENTITY


@dataclass(frozen=True)
class Request:
    """The parameters of an extraction: everything that determines its result.

    Attributes:
        selection: the photographs.
        spec: spec of the features.
        backbone: name or place of the spec's backbone.
        views: renderings of each photograph.
        codebook: file of the codebook for the compact encoding; the backbone's own if None.
        class_label: the class that a class-conditional backbone is run with.
    """

    selection: Selection
    spec: FeatureSpec
    backbone: str
    views: tuple[str, ...] = (IDENTITY,)
    codebook: Path | None = None
    class_label: int | None = None

    @property
    def made_by(self) -> str:
        """What the store records as the maker of the entries, with an absolute path if it is a folder."""
        return PIXELS if holds_pixels(self.spec) else _absolute_backbone(self.backbone)

    def with_absolute_paths(self) -> Request:
        """The same request, meant for a process that runs in another folder."""
        return replace(
            self,
            selection=self.selection.with_absolute_path(),
            backbone=_absolute_backbone(self.backbone),
            codebook=self.codebook and self.codebook.resolve(),
        )

    def options(self) -> dict[str, str | bool]:
        """The options of ``extractor run`` that make the same entries again, with absolute paths."""
        here = self.with_absolute_paths()
        label = None if holds_pixels(self.spec) else self.class_label
        how = as_options(views=self.views, codebook=here.codebook, class_label=label)
        return here.selection.options() | how | options_of_spec(self.spec, here.backbone)


def require_own_name(store: FeatureStore, selection: Selection, name: str) -> str | None:
    """Raise DatasetError if the store knows another folder's photographs by the name that a selection would take.

    Args:
        name: what the selection is called in the store. If the user has given it that name, it may replace others.

    Returns:
        ADAPTER:PATH of the photographs that it replaces; None if there are none.
    """
    mine = absolute_reference(selection.dataset)
    recorded = [str(one.options.get("dataset", mine)) for one in store.records.all() if one.dataset == name]
    if selection.name is not None:
        return recorded[-1] if recorded and recorded[-1] != mine else None
    for theirs in recorded:
        if theirs != mine and Path(theirs.partition(":")[2]).exists():
            raise DatasetError(
                f"{store.location} has the photographs of {theirs} under the name {name!r}, which {mine} would take, "
                "too; give it another name with --name, or as NAME=ADAPTER:PATH after --data (or give it this name, to "
                "replace them)"
            )
    return None


def absolute_store(store: str) -> str:
    """The store's URL or absolute path, which workers find from any folder."""
    return store if "://" in store else str(Path(store).expanduser().resolve())


def _absolute_backbone(backbone: str) -> str:
    """The backbone's name or place, with an absolute path if it is a folder."""
    prefix = UNTRAINED if backbone.startswith(UNTRAINED) else ""
    name = backbone.removeprefix(UNTRAINED)
    return prefix + (str(Path(name).resolve()) if not is_shipped(name) and Path(name).is_dir() else name)
