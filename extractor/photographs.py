"""Unlabelled photographs, prepared once and read in crops.

Decoding a photograph and its CLAHE take longer than a training step on a crop of it, so every
photograph is preprocessed once into an uncompressed ``.npy`` file, from which crops are read
through a memory map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from extractor.errors import ImageError, PretrainingError, naming
from extractor.images import SUFFIXES, decode_image, image_id, is_image_name, read_bytes
from extractor.photometric import photometric_change
from extractor.preprocess import frame, shown, to_network_range
from store.files import replaced
from store.spec import Preprocessing
from store.views import without_colour


def find_images(folders: Sequence[Path], without: Path | None = None) -> list[Path]:
    """Every image file below the folders, sorted within each; PretrainingError names a folder without any.

    Args:
        without: leave out the files below this folder, such as pictures that a run has drawn.
    """
    found: list[Path] = []
    apart = None if without is None else without.resolve()
    for folder in folders:
        here = sorted(path for path in folder.rglob("*") if is_image_name(path))
        here = [path for path in here if apart is None or not path.resolve().is_relative_to(apart)]
        if not here:
            raise PretrainingError(f"{folder}: no image files here; expected {', '.join(sorted(SUFFIXES))}")
        found += here
    return found


class PreparedPhotographs:
    """Photographs at resolution R, as ``prepare_photographs`` made them.

    Args:
        files: a NumPy file of each, uint8 (R, R, 3).
        resolution: R.
        rejected: one line for each photograph that could not be used.
    """

    def __init__(self, files: Sequence[Path], resolution: int, rejected: Sequence[str] = ()) -> None:
        self._files, self.resolution, self.rejected = files, resolution, rejected

    def __len__(self) -> int:
        return len(self._files)

    @property
    def digest(self) -> str:
        """sha256 of the prepared files' names, in order: equal for equal photographs that were prepared alike."""
        return hashlib.sha256("\n".join(file.name for file in self._files).encode()).hexdigest()

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One photograph, uint8 (R, R, 3), memory-mapped."""
        mapped: NDArray[np.uint8] = np.load(self._files[index], mmap_mode="r")
        return mapped

    def network_input(self, index: int) -> torch.Tensor:
        """One photograph as input of the network: float32 (1, 3, R, R) in [-1, 1]."""
        return to_network_range(np.asarray(self[index]))


def prepare_photographs(
    paths: Sequence[Path],
    folder: Path,
    resolution: int,
    how: Preprocessing,
    report: Callable[[int], None] | None = None,
) -> PreparedPhotographs:
    """Crop, resize and preprocess photographs once for all epochs.

    Args:
        paths: image files; those that cannot be used are left out.
        folder: where prepared files are kept, by image id, resolution and preprocessing; existing ones are used again.
        resolution: R.
        how: how the photographs are preprocessed.
        report: called with the number of photographs done.

    Raises:
        PretrainingError: none can be used.
    """
    rejected, files = list[str](), list[Path]()
    folder.mkdir(parents=True, exist_ok=True)

    def prepare(path: Path) -> Path | ImageError:
        try:
            return _prepare(path, folder, resolution, how)
        except ImageError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for done, outcome in enumerate(pool.map(prepare, paths), 1):
            if isinstance(outcome, ImageError):
                rejected.append(str(outcome))
            else:
                files.append(outcome)
            if report is not None:
                report(done)
    if not files:
        raise PretrainingError(f"none of {len(paths)} images can be used; the first: {rejected[:1]}")
    return PreparedPhotographs(files, resolution, rejected)


def _prepare(path: Path, folder: Path, resolution: int, how: Preprocessing) -> Path:
    data = read_bytes(path)
    recipe = hashlib.sha256(how.model_dump_json().encode()).hexdigest()[:12]
    target = folder / f"{image_id(data)}-{resolution}-{recipe}.npy"
    if not target.exists():
        with naming(path):
            framed = frame(decode_image(data), resolution, how)
        with replaced(target) as partial, partial.open("wb") as file:
            np.save(file, shown(framed.square, framed.fov, how))
    return target


class CropDataset(Dataset[torch.Tensor]):
    """An endless sequence of augmented crops; the i-th depends on the seeds and i alone.

    Args:
        photographs: what is cropped.
        size: side of a crop.
        photometric: strength of photometric changes.
        seeds: seeds of all random draws.
        colourless: share of crops that are shown without colour.
    """

    def __init__(
        self, photographs: PreparedPhotographs, size: int, photometric: float, *seeds: int, colourless: float = 0.0
    ) -> None:
        if size > photographs.resolution:
            raise PretrainingError(f"crops of {size} do not fit into photographs of {photographs.resolution} pixels")
        self._photographs = photographs
        self._size = size
        self._photometric = photometric
        self._seeds = seeds
        self._colourless = colourless

    def __getitem__(self, index: int) -> torch.Tensor:
        """The crop of this index: float32 (3, s, s) in [-1, 1]."""
        random = np.random.default_rng([*self._seeds, index])
        photograph = self._photographs[int(random.integers(len(self._photographs)))]
        crop = np.asarray(self._mostly_lit(photograph, random))
        if self._photometric > 0:
            crop = photometric_change(crop, random, self._photometric)
        crop = np.rot90(crop, int(random.integers(4)))
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        if self._colourless and random.random() < self._colourless:
            crop = without_colour(crop)
        return to_network_range(crop)[0]

    def _mostly_lit(self, photograph: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        """A crop at a random place of which at least half is not black; after ten tries, any crop."""
        room = self._photographs.resolution - self._size + 1
        for _ in range(10):
            top, left = random.integers(room, size=2)
            crop = photograph[top : top + self._size, left : left + self._size]
            if np.median(crop[::8, ::8].max(axis=2)) > 8:
                break
        return crop
