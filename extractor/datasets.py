"""Data sets by name: where their images and masks are, and what they are called.

``load_dataset("drive:/data/DRIVE")`` names an adapter (``extractor.adapters``) and a path.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from extractor.adapters import ADAPTERS as ADAPTERS
from extractor.adapters import Photograph as Photograph
from extractor.adapters import notes_on_unread
from extractor.errors import DatasetError
from store.collection import LONGEST_NAME, is_name


@dataclass(frozen=True)
class DataSet:
    """Photographs under one name.

    Attributes:
        others: photographs of the data set that were not selected, where this is a part of it.
        notes_on_unread: sentences about files in a ``folder`` that are not read although the user may expect it.
    """

    name: str
    photographs: tuple[Photograph, ...]
    others: tuple[Photograph, ...] = ()
    notes_on_unread: tuple[str, ...] = ()

    def part(self, photographs: Iterable[Photograph]) -> DataSet:
        """The part of the data set that has these of its photographs."""
        chosen = tuple(photographs)
        names = {photograph.name for photograph in chosen}
        return DataSet(self.name, chosen, tuple(p for p in self.photographs if p.name not in names))


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
    return DataSet(name or _as_name(called) or adapter, photographs, notes_on_unread=tuple(unread))


def _as_name(called: str) -> str:
    """Turn the name of a folder or file into a valid name of a collection; empty if nothing is left of it."""
    kept = "".join(c if is_name(f"_{c}") else " " for c in called)
    return re.sub(" +", "_", kept).lstrip(".").encode()[:LONGEST_NAME].decode(errors="ignore")


def selected(
    data: DataSet, split: str | None, limit: int | None, images: str | None, *, labelled: bool = False
) -> DataSet:
    """Select photographs: of a split, labelled ones, with file names like a pattern, and the first ``limit`` of these.

    Raises:
        DatasetError: there are none.
    """
    photographs = data.photographs if split is None else tuple(of_split(data.photographs, split))
    if labelled:
        photographs = tuple(p for p in photographs if p.is_labelled)
        if not photographs:
            raise DatasetError(f"no image of {data.name}{f' in split {split}' if split else ''} has a mask of a target")
    if images is not None:
        photographs = tuple(p for p in photographs if fnmatch(p.image.name, images))
        if not photographs:
            raise DatasetError(f"no image of {data.name} has a name like {images!r}")
    return data.part(photographs[:limit])


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
