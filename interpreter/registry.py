"""Which interpreters there are: those of this package, and others by folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from interpreter.checkpoint import WEIGHTS_FILE, Card, folder_of, load_interpreter, shipped
from store.console import human_bytes
from store.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Listed:
    """One interpreter that was found whole.

    Attributes:
        name: shipped name, or folder; it is loaded by it.
        folder: where it is.
        card: what it is.
        manifest: its data and figures; None of a folder that nobody sealed.
        weights: how many.
        size: bytes of the weights' file.
    """

    name: str
    folder: Path
    card: Card
    manifest: Manifest | None
    weights: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """Plain values: the card, and what the manifest adds (None without one)."""
        manifest = self.manifest or Manifest(summary="")
        return {
            "name": self.name,
            "folder": str(self.folder),
            "summary": manifest.summary or None,
            "spec_digest": self.card.spec.digest,
            "weights": self.weights,
            "bytes": self.size,
            "sha256": manifest.sha256_of(WEIGHTS_FILE),
            "data": [one.model_dump(mode="json") for one in manifest.data],
            "figures": [one.model_dump(mode="json") for one in manifest.figures],
        } | self.card.model_dump(mode="json")


def listed(folders: Iterable[Path] = ()) -> list[Listed]:
    """Every shipped interpreter, then those of these folders, each loaded once so that it is known to be whole.

    Raises:
        CheckpointError: one cannot be loaded, or is not what its manifest says.
    """
    return [_listed(name) for name in (*shipped(), *map(str, folders))]


def table(models: Iterable[Listed]) -> Table:
    """One row for each, with what a user chooses by."""
    shown = Table("name", "classes", "spec", "weights", "learnt from", "figures, in points of 100", "licence", "sha256")
    for model in models:
        manifest = model.manifest or Manifest(summary="")
        shown.add_row(
            model.name,
            ", ".join(model.card.task.classes[1:]),
            model.card.spec.digest[:12],
            f"{model.weights / 1000:.0f} k, {human_bytes(model.size)}",
            "\n".join(map(str, manifest.data)) or f"{len(model.card.training_ids)} images",
            "\n".join(map(str, manifest.figures)) or _validation(model.card),
            model.card.licence,
            (manifest.sha256_of(WEIGHTS_FILE) or "not sealed")[:12],
        )
    return shown


def _validation(card: Card) -> str:
    dice = card.metrics.get("validation_dice")
    return "" if dice is None else f"Dice {100 * dice:.1f} on its validation images"


def _listed(name: str) -> Listed:
    interpreter, card = load_interpreter(name)
    folder = folder_of(name)
    size = (folder / WEIGHTS_FILE).stat().st_size
    return Listed(name, folder, card, read_manifest(folder), interpreter.parameter_count, size)
