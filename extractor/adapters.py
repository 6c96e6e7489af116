"""Adapters: each finds the photographs of one data set in its original folder layout, without opening them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from extractor.errors import DatasetError, naming
from extractor.images import SUFFIXES, decode_mask, is_image_name, read_bytes
from store.collection import UNNAMED_TARGET

FIELD_OF_VIEW = "fov"
"""Target of the masks that show what the camera lit, and label nothing."""


@dataclass(frozen=True)
class Photograph:
    """One image of a data set.

    Attributes:
        name: unique within the data set.
        image: path of the image file.
        masks: {target: file}, such as {"vessel": ...}; targets that are not labelled are absent. A
            field-of-view mask that came with the data set is the target ``fov``.
        split: as the data set defines it, or as is customary for it.
        group: for example a patient; a random split never separates the images of one group.
    """

    name: str
    image: Path
    masks: Mapping[str, Path] = field(default_factory=dict)
    split: str | None = None
    group: str | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether there is a mask of any target other than the field of view."""
        return any(target != FIELD_OF_VIEW for target in self.masks)

    def read_mask(self, target: str, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Read the mask of a target: bool (H, W); DatasetError if that is not ``size``, the (H, W) of the image."""
        path = self.masks[target]
        data = read_bytes(path)
        with naming(path):
            mask = decode_mask(data)
        if mask.shape != size:
            turned = ", since photographs are turned upright as their EXIF orientation says; turn the mask, too"
            raise DatasetError(
                f"{path}: mask of {mask.shape[1]} x {mask.shape[0]} pixels, its image {self.image.name} has "
                f"{size[1]} x {size[0]}{turned if mask.shape == size[::-1] else ''}"
            )
        return mask


Adapter = Callable[[Path], Iterator[Photograph]]


def drive(root: Path) -> Iterator[Photograph]:
    """DRIVE: training/{images,1st_manual,mask} and test/{images,mask}; some copies have test/1st_manual, too."""
    for split, folder in (("train", "training"), ("test", "test")):
        for image in _images(root / folder / "images"):
            number = image.stem.split("_")[0]
            yield Photograph(
                name=f"{folder}_{number}",
                image=image,
                masks=_targets(
                    vessel=(_one if split == "train" else _maybe)(root / folder / "1st_manual", f"{number}_manual1"),
                    fov=_maybe(root / folder / "mask", f"{image.stem}_mask"),
                ),
                split=split,
            )


def stare(root: Path) -> Iterator[Photograph]:
    """STARE's vessel subset: stare-images, labels-ah (A. Hoover) and, if there, labels-vk.

    There is no official split; the first ten images are ``train`` and the others ``test``, as is customary.
    """
    for i, image in enumerate(_images(root / "stare-images")):
        yield Photograph(
            name=image.stem,
            image=image,
            masks=_targets(
                vessel=_one(root / "labels-ah", f"{image.stem}.ah"),
                vessel2=_maybe(root / "labels-vk", f"{image.stem}.vk"),
                fov=_maybe(root / "fov", image.stem),
            ),
            split="train" if i < 10 else "test",
        )


def chase_db1(root: Path) -> Iterator[Photograph]:
    """CHASE_DB1: Image_01L.jpg with Image_01L_1stHO.png, flat or in images/ and masks_1st/.

    There is no official split; the first 20 images (01L to 10R) are ``train``, the other 8 ``test``.
    """
    folder = _first_of(root, "images", "Images", ".")
    first = _first_of(root, "masks_1st", "images", ".")
    second = _first_of(root, "masks_2nd", "images", ".")
    for image in _images(folder, lambda path: "HO" not in path.stem):
        number = image.stem.removeprefix("Image_")
        yield Photograph(
            name=image.stem,
            image=image,
            masks=_targets(
                vessel=_one(first, f"{image.stem}_1stHO"),
                vessel2=_maybe(second, f"{image.stem}_2ndHO"),
                fov=_maybe(root / "fov", image.stem),
            ),
            split="train" if _number(image, number[:2]) <= 10 else "test",
            group=number[:2],
        )


def hrf(root: Path) -> Iterator[Photograph]:
    """HRF: images/01_dr.JPG, manual1/01_dr.tif, mask/01_dr_mask.tif.

    There is no official split; images 01 to 05 of each class are ``train``, the others ``test``.
    """
    for image in _images(root / "images"):
        yield Photograph(
            name=image.stem,
            image=image,
            masks=_targets(
                vessel=_one(root / "manual1", image.stem),
                fov=_maybe(root / "mask", f"{image.stem}_mask") or _maybe(root / "fov", image.stem),
            ),
            split="train" if _number(image, image.stem[:2]) <= 5 else "test",
        )


_IDRID_TARGETS = {
    "MA": "1. Microaneurysms",
    "HE": "2. Haemorrhages",
    "EX": "3. Hard Exudates",
    "SE": "4. Soft Exudates",
    "OD": "5. Optic Disc",
}


def idrid(root: Path) -> Iterator[Photograph]:
    """IDRiD's segmentation part: "1. Original Images" and "2. All Segmentation Groundtruths"."""
    base = _first_of(root, "A. Segmentation", ".")
    for split, part in (("train", "a. Training Set"), ("test", "b. Testing Set")):
        folder = base / "1. Original Images" / part
        if split == "test" and not folder.is_dir():
            continue
        for image in _images(folder):
            truths = base / "2. All Segmentation Groundtruths" / part
            masks = {
                target: _maybe(truths / lesion, f"{image.stem}_{target}") for target, lesion in _IDRID_TARGETS.items()
            }
            yield Photograph(name=image.stem, image=image, masks=_targets(**masks), split=split)


def octa_500(root: Path) -> Iterator[Photograph]:
    """OCTA-500, one field size: a folder of ILM-OPL projection maps and one of large-vessel labels.

    ``root`` is OCTA_3mm or OCTA_6mm. The split is the customary one. For 6 mm: 10001-10180 train,
    10181-10200 val, 10201-10300 test; for 3 mm: 10301-10440, 10441-10450 and 10451-10500.
    """
    images = _first_of(root, "Projection Maps/OCTA(ILM_OPL)", "OCTA(ILM_OPL)", "images")
    labels = _first_of(root, "GT_LargeVessel", "Label/GT_LargeVessel", "labels")
    for image in _images(images):
        number = _number(image, image.stem)
        last_train, last_val = (10180, 10200) if number <= 10300 else (10440, 10450)
        split = "train" if number <= last_train else "val" if number <= last_val else "test"
        yield Photograph(name=image.stem, image=image, masks={"vessel": _one(labels, image.stem)}, split=split)


def rose(root: Path) -> Iterator[Photograph]:
    """ROSE: ROSE-1/{SVC,DVC,SVC_DVC}/{train,test}/{img,gt} or ROSE-2/{train,test}/{original,gt}.

    ``root`` is the folder that holds train and test.
    """
    for split in ("train", "test"):
        for image in _images(_first_of(root / split, "img", "original")):
            yield Photograph(
                name=f"{split}_{image.stem}",
                image=image,
                masks={"vessel": _one(root / split / "gt", image.stem)},
                split=split,
            )


def eyepacs(root: Path) -> Iterator[Photograph]:
    """EyePACS: train/10_left.jpeg and test/..., without masks; both eyes of a patient are one group."""
    for split in ("train", "test"):
        if (root / split).is_dir():
            for image in _images(root / split):
                yield Photograph(name=image.stem, image=image, split=split, group=image.stem.split("_")[0])
    if not any((root / split).is_dir() for split in ("train", "test")):
        raise DatasetError(f"{root}: expected a folder train or test in it")


def folder(root: Path) -> Iterator[Photograph]:
    """Your own images: in ``root`` or ``root/images``.

    Masks, if any, have the names of the images: ``root/masks/NAME.png`` (one target, called
    ``mask``) or ``root/masks/TARGET/NAME.png``.
    """
    images = _first_of(root, "images", ".")
    masks = root / "masks"
    subfolders = sorted(path for path in masks.iterdir() if path.is_dir()) if masks.is_dir() else []
    targets = [path for path in subfolders if any(map(is_image_name, path.iterdir()))]
    photographs = []
    for image in _images(images):
        found = {path.name: _of(image, path) for path in targets} or {UNNAMED_TARGET: _of(image, masks)}
        photographs.append(Photograph(name=image.stem, image=image, masks=_targets(**found)))
    for place in targets or [masks]:
        files = list(filter(is_image_name, place.iterdir())) if place.is_dir() else []
        if files and not any(place in mask.parents for one in photographs for mask in one.masks.values()):
            raise DatasetError(
                f"{place}: {files[0].name} and the other masks belong to no image; expected names of images, such as "
                f"{photographs[0].image.stem}.png"
            )
    yield from photographs


_OTHER_IMAGES = frozenset({".webp", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".dcm", ".dicom"})


def notes_on_unread(root: Path, photographs: Sequence[Photograph]) -> list[str]:
    """Sentences, one for each kind, about files that ``folder`` does not read although the user may expect it to."""
    images, masks = _first_of(root, "images", "."), root / "masks"
    used = {path for one in photographs for path in (one.image, *one.masks.values())}
    there = [path for path in images.iterdir() if path not in (images / "images", images / "masks")]
    by_target = any(path.parent.parent == masks for path in used)
    beside = [path for path in masks.iterdir() if is_image_name(path)] if by_target else []
    kinds = {
        "have formats that are not read; save them as PNG": [p for p in there if p.suffix.lower() in _OTHER_IMAGES],
        "are unread folders of images; name each as a data set, or list them in a manifest": [
            p for p in there if _holds_images(p)
        ],
        "are masks beside folders of targets, which alone are read": beside,
        "are masks without an image": [
            p for p in masks.rglob("*") if is_image_name(p) and p not in used and p not in beside
        ],
    }
    return [
        f"{len(paths)} in {root} {what} ({', '.join(sorted(p.name for p in paths)[:3])}{', ...' * (len(paths) > 3)})"
        for what, paths in kinds.items()
        if paths
    ]


_MOST_NAMED = 5
"""Missing files of a manifest that are named; there may be thousands."""
_MANIFEST_COLUMNS = {"image", "name", "split", "group", "dataset"}


def manifest(path: Path) -> Iterator[Photograph]:
    """A CSV file: column ``image``; optional ``name``, ``split``, ``group``, ``dataset`` (a prefix of names).

    Every other column is a target and lists the files of its masks; an empty cell means that the image is unlabelled.
    Paths are relative to the CSV file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, skipinitialspace=True)
            rows.fieldnames = [column.strip() for column in rows.fieldnames or ()]
            columns, listed = list(rows.fieldnames), [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: expected a CSV file in UTF-8; {error}") from error
    if "image" not in columns:
        hint = "; cells are separated by commas" if len(columns) == 1 and ";" in columns[0] else ""
        raise DatasetError(f"{path}: expected a column 'image', found {columns}{hint}")
    if twice := sorted({column for column in columns if column and columns.count(column) > 1}):
        raise DatasetError(f"{path}: two columns are called {', '.join(twice)}")
    targets = [column for column in columns if column and column not in _MANIFEST_COLUMNS]
    gone = list[str]()
    for line, row in listed:
        cells = {column: (row[column] or "").strip() for column in columns}
        if not cells["image"]:
            raise DatasetError(f"{path}: line {line} names no image")
        if None in row:
            raise DatasetError(f"{path}: line {line} has more cells than there are columns")
        image = path.parent / cells["image"]
        files = {target: path.parent / cells[target] for target in targets if cells[target]}
        named = [("", image), *((f" as the mask of {target}", file) for target, file in files.items())]
        gone += [f"line {line} names {file}{role}" for role, file in named if not _is_file(file)]
        if len(gone) > _MOST_NAMED:
            break
        dataset = cells.get("dataset")
        name = cells.get("name") or (f"{dataset}_" if dataset else "") + image.stem
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise DatasetError(f"{path}: line {line}: no image can be called {name!r}; results are files of that name")
        yield Photograph(
            name=name, image=image, masks=files, split=cells.get("split") or None, group=cells.get("group") or None
        )
    if gone:
        more = " and more are missing" if len(gone) > _MOST_NAMED else ""
        raise DatasetError(f"{path}: {'; '.join(gone[:_MOST_NAMED])}{more}: no such file")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # its name is longer than any file's
        return False


def _images(folder: Path, wanted: Callable[[Path], bool] = lambda _: True) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; is this the data set it was called?")
    found = sorted(p for p in folder.iterdir() if is_image_name(p) and p.is_file() and wanted(p))
    if not found and (below := [p.name for p in folder.iterdir() if _holds_images(p)]):
        raise DatasetError(
            f"{folder}: no images in it, only in its folders, such as {min(below)}: name each as a data set, or list "
            "the images in a manifest"
        )
    if not found:
        raise DatasetError(f"{folder}: no images in it; expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def _holds_images(path: Path) -> bool:
    return path.is_dir() and any(map(is_image_name, path.iterdir()))


def _number(image: Path, digits: str) -> int:
    if not digits.isdecimal():
        raise DatasetError(f"{image}: expected a number in the name; is this the data set it was called?")
    return int(digits)


def _of(image: Path, masks: Path) -> Path | None:
    """The mask of an image: of the image's stem, or of its whole name, such as a.jpg.png for a.jpg."""
    return _maybe(masks, image.stem) or _maybe(masks, image.name)


def _maybe(folder: Path, stem: str) -> Path | None:
    """The image file with that stem, whatever its suffix; None if there is none."""
    return _by_stem(folder, folder.stat().st_mtime_ns).get(normalize("NFC", stem)) if folder.is_dir() else None


@lru_cache(maxsize=64)
def _by_stem(folder: Path, _changed: int) -> dict[str, Path]:
    """{stem: image file} of a folder, cached until it changes; of several files with one stem the first by name."""
    there = sorted(filter(is_image_name, folder.iterdir()), reverse=True)
    return {normalize("NFC", path.stem): path for path in there}  # archives of macOS write accents in another way


def _one(folder: Path, stem: str) -> Path:
    found = _maybe(folder, stem)
    if found is None:
        raise DatasetError(f"{folder}: no mask named {stem}.* in it")
    return found


def _first_of(root: Path, *names: str) -> Path:
    """The first of these folders that exists; the last one named if none does."""
    candidates = [root / name for name in names]
    return next((path for path in candidates if path.is_dir()), candidates[-1])


def _targets(**masks: Path | None) -> dict[str, Path]:
    return {target: path for target, path in masks.items() if path is not None}


ADAPTERS: dict[str, Adapter] = {
    "drive": drive,
    "stare": stare,
    "chase_db1": chase_db1,
    "hrf": hrf,
    "idrid": idrid,
    "octa_500": octa_500,
    "rose": rose,
    "eyepacs": eyepacs,
    "folder": folder,
    "manifest": manifest,
}
