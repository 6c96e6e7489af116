"""Photographs named on the command line; features that an interpreter reads are extracted where they are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from interpreter.checkpoint import CODEBOOK_FILE, Card, folder_of
from interpreter.errors import ConfigurationError
from interpreter.extractor_command import parse_data, run_extraction
from store import console
from store.extraction_command import ExtractionCommand, as_options, options_of_spec
from store.pixels import holds_pixels
from store.spec import FeatureSpec, TransformEncoding, preprocessing_name
from store.views import IDENTITY


class Extracted(NamedTuple):
    """Photographs that a user named, after those on disk have been extracted.

    Attributes:
        references: the data sets, each NAME or NAME:SPLIT.
        left_out: for each photograph that could not be read, the reason.
    """

    references: list[str]
    left_out: list[str]


@dataclass(frozen=True)
class NamedPhotographs:
    """Photographs as a user names them.

    Attributes:
        stored: data sets in the store, each NAME or NAME:SPLIT.
        data: photographs on disk, each NAME=ADAPTER:PATH or ADAPTER:PATH.
        split: take only this split of ``data``.
    """

    stored: Sequence[str] = ()
    data: Sequence[str] = ()
    split: str | None = None

    def extract_missing(
        self,
        store: str,
        model: str,
        card: Card,
        specs: Sequence[FeatureSpec],
        views: Sequence[str] = (IDENTITY,),
        device: str = "cpu",
        *,
        labelled: bool = False,
    ) -> Extracted:
        """Have ``extractor run`` extract from ``data`` the features that an interpreter reads and the store lacks.

        Args:
            store: location of the store that features go to; created if missing.
            model: name or folder of the interpreter.
            card: the interpreter's card.
            specs: specs of the features, one at least: the card's, at its own resolution or at others.
            views: views to extract of each photograph.
            device: where the backbone runs.
            labelled: extract only photographs that have a mask of a target.

        Raises:
            ConfigurationError: two data sets have one name, or photographs are prepared in a way that the command has
                no name for.
            ExtractionFailed: the command failed and said why, for example because the backbone is not the one that the
                interpreter learnt with.
        """
        references = list(self.stored)
        left_out: dict[str, str] = {}
        named = list(dict.fromkeys(map(parse_data, self.data)))
        seen = Counter(name for name, _ in named if name is not None)
        for name, reference in named:
            if name is not None and seen[name] > 1:
                raise ConfigurationError(f"two data sets would be called {name}; give each a name of its own")
            which = as_options(
                dataset=reference, name=name, split=self.split, labelled=labelled, views=tuple(views), store=store
            )
            how = as_options(device=device, json=True)
            commands = [ExtractionCommand(which | _options_of(spec, model, card) | how) for spec in specs]
            reports = [run_extraction(command, partial=True) for command in commands]
            for report in reports:
                left_out |= dict(report["failed"])
            found = reports[0]["dataset"]
            seen[found] += name is None
            references.append(found if self.split is None else f"{found}:{self.split}")
        for reason in left_out.values():
            console.note(f"left out: {reason}")
        return Extracted(references, list(left_out.values()))


def _options_of(spec: FeatureSpec, model: str, card: Card) -> dict[str, str | bool]:
    if holds_pixels(spec) and preprocessing_name(spec.preprocessing) is None:
        raise ConfigurationError(
            f"{model} reads photographs prepared in a way that `extractor run` has no name for: extract them from "
            "Python (extractor.extract_recorded), and name the data set by --dataset"
        )
    codebook = folder_of(model) / CODEBOOK_FILE if isinstance(spec.encoding, TransformEncoding) else None
    return options_of_spec(spec, card.backbone) | as_options(codebook=codebook, expect_spec=spec.digest)
