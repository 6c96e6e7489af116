"""A protocol's report: a self-contained HTML file, and the same results as JSON and CSV."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from interpreter.metrics import in_points
from interpreter.protocols.protocol import Protocol, ProtocolSettings
from interpreter.protocols.running import PICTURES, Result
from interpreter.protocols.table import Table, as_json, tabulated, write_csv
from interpreter.rendering import label_map_path

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd }
td { text-align: right; font-variant-numeric: tabular-nums } th:first-child, td:first-child { text-align: left }
.quoted { color: #777; font-style: italic } .note { color: #844 }
figure { display: inline-block; margin: .4rem } img { width: 15rem; display: block } figcaption { font-size: .8rem }
.wide { overflow-x: auto } summary { cursor: pointer } pre { background: #f6f6f6; padding: .8rem; overflow: auto }
"""


def write_report(
    protocol: Protocol, settings: ProtocolSettings, data: dict[str, str], results: Sequence[Result], out: Path
) -> Path:
    """Write report.html, report.json and scores.csv into a folder; return the path of the first.

    Args:
        data: {name: reference} of the data sets.
    """
    plain = as_json(protocol, settings, data, results)
    (out / "report.json").write_text(json.dumps(plain, indent=2) + "\n")
    write_csv(results, out / "scores.csv")
    path = out / "report.html"
    path.write_text("\n".join(_page(protocol, plain, results)) + "\n")
    return path


def _page(protocol: Protocol, plain: dict[str, Any], results: Sequence[Result]) -> Iterator[str]:
    title = f"{protocol.name} ({protocol.edition})"
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    yield f"<h1>{title}</h1><p>{escape(protocol.description)}</p>"
    yield from (f"<p class=note>{escape(note)}</p>" for note in protocol.notes)
    if plain["settings"]["adapt"]:
        yield f"<p class=note>{ADAPTED}</p>"
    seeds = ", ".join(map(str, plain["seeds"]))
    over = (
        f"seeds {seeds}, mean ± standard deviation of just these seeds" if len(plain["seeds"]) > 1 else f"seed {seeds}"
    )
    interval = "" if protocol.by_class else " (95 % bootstrap interval over test images)"
    yield f"<p>{_metric(protocol)}, in points of 100; {over}{interval}.</p>"
    yield from _table(tabulated(protocol, results), protocol)
    yield "<ul>"
    yield from (f"<li><b>{escape(row)}</b>: {escape(description)}</li>" for row, description in plain["rows"].items())
    yield "</ul><h2>Further metrics</h2><p>Shares in points of 100, HD95 in pixels.</p>"
    yield from _metrics(results)
    yield "<h2>Best and worst</h2><p>White: found; blue: missed; orange: found where there is nothing.</p>"
    yield from _pictures(results)
    yield "<h2>Every image</h2>"
    yield from _images(results)
    yield "<h2>Settings</h2><pre>"
    yield escape(json.dumps({k: plain[k] for k in ("data", "settings", "versions", "mask_filter")}, indent=2))
    yield "</pre></html>"


def _metric(protocol: Protocol) -> str:
    return {"dice": "Dice, mean over images", "auc_pr_33": "AUC-PR over 33 thresholds"}[protocol.metric]


def _table(table: Table, protocol: Protocol) -> Iterator[str]:
    columns = list(dict.fromkeys(column for cells in table.values() for column in cells))
    yield f"<table><tr><th></th>{''.join(f'<th>{escape(column)}</th>' for column in columns)}</tr>"
    for row, cells in table.items():
        yield f"<tr><td>{escape(row)}</td>"
        yield from (f"<td>{cells.get(column, '')}</td>" for column in columns)
        yield "</tr>"
    for row, numbers in protocol.quoted.items():
        if any(column in numbers for column in columns):
            yield f"<tr class=quoted><td>{escape(row)} (quoted)</td>"
            yield from (f"<td>{in_points(numbers.get(column))}</td>" for column in columns)
            yield "</tr>"
    yield "</table>"


ADAPTED = (
    "Photographs of a tested data set are read at the resolution (read at) at which the trained network expects the "
    "highest Dice on photographs of that data set's train split; their labels are not read."
)
FIGURES = (
    "pooled_dice", "iou", "sensitivity", "specificity", "auc_roc", "auc_pr", "calibration_error", "expected_dice"
)  # fmt: skip


def _metrics(results: Sequence[Result]) -> Iterator[str]:
    head = ("experiment", *FIGURES, "hd95", "temperature", "k weights", "GFLOP", "read_at")
    yield f"<div class=wide><table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>".replace("_", " ")
    for result in results:
        summary = result.summary
        others = (summary["hd95"], summary["temperature"], summary["weights"] / 1e3, summary["flops"] / 1e9)
        cells = "".join(f"<td>{in_points(summary[name])}</td>" for name in FIGURES)
        cells += "".join(f"<td>{'' if value is None else f'{value:.2f}'}</td>" for value in others)
        cells += f"<td>{summary.get('read_at', '')}</td>"
        yield f"<tr><td>{escape(result.experiment.path)}</td>{cells}</tr>"
    yield "</table></div>"


def _pictures(results: Sequence[Result]) -> Iterator[str]:
    first = min(result.experiment.seed for result in results)
    for result in (r for r in results if r.experiment.seed == first):
        ordered = sorted(result.summary["by_image"].items(), key=lambda item: item[1]["dice"])
        yield f"<h3>{escape(result.experiment.path)}</h3>"
        for word, (image, scores) in (("best", ordered[-1]), ("worst", ordered[0])):
            data = base64.b64encode(label_map_path(result.folder / PICTURES, image).read_bytes()).decode()
            yield f"<figure><img alt='' src='data:image/png;base64,{data}'>"
            yield f"<figcaption>{word}: {escape(image)}, Dice {100 * scores['dice']:.1f}</figcaption></figure>"


def _images(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        yield f"<details><summary>{escape(result.experiment.path)}</summary><table>"
        yield "<tr><th></th><th>Dice</th><th>expected</th></tr>"
        for image, scores in result.summary["by_image"].items():
            figures = "".join(f"<td>{in_points(scores[name])}</td>" for name in ("dice", "expected_dice"))
            yield f"<tr><td>{escape(image)}</td>{figures}</tr>"
        yield "</table></details>"
