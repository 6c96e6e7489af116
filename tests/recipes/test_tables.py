"""The recipes of the tables, at tiny size on drawn photographs, by the command a user types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interpreter.protocol_cli import parse_settings
from interpreter.protocols import protocol_named
from interpreter.protocols.protocol import ROWS, TableRequest
from recipes.tables import SMOKE, TABLES, app


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_a_protocol_with_known_methods_and_settings(name: str) -> None:
    recipe = TABLES[name]
    protocol = protocol_named(recipe.protocol, recipe.edition)  # type: ignore[arg-type]
    names = tuple(source.name for source in recipe.sources)
    rows = tuple(ROWS[row] for row in recipe.rows)
    experiments = protocol.experiments(TableRequest(names, recipe.targets, rows, recipe.seeds))
    assert {experiment.row.name for experiment in experiments} == set(recipe.rows)
    settings = parse_settings(json.dumps(recipe.settings), "cpu")
    assert len({settings.training(row, 0, None).steps for row in rows}) == 1
    assert protocol.preprocessing_for(settings) == (settings.preprocessing or protocol.preprocessing)
    smoke = parse_settings(json.dumps(recipe.settings | SMOKE), "cpu")
    assert smoke.crop is not None or not smoke.foreground  # windows about a class are windows
    quoted = {column for numbers in protocol.quoted.values() for column in numbers}
    assert quoted <= {"octa_500", *names}


@pytest.mark.slow
def test_a_table_is_made_in_parts_and_told_whole(tmp_path: Path) -> None:
    def made(*options: str) -> dict[str, float]:
        words = ["cross-modality", "--smoke", "--work", str(tmp_path), "--json", *options]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert Path(told["report"]).is_file()
        return {row: cells["octa_500"] for row, cells in told["table"].items()}

    part = made("--rows", "unet", "--seeds", "0")
    scores = tmp_path / "cross-modality" / "unet" / "octa_500" / "seed-0" / "scores.json"
    before = scores.stat().st_mtime_ns
    assert list(part) == ["unet"]
    both = made("--rows", "unet,diffdgss", "--seeds", "0")
    assert scores.stat().st_mtime_ns == before
    assert both["unet"] == part["unet"]
    assert set(both) == {"unet", "diffdgss"}


def test_unknown_tables_and_places_are_told(tmp_path: Path) -> None:
    for words, message in (
        (["nothing", "--smoke", "--work", str(tmp_path)], "no table nothing"),
        (["few-label", "--work", str(tmp_path)], "expected --data, or --smoke"),
        (["few-label", "--work", str(tmp_path), "--data", str(tmp_path)], "its columns are"),
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
