"""Data sets by name: where their images and masks are, and what they are called.

``load_dataset("drive:/data/DRIVE")`` names an adapter (``extractor.adapters``) and a path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from extractor.adapters import ADAPTERS as ADAPTERS
from extractor.adapters import Photograph as Photograph
from extractor.adapters import notes_on_unread
from extractor.errors import DatasetError
from store.collection import LONGEST_NAME, is_name
from store.extraction_command import as_options


@dataclass(frozen=True)
class DataSet:
    """Photographs under one name.

    Attributes:
        others: photographs of the data set that were not selected, where this is a part of it.
        notes: sentences for the user about files in a ``folder`` that are not read, and photographs that are left out,
            although they may be expected.
    """

    name: str
    photographs: tuple[Photograph, ...]
    others: tuple[Photograph, ...] = ()
    notes: tuple[str, ...] = ()

    def part(self, photographs: Iterable[Photograph]) -> DataSet:
        """The part of the data set that has these of its photographs."""
        chosen = tuple(photographs)
        names = {photograph.name for photograph in chosen}
        return DataSet(self.name, chosen, tuple(p for p in self.photographs if p.name not in names), self.notes)


@dataclass(frozen=True)
class Selection:
    """Some photographs of a data set on disk.

    Attributes:
        dataset: ADAPTER:PATH.
        name: what the data set is called in the store; named after its adapter or folder if None.
        split: only this split.
        labelled: only photographs that have a mask of a target.
        images: only photographs whose file names match this pattern.
        limit: at most this number of photographs, the first ones.
    """

    dataset: str
    name: str | None = None
    split: str | None = None
    labelled: bool = False
    images: str | None = None
    limit: int | None = None

    def load(self) -> DataSet:
        """Load the photographs that are selected, as a part of their data set.

        Raises:
            DatasetError: the data set cannot be loaded, or none of its photographs is selected.
        """
        data = load_dataset(self.dataset, self.name)
        chosen = data.photographs if self.split is None else tuple(of_split(data.photographs, self.split))
        if self.images is not None:
            chosen = tuple(p for p in chosen if fnmatch(p.image.name, self.images))
            if not chosen:
                raise DatasetError(f"no image of {data.name} has a name like {self.images!r}")
        notes = data.notes
        if self.labelled:
            asked, chosen = len(chosen), tuple(p for p in chosen if p.is_labelled)
            if not chosen:
                where = f" in split {self.split}" if self.split else ""
                raise DatasetError(f"no image of {data.name}{where} has a mask of a target")
            if asked > len(chosen):
                unlabelled = f"{asked - len(chosen)} of {asked} photographs have no mask of a target and are left out"
                notes = (*notes, unlabelled)
        if self.limit is not None and self.limit < 1:
            raise DatasetError(f"expected a limit of one photograph at least, got {self.limit}")
        return replace(data.part(chosen[: self.limit]), notes=notes)

    def with_absolute_path(self) -> Selection:
        """The same selection, meant for a process that runs in another folder."""
        return replace(self, dataset=absolute_reference(self.dataset))

    def options(self) -> dict[str, str | bool]:
        """The options of ``extractor run`` that select these photographs."""
        return as_options(
            dataset=self.dataset,
            name=self.name,
            split=self.split,
            limit=self.limit,
            images=self.images,
            labelled=self.labelled,
        )


def absolute_reference(dataset: str) -> str:
    """ADAPTER:PATH with an absolute path."""
    adapter, _, folder = dataset.partition(":")
    return f"{adapter}:{Path(folder).expanduser().resolve()}"


def load_dataset(reference: str, name: str | None = None) -> DataSet:
    """Load the data set behind ``ADAPTER:PATH``, such as ``stare:/data/STARE`` or ``folder:my/images``.

    Args:
        name: what it is called in the store; by default the adapter's name, or for ``folder`` and
            ``manifest`` that of the folder or file.

    Raises:
        DatasetError: unknown adapter, wrong path, no image, or a file that should be there is not.
    """
    adapter, colon, place = reference.partition(":")
    if not colon or adapter not in ADAPTERS:
        raise DatasetError(f"{reference!r}: expected ADAPTER:PATH, with one of {', '.join(ADAPTERS)}")
    path = Path(place).expanduser().absolute()  # workers of a cluster may run in another folder
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    if (adapter == "manifest") != path.is_file():
        raise DatasetError(f"{path}: expected a {'CSV file' if adapter == 'manifest' else 'folder'}")
    photographs = tuple(ADAPTERS[adapter](path))
    if not photographs:
        raise DatasetError(f"{path}: no images found for {adapter}")
    [(most, count)] = Counter(photograph.name for photograph in photographs).most_common(1)
    if count > 1:
        raise DatasetError(f"{path}: {count} images are called {most!r}; names must differ")
    called = {"folder": path.resolve().name, "manifest": path.resolve().stem}.get(adapter, adapter)
    if name is not None and not is_name(name):
        raise DatasetError(
            f"expected a name of at most {LONGEST_NAME} bytes of letters, digits, '_', '-' and '.', not starting with "
            f"'.', got {name!r}"
        )
    unread = notes_on_unread(path, photographs) if adapter == "folder" else ()
    return DataSet(name or _as_name(called) or adapter, photographs, notes=tuple(unread))


def _as_name(called: str) -> str:
    """Turn the name of a folder or file into a valid name of a collection; empty if nothing is left of it."""
    kept = "".join(c if is_name(f"_{c}") else " " for c in called)
    return re.sub(" +", "_", kept).lstrip(".").encode()[:LONGEST_NAME].decode(errors="ignore")


def of_split(photographs: Iterable[Photograph], split: str) -> list[Photograph]:
    """The photographs of one split; if there are none, DatasetError lists the splits that exist."""
    everything = list(photographs)
    found = [photograph for photograph in everything if photograph.split == split]
    if not found:
        splits = ", ".join(sorted({p.split for p in everything if p.split}))
        known = splits or "none (a manifest's column 'split' makes some)"
        raise DatasetError(f"no image of split {split!r}; splits of this data set: {known}")
    return found


def evenly_spread(photographs: Sequence[Photograph], count: int) -> list[Photograph]:
    """Choose at most ``count`` photographs at equal intervals, from the first to the last."""
    chosen = np.linspace(0, len(photographs) - 1, min(count, len(photographs))).round().astype(int)
    return [photographs[i] for i in chosen]
