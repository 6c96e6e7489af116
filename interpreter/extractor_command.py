"""Running ``extractor run`` where features are needed, since the interpreter does not import the extractor."""

from __future__ import annotations

import json
from typing import Any

from interpreter.errors import ConfigurationError, ExtractionFailed
from store.extraction_command import ExtractionCommand, reached_its_end


def parse_data(text: str) -> tuple[str | None, str]:
    """Split ``NAME=ADAPTER:PATH`` or ``ADAPTER:PATH`` into the name, None if there is none, and ADAPTER:PATH."""
    name, equals, reference = text.partition("=")
    named = bool(equals) and ":" not in name  # otherwise the equals sign belongs to the path
    adapter, _, path = (reference if named else text).partition(":")
    if not adapter or not path or (named and not name):
        raise ConfigurationError(f"{text!r}: expected NAME=ADAPTER:PATH or ADAPTER:PATH, such as folder:photos")
    return (name, reference) if named else (None, text)


def run_extraction(command: ExtractionCommand, *, partial: bool = False) -> dict[str, Any]:
    """Run ``extractor run --json`` to its end and return its report.

    Args:
        partial: accept that photographs which cannot be read are left out.

    Raises:
        ExtractionFailed: it ended with an error, or left out photographs although ``partial`` is False.
    """
    done = command.run()
    what = command.options["dataset"]
    if not reached_its_end(done):
        raise ExtractionFailed(
            f"{what} could not be extracted (exit code {done.returncode} of `{command}`); see its messages above"
        )
    report: dict[str, Any] = json.loads(done.stdout)
    if report["failed"] and not partial:
        reasons = "; ".join(reason for _, reason in report["failed"][:5])
        raise ExtractionFailed(f"{len(report['failed'])} photographs of {what} could not be used: {reasons}")
    return report
