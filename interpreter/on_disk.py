"""Photographs on disk: the command ``extractor run`` makes features of them.

The interpreter does not import the extractor: it calls its command, as the store's repair does. The command leaves
alone what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interpreter.checkpoint import CODEBOOK_FILE, Card, folder_of
from interpreter.errors import ConfigurationError, ExtractionFailed
from store import console
from store.extraction_command import ExtractionCommand, options_of_spec
from store.spec import FeatureSpec, TransformEncoding
from store.views import IDENTITY


def parse_data(text: str) -> tuple[str | None, str]:
    """``NAME=ADAPTER:PATH`` or ``ADAPTER:PATH``: the name, None if there is none, and ADAPTER:PATH."""
    name, equals, reference = text.partition("=")
    named = bool(equals) and ":" not in name  # else the sign belongs to the path
    adapter, _, path = (reference if named else text).partition(":")
    if not adapter or not path or (named and not name):
        raise ConfigurationError(f"{text!r}: expected NAME=ADAPTER:PATH or ADAPTER:PATH")
    return (name, reference) if named else (None, text)


def extract(command: ExtractionCommand, *, partial: bool = False) -> dict[str, Any]:
    """Run ``extractor run --json`` to its end and return its report.

    Args:
        partial: photographs may be left out, which a note says of each.

    Raises:
        ExtractionFailed: it ended with an error, or left photographs out.
    """
    done = command.run()
    if done.returncode != console.Exit.OK and not (partial and done.returncode == console.Exit.PARTIAL):
        raise ExtractionFailed(f"`{command}` failed with exit code {done.returncode}; what it said stands above")
    report: dict[str, Any] = json.loads(done.stdout)
    for _, reason in report["failed"]:
        console.note(f"left out: {reason}")
    return report


@dataclass(frozen=True)
class PhotographsOnDisk:
    """Photographs as a user names them, before any store knows of them.

    Attributes:
        data: each NAME=ADAPTER:PATH or ADAPTER:PATH.
        split: only this split of them.
    """

    data: Sequence[str] = ()
    split: str | None = None

    def extracted(
        self,
        store: str,
        model: str,
        card: Card,
        specs: Sequence[FeatureSpec],
        views: Sequence[str] = (IDENTITY,),
        device: str = "cpu",
    ) -> list[str]:
        """The data sets in the store, NAME or NAME:SPLIT, once it has what an interpreter reads of them.

        Photographs that cannot be read are left out, which a note says of each.

        Args:
            store: where features go; made if it is not there.
            model: name or folder of the interpreter,
            card: and its card.
            specs: of the features: the card's, at its resolution or at others.
            views: of each photograph.

        Raises:
            ConfigurationError: photographs are prepared in a way that the command has no name for.
            ExtractionFailed: the command said why, or the backbone is not the one that the interpreter learnt with.
        """
        references = []
        for text in self.data:
            name, reference = parse_data(text)
            chosen: dict[str, str | None] = {
                "dataset": reference,
                "name": name,
                "split": self.split,
                "store": store,
                "views": ",".join(views),
                "device": device,
            }
            options = {key: value for key, value in chosen.items() if value is not None}
            names = [_extracted({**_options_of(spec, model, card), **options}, spec) for spec in specs]
            references += [one if self.split is None else f"{one}:{self.split}" for one in dict.fromkeys(names)]
        return references


def _options_of(spec: FeatureSpec, model: str, card: Card) -> dict[str, str | bool]:
    options = options_of_spec(spec, card.backbone)
    if "..." in options.values():
        raise ConfigurationError(
            f"{model} reads photographs prepared in a way that `extractor run` has no name for: extract them from "
            "Python (extractor.extract_recorded), and name the data set by --dataset"
        )
    if isinstance(spec.encoding, TransformEncoding):
        options["codebook"] = str(folder_of(model) / CODEBOOK_FILE)
    return options


def _extracted(options: dict[str, str | bool], spec: FeatureSpec) -> str:
    """Extract what is not there; returns what the data set is called in the store."""
    command = ExtractionCommand(options | {"json": True})
    report = extract(command, partial=True)
    if report["spec"] != spec.digest:
        raise ExtractionFailed(
            f"`{command}` made features of another spec ({report['spec'][:12]}, expected {spec.digest[:12]}): "
            f"{options.get('backbone', 'the backbone')} is not the backbone any more that the interpreter learnt with"
        )
    name: str = report["dataset"]
    return name
