"""The answers of the shipped models on out-of-domain photographs, as one picture and one table.

    python -m recipes.pictures --out docs/images/out_of_domain.jpg [--undisplayed OCTA.png] [--json]

The photographs are those that scikit-image ships: a retina and an astronaut. Images whose terms do not allow showing
them are given by ``--undisplayed``; only their masks are drawn. Each answer is captioned with the photograph's distance
from the model's training images, the residual of the inversion, and whether the service would abstain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, NoReturn

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from extractor.errors import ExtractorError, naming
from extractor.images import decode_image
from interpreter.checkpoint import shipped
from interpreter.errors import InterpreterError
from interpreter.rendering import overlay
from service.answers import Answer
from service.engine import Engine, load_engine
from store import console
from store.errors import StoreError

SIDE = 224
CAPTION = 40
SHIPPED = {"retina.jpg": "a retina", "astronaut.png": "an astronaut"}


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        title: what it shows.
        data: the bytes of its file.
        displayed: whether the photograph itself may be shown, not only its masks.
    """

    title: str
    data: bytes
    displayed: bool = True


@dataclass(frozen=True)
class Finding:
    """The answer of one model on one photograph, in numbers.

    Attributes:
        found: share of the photograph's pixels that belong to any class, 0..1.
        agreement: mean share of voters that agree, 0..1.
        distance, threshold: the distance from the training images, and the largest one that is accepted.
        residual, residual_range: the residual of the inversion, None if unknown, and its usual range, None if
            residuals are not judged.
        abstains: whether the service would abstain: the distance exceeds its threshold or the residual is unusual.
    """

    photograph: str
    model: str
    found: float
    agreement: float
    distance: float
    threshold: float
    residual: float | None
    residual_range: tuple[float, float] | None
    abstains: bool


def photographs(undisplayed: Sequence[Path] = ()) -> list[Photograph]:
    """The photographs of scikit-image, then those that must not be shown."""
    folder = files("skimage.data")
    theirs = [Photograph(title, folder.joinpath(name).read_bytes()) for name, title in SHIPPED.items()]
    return theirs + [Photograph(path.stem, path.read_bytes(), displayed=False) for path in undisplayed]


def ask(engine: Engine, asked_about: Sequence[Photograph]) -> tuple[list[Finding], NDArray[np.uint8]]:
    """Ask every model about every photograph; return numbers, and a picture uint8 (H, W, 3), a row per photograph."""
    findings: list[Finding] = []
    rows = []
    for one in asked_about:
        tiles = [_tile(_shown(one), one.title)]
        for model in engine.models.by_name:
            with naming(one.title):
                answer = engine.segment(one.data, model)
            findings.append(_finding(one.title, answer))
            tiles.append(_tile(overlay(_shown(one), answer.labels, answer.colours, 0.8), _caption(findings[-1])))
        rows.append(np.concatenate(tiles, axis=1))
    return findings, np.concatenate(rows)


def _shown(one: Photograph) -> NDArray[np.uint8]:
    pixels = decode_image(one.data)
    return pixels if one.displayed else np.zeros_like(pixels)


def _finding(photograph: str, answer: Answer) -> Finding:
    score = answer.domain
    assert score is not None, "every shipped interpreter has a domain"
    usual = score.residual_range
    return Finding(
        photograph,
        answer.model,
        round(float((answer.labels > 0).mean()), 4),
        round(answer.mean_agreement, 4),
        round(score.distance, 2),
        round(score.threshold, 2),
        None if score.residual is None else round(score.residual, 4),
        None if usual is None else (round(usual[0], 4), round(usual[1], 4)),
        score.abstain,
    )


def _caption(finding: Finding) -> str:
    advice = ": abstains" if finding.abstains else ""
    residual = "" if finding.residual is None else f"; residual {finding.residual:.4f}"
    return f"{finding.model}{advice}\n{finding.distance} of {finding.threshold}{residual}"


def _tile(picture: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """Fit a picture into a square of SIDE with its caption below: uint8 (SIDE + CAPTION, SIDE, 3)."""
    scale = SIDE / max(picture.shape[:2])
    height, width = (max(1, round(scale * side)) for side in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    tile = Image.new("RGB", (SIDE, SIDE + CAPTION), "white")
    tile.paste(Image.fromarray(small), ((SIDE - width) // 2, (SIDE - height) // 2))
    ImageDraw.Draw(tile).text((4, SIDE + 2), caption, "black", ImageFont.load_default(14))
    return np.asarray(tile, dtype=np.uint8)


app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m recipes.pictures --out out_of_domain.jpg --undisplayed octa.png")
def pictures(
    out: Annotated[Path, typer.Option(help="The picture's file.", show_default=False)],
    undisplayed: Annotated[
        list[Path] | None, typer.Option(help="Further image, of which only masks are drawn; may be given again.")
    ] = None,
    store: Annotated[str, typer.Option(help="Feature store; its features are not made again.")] = "features.zarr",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Ask all shipped interpreters about photographs they were not made for."""
    findings, picture = ask(load_engine(shipped(), store), photographs(undisplayed or []))
    Image.fromarray(picture).save(out, quality=80)
    if as_json:
        console.print_json([dataclasses.asdict(one) for one in findings])
        return
    table = Table(
        "photograph", "model", "found, %", "agreement", "distance", "threshold", "residual", "usual", "abstains"
    )
    for one in findings:
        usual = "" if one.residual_range is None else "{} to {}".format(*one.residual_range)
        table.add_row(
            one.photograph, one.model, f"{100 * one.found:.1f}", str(one.agreement), str(one.distance),
            str(one.threshold), str(one.residual), usual, "yes" if one.abstains else "no",
        )  # fmt: skip
    console.out.print(table)


def main() -> NoReturn:
    """Entry point."""
    console.run(app, ExtractorError, InterpreterError, StoreError)


if __name__ == "__main__":
    main()
