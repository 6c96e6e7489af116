"""The available interpreters: those that this package ships, and others by folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpreter.checkpoint import WEIGHTS_FILE, Card, folder_of, load_interpreter, shipped
from interpreter.errors import CheckpointError
from store.console import human_bytes
from store.extraction_command import ExtractionCommand, options_of_spec
from store.manifest import Manifest, read_intact
from store.pixels import holds_pixels


@dataclass(frozen=True)
class ListedInterpreter:
    """One interpreter that was loaded and found intact.

    Attributes:
        name: shipped name or folder, by which it can be loaded.
        folder: the folder of its files.
        card: its card.
        manifest: its training data and figures; None for a folder that was never sealed.
        weights: number of weights.
        size: size of the weights' file in bytes.
    """

    name: str
    folder: Path
    card: Card
    manifest: Manifest | None
    weights: int
    size: int

    def facts(self) -> dict[str, str | list[str]]:
        """The facts that a user chooses by, as text for display: {heading: text or lines}."""
        manifest = self.manifest or Manifest(summary="")
        return {
            "for": manifest.summary,
            "classes": ", ".join(self.card.task.classes[1:]),
            "reads": f"{self.card.backbone}, spec {self.card.spec.summary}",
            "features by": self.extracting or "",
            "adapted": _adapted(self.card),
            "weights": f"{self.weights / 1000:.0f} k, {human_bytes(self.size)}, {self.card.licence}",
            "sha256": (manifest.sha256_of(WEIGHTS_FILE) or "not sealed")[:12],
            "learnt from": [str(one) for one in manifest.data] or f"{len(self.card.training_ids)} images",
            "figures": [str(one) for one in manifest.figures] or _validation(self.card),
        }

    @property
    def extracting(self) -> str | None:
        """The ``extractor run`` command that makes the features it reads; None if it reads photographs."""
        if holds_pixels(self.card.spec):
            return None
        how = options_of_spec(self.card.spec, self.card.backbone)
        return str(ExtractionCommand({"dataset": "...", "store": "...", **how}))

    def to_json(self) -> dict[str, Any]:
        """The card as plain values, with what the manifest adds (None or empty without one)."""
        manifest = self.manifest or Manifest(summary="")
        return {
            "name": self.name,
            "folder": str(self.folder),
            "summary": manifest.summary or None,
            "spec_digest": self.card.spec.digest,
            "features_by": self.extracting,
            "weights": self.weights,
            "bytes": self.size,
            "sha256": manifest.sha256_of(WEIGHTS_FILE),
            "data": [one.model_dump(mode="json") for one in manifest.data],
            "figures": [one.model_dump(mode="json") for one in manifest.figures],
        } | self.card.model_dump(mode="json")


def listed(folders: Iterable[Path] = ()) -> list[ListedInterpreter]:
    """Every shipped interpreter, then those in ``folders``; each is loaded once, to check that it is intact.

    Raises:
        CheckpointError: one cannot be loaded, or does not match its manifest.
    """
    return [_listed(name) for name in (*shipped(), *(str(folder.resolve()) for folder in folders))]


def _adapted(card: Card) -> str:
    """What a copy written by ``interpreter adapt`` was adapted to; empty for others. Its figures predate that."""
    if (to := card.training.adapted_to) is None:
        return ""
    return (
        f"to {to.photographs} photographs without labels: reads {card.spec.resolution} pixels, learnt at "
        f"{card.learnt_at or card.spec.resolution}"
    )


def _validation(card: Card) -> str:
    dice = card.metrics.validation_dice
    return "" if dice is None else f"Dice {100 * dice:.1f} on its validation images"


def _listed(name: str) -> ListedInterpreter:
    interpreter, card = load_interpreter(name)
    folder = folder_of(name)
    manifest = read_intact(folder, otherwise=CheckpointError)
    size = (folder / WEIGHTS_FILE).stat().st_size
    return ListedInterpreter(name, folder, card, manifest, interpreter.parameter_count, size)
