"""``interpreter evaluate --protocol``: from its options to the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer
from pydantic import ValidationError

from interpreter.errors import ConfigurationError
from interpreter.metrics import finite_or_none
from interpreter.options import views_named
from interpreter.presets import TRAINING_PRESETS
from interpreter.protocols import protocol_named
from interpreter.protocols.extracting import extract_by_command, parse_source
from interpreter.protocols.features import ProtocolFeatures
from interpreter.protocols.protocol import ROWS, Edition, ProtocolSettings, Row
from interpreter.protocols.report import write_report
from interpreter.protocols.running import ProtocolRun
from interpreter.protocols.table import tabulated
from store import console
from store.feature_store import FeatureStore
from store.validation import first_problem


def run_protocol(
    named: tuple[str, Edition],
    *,
    store: str,
    data: Sequence[str],
    out: Path | None,
    targets: Sequence[str],
    rows: str,
    seeds: Sequence[str],
    settings: str | None,
    device: str,
    mirrored: bool,
    as_json: bool,
) -> None:
    """Run a protocol, write its report and print its table.

    Args:
        named: name and edition of the protocol.
        settings: JSON of ``ProtocolSettings``; views, timesteps and blocks may be written as on the command line.
    """
    protocol = protocol_named(*named)
    if not data or out is None:
        raise typer.BadParameter("a protocol needs --data and --out")
    sources = [parse_source(text) for text in data]
    chosen = parse_settings(settings, device, mirrored=mirrored)
    methods, numbers = parse_rows(rows), parse_seeds(seeds)
    features = ProtocolFeatures(
        protocol,
        sources,
        FeatureStore(store),
        chosen,
        extract_by_command(store, chosen),
        console.say,
    )
    results = ProtocolRun(features, out).run(targets, methods, numbers)
    report = write_report(protocol, chosen, {source.name: source.reference for source in sources}, results, out)
    table = tabulated(protocol, results)
    if as_json:
        values = {
            row: {name: finite_or_none(cell.value) for name, cell in cells.items()} for row, cells in table.items()
        }
        console.print_json({"report": str(report), "table": values})
        return
    for row, cells in table.items():
        for column, cell in cells.items():
            console.print_line(f"{row:12} {column:12} {cell}")
    console.print_line(f"report: {report}")


def parse_settings(text: str | None, device: str, *, mirrored: bool = False) -> ProtocolSettings:
    """Parse the settings of a protocol, a JSON object that overrides options; ConfigurationError says what is wrong.

    Its key ``training`` names a preset of `interpreter train`, which the other keys override.
    """
    try:
        given = json.loads(text or "{}")
        preset = given.pop("training", None)
        if preset not in (None, *TRAINING_PRESETS):
            raise ConfigurationError(f"--settings: no training {preset!r}; there are {', '.join(TRAINING_PRESETS)}")
        plan = TRAINING_PRESETS[preset].values_beside(given) if preset else {}
        plain = {"device": device, "mirrored": mirrored} | plan | given
        if isinstance(plain.get("views"), str):
            plain["views"] = views_named(plain["views"])
        for name in ("timesteps", "blocks"):
            if isinstance(plain.get(name), str):
                plain[name] = plain[name].split(",")
        return ProtocolSettings.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            there = ", ".join(sorted(ProtocolSettings.model_fields))
            raise ConfigurationError(f"--settings: no setting {first['loc'][0]!r}; there are {there}") from error
        raise ConfigurationError(f"--settings: {first_problem(error)}") from error
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"--settings: expected a JSON object, got {text!r}") from error


def parse_rows(text: str) -> list[Row]:
    """Parse names of rows, separated by commas; ConfigurationError lists the rows there are."""
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in ROWS]:
        raise ConfigurationError(f"--rows: no method {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return [ROWS[name] for name in names]


def parse_seeds(words: Sequence[str]) -> list[int]:
    """Parse seeds, separated by spaces or commas; ConfigurationError if there are none."""
    parts = " ".join(words).replace(",", " ").split() or [""]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise ConfigurationError(f"expected seeds such as 0 1 2, got {wrong[0]!r}")
    return [int(part) for part in dict.fromkeys(parts)]
