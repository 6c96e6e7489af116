"""The manifest stored next to a model's weights: its training data, metrics, and the sha256 of every file.

A model is a folder. ``seal`` writes ``manifest.json`` into it, after all other files; whoever loads a file of the
folder calls ``require_intact`` first. A folder without a manifest is one of the user's own and is loaded as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from store.errors import DamagedModel
from store.files import replaced
from store.validation import first_problem

MANIFEST_FILE = "manifest.json"
_SEALED = (".json", ".safetensors")
Share = Annotated[float, Field(ge=0, le=1)]


class TrainingData(BaseModel):
    """Photographs on which a model was trained.

    Attributes:
        name: name of the data set and its part.
        photographs: number of photographs.
        terms: licence or terms under which they were published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    photographs: int = Field(gt=0)
    terms: str

    def __str__(self) -> str:
        """A line such as ``10 of STARE, train (no formal licence)``."""
        return f"{self.photographs} of {self.name} ({self.terms})"


class Figure(BaseModel):
    """One metric, measured on photographs that the model has not seen.

    Attributes:
        where: data set, part and number of photographs.
        metric: name of the metric, such as ``Dice of vessel``.
        value: between 0 and 1; shown as text in points of 100.
        interval: 95 % bootstrap interval over photographs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: str
    metric: str
    value: float = Field(ge=0, le=1)
    interval: tuple[Share, Share] | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_points_of_earlier_versions(cls, figure: Any) -> Any:
        """Convert a figure of earlier manifests, which were in points of 100: any with a number above 1."""
        if not isinstance(figure, dict):
            return figure
        numbers = [figure.get("value"), *(figure.get("interval") or ())]
        if not all(isinstance(one, int | float) for one in numbers) or max(numbers) <= 1:
            return figure
        value, *interval = (one / 100 for one in numbers)
        return figure | {"value": value, "interval": interval or None}

    def __str__(self) -> str:
        """A line such as ``Dice of vessel 60.0 (57.1 to 63.2) on CHASE_DB1, test, 8``."""
        spread = "" if self.interval is None else f" ({100 * self.interval[0]:.1f} to {100 * self.interval[1]:.1f})"
        return f"{self.metric} {100 * self.value:.1f}{spread} on {self.where}"


class SealedFile(BaseModel):
    """Checksum and size of a file when its folder was sealed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0, description="bytes")


class Manifest(BaseModel):
    """Where a model comes from and which files belong to it.

    Attributes:
        summary: one line that says what the model is for.
        data: the photographs on which it was trained.
        figures: its metrics.
        licence: licence of the weights.
        fingerprint: fingerprint of a backbone, which the specs of its features name; None for an interpreter.
        files: {name: file} for all JSON and safetensors files of the folder except the manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    data: tuple[TrainingData, ...] = ()
    figures: tuple[Figure, ...] = ()
    licence: str = "Apache-2.0"
    fingerprint: str | None = None
    files: dict[str, SealedFile] = Field(default_factory=dict)

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size for file in self.files.values())

    def sha256_of(self, name: str) -> str | None:
        """The sha256 of a sealed file; None for any other file."""
        return self.files[name].sha256 if name in self.files else None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a model's folder; None if it has none.

    Raises:
        DamagedModel: it cannot be read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DamagedModel(f"{path}: {first_problem(error)}; {_REMEDY}") from error


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write a manifest with the sha256 of the folder's files as they are now, and return it."""
    found = sorted(p for p in folder.iterdir() if p.suffix in _SEALED and p.name != MANIFEST_FILE)
    files = {p.name: SealedFile(sha256=_sha256(p), size=p.stat().st_size) for p in found}
    sealed = manifest.model_copy(update={"files": files})
    with replaced(folder / MANIFEST_FILE) as partial:
        partial.write_text(sealed.model_dump_json(indent=2) + "\n")
    return sealed


def require_intact(folder: Path, *names: str, otherwise: type[Exception] = DamagedModel) -> None:
    """Compare files that are about to be loaded with the folder's manifest; without a manifest nothing is checked.

    Args:
        names: names of the files. One that is absent and was never sealed is no error here; its reader may raise one.
        otherwise: exception to raise if a sealed file is missing, if a file differs from the sealed one or was never
            sealed, or if the manifest cannot be read.
    """
    _checked(folder, names, otherwise)


def read_intact(folder: Path, otherwise: type[Exception] = DamagedModel) -> Manifest | None:
    """The manifest of a folder, after comparing all files that it names; None if the folder has none.

    Args:
        otherwise: exception to raise where ``require_intact`` would, and if the manifest cannot be read.
    """
    return _checked(folder, None, otherwise)


def _checked(folder: Path, names: Iterable[str] | None, otherwise: type[Exception]) -> Manifest | None:
    """The manifest of a folder, if it has one, after comparing the files called ``names``; all it names if None."""
    try:
        manifest = read_manifest(folder)
    except DamagedModel as error:
        raise otherwise(str(error)) from error
    if manifest is not None:
        problem = _damage(folder, manifest, manifest.files if names is None else names)
        if problem is not None:
            raise otherwise(problem)
    return manifest


def _damage(folder: Path, manifest: Manifest, names: Iterable[str]) -> str | None:
    """A message about the first of these files that is not as it was sealed; None if all are."""
    for path in (folder / name for name in names):
        sealed = manifest.files.get(path.name)
        if not path.is_file():
            if sealed is not None:
                return f"{path}: the file is gone; {_REMEDY}"
            continue
        if sealed is None:
            return f"{path}: {MANIFEST_FILE} beside it does not name this file; {_REMEDY}"
        found = _sha256(path)
        if found != sealed.sha256:
            return (
                f"{path}: expected sha256 {sealed.sha256[:12]} ({sealed.size} bytes), found {found[:12]} "
                f"({path.stat().st_size} bytes); {_REMEDY}"
            )
    return None


_REMEDY = (
    f"install the model again, or, if you changed it yourself, remove {MANIFEST_FILE}: the model is yours then, "
    "and its figures are no longer known"
)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
