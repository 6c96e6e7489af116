"""Photographs on disk: the command ``extractor run`` makes features of them.

The interpreter does not import the extractor: it calls its command, as the store's repair does. The command leaves
alone what is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        raise ConfigurationError(f"{text!r}: expected NAME=ADAPTER:PATH or ADAPTER:PATH, such as folder:photos")
    return (name, reference) if named else (None, text)


def extract(command: ExtractionCommand, *, partial: bool = False) -> dict[str, Any]:
    """Run ``extractor run --json`` to its end and return its report.

    Args:
        partial: photographs that cannot be read may be left out.

    Raises:
        ExtractionFailed: it ended with an error, or left photographs out.
    """
    done = command.run()
    if done.returncode != console.Exit.OK and not (partial and done.returncode == console.Exit.PARTIAL):
        raise ExtractionFailed(
            f"{command.options['dataset']} could not be extracted (exit code {done.returncode} of `{command}`); the "
            "reason stands above"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


class Extracted(NamedTuple):
    """Photographs that the store has what an interpreter reads of.

    Attributes:
        references: the data sets, NAME or NAME:SPLIT.
        left_out: why, of each photograph that could not be read.
    """

    references: list[str]
    left_out: list[str]


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
    ) -> Extracted:
        """Have ``extractor run`` make what the store lacks of what an interpreter reads; what is there stays.

        Args:
            store: where features go; made if it is not there.
            model: name or folder of the interpreter,
            card: and its card.
            specs: of the features: the card's, at its resolution or at others.
            views: of each photograph.

        Raises:
            ConfigurationError: two of them have one name, or photographs are prepared in a way that the command has no
                name for.
            ExtractionFailed: the command said why, or the backbone is not the one that the interpreter learnt with.
        """
        references: list[str] = []
        left_out: dict[str, str] = {}
        for name, reference in self._named():
            chosen: dict[str, str | None] = {
                "dataset": reference,
                "name": name,
                "split": self.split,
                "store": store,
                "views": ",".join(views),
                "device": device,
            }
            options = {key: value for key, value in chosen.items() if value is not None}
            for spec in specs:
                report = _extract_for(model, {**_options_of(spec, model, card), **options}, spec)
                left_out |= dict(report["failed"])
            found = report["dataset"]
            references.append(found if self.split is None else f"{found}:{self.split}")
        for reason in left_out.values():
            console.note(f"left out: {reason}")
        return Extracted(references, list(left_out.values()))

    def _named(self) -> list[tuple[str | None, str]]:
        """Name and ADAPTER:PATH of each."""
        parsed = list(dict.fromkeys(map(parse_data, self.data)))
        names = [name for name, _ in parsed if name is not None]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ConfigurationError(f"two data sets are to be called {twice[0]}; give each a name of its own")
        return parsed


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


def _extract_for(model: str, options: dict[str, str | bool], spec: FeatureSpec) -> dict[str, Any]:
    """The report of ``extractor run``, which made features of this spec."""
    report = extract(ExtractionCommand(options | {"json": True}), partial=True)
    if report["spec"] != spec.digest:
        raise ExtractionFailed(
            f"features of another spec were made ({report['spec'][:12]}, {model} reads {spec.digest[:12]}): "
            f"{options.get('backbone', 'the backbone')} is not the backbone any more that it learnt with"
        )
    return report
