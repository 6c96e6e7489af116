"""The tables of docs/benchmarks.md: each benchmark owns one section and replaces it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Medians of ratios within one run, measured on two CPU cores or on the GPU that a section names. Absolute times, where
they are given beside the ratios, depend on the machine and promise nothing for another one.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; floats are shown with three significant digits."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def device_name(device: str) -> str:
    """``cpu``, or the product name of the GPU."""
    if device == "cpu":
        return device
    import torch  # imported late, so that a benchmark can set the number of threads first

    return torch.cuda.get_device_name(device)


def write_section(title: str, lines: Sequence[str], document: Path = DOCUMENT, *, device: str = "cpu") -> None:
    """Replace the section of that title, or append it; results of a GPU have a section of their own."""
    if device != "cpu":
        title += " on a GPU"
    text = document.read_text() if document.is_file() else HEAD
    section = f"## {title}\n\n" + "\n".join(lines).strip() + "\n"
    known = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    updated = text.rstrip() + "\n\n" + section
    if known.search(text):
        updated = known.sub(lambda _: section + "\n", text)
    document.write_text(updated.rstrip() + "\n")
