"""A demo: segment one real photograph with the service's engine, and write a mask, an overlay and a report.

``python -m service.demo --out demo`` segments the fundus photograph that scikit-image ships, or the one that is given,
and ends with one line of JSON.
"""

from __future__ import annotations

import base64
import html
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from extractor.errors import naming
from extractor.images import decode_image
from interpreter.rendering import encode_labels, encode_picture, overlay
from service.answers import Answer
from service.engine import load_engine
from service.errors import HANDLED_ERRORS
from service.schemas import DISCLAIMER
from store import console

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for store, pictures and report.")] = Path("demo"),
    image: Annotated[Path | None, typer.Option(help="A photograph; scikit-image's if not given.")] = None,
    model: Annotated[str, typer.Option(help="Shipped name or folder of an interpreter.")] = "vessels",
) -> None:
    """Segment a photograph and write mask, overlay and report."""
    started = time.perf_counter()
    engine = load_engine(model, out / "features.zarr")
    loading = time.perf_counter() - started
    data = image.read_bytes() if image else files("skimage.data").joinpath("retina.jpg").read_bytes()
    with naming(image or "retina.jpg"):
        answer = engine.segment(data)
    paths = write_report(answer, data, out)
    _tell(answer, loading)
    seconds = {"load": round(loading, 3)} | {stage: round(s, 3) for stage, s in answer.seconds.items()}
    line = {"forwards": answer.forwards, "bytes_stored": answer.bytes_stored, "seconds": seconds}
    typer.echo(json.dumps(line | {name: str(path) for name, path in paths.items()}))


def write_report(answer: Answer, data: bytes, out: Path) -> dict[str, Path]:
    """Write mask.png, overlay.png and report.html of a photograph; return their paths by name."""
    colours = answer.colours
    paths = {"mask": out / "mask.png", "overlay": out / "overlay.png", "report": out / "report.html"}
    out.mkdir(parents=True, exist_ok=True)
    mask = encode_labels(answer.labels, colours)
    picture = encode_picture(overlay(decode_image(data), answer.labels, colours))
    paths["mask"].write_bytes(mask)
    paths["overlay"].write_bytes(picture)
    paths["report"].write_text(_report(answer, mask, picture))
    return paths


def _tell(answer: Answer, loading: float) -> None:
    source = (
        "features were in the store, nothing had to be inverted"
        if answer.cached
        else (f"{answer.forwards} forwards, {console.human_bytes(answer.bytes_stored)} stored")
    )
    console.print_line(f"models loaded in {loading:.1f} s; {source}")
    for stage, seconds in answer.seconds.items():
        console.print_line(f"  {stage:10} {seconds:6.2f} s")


def _report(answer: Answer, mask: bytes, picture: bytes) -> str:
    rows = {
        "image": answer.image_id,
        "size": f"{answer.labels.shape[1]} x {answer.labels.shape[0]}",
        "classes": ", ".join(answer.classes),
        "mean agreement of the votes": f"{100 * answer.mean_agreement:.1f} %",
        "timesteps": ", ".join(map(str, answer.timesteps)),
        "features": answer.spec,
        "network forwards": str(answer.forwards),
        **{f"seconds: {stage}": f"{seconds:.2f}" for stage, seconds in answer.seconds.items()},
    }
    table = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    pictures = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, data in (("overlay", picture), ("mask", mask))
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>DiffDGSS report</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }}
  :root {{ color-scheme: light dark }}
  .pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem }}
  figure {{ margin: 0 }} img {{ width: 100%; border-radius: .5rem }}
  table {{ border-collapse: collapse; margin-top: 1rem }}
  th {{ text-align: left; padding-right: 2rem; font-weight: 500 }}
  td {{ font-variant-numeric: tabular-nums; word-break: break-all }}
</style>
<h1>DiffDGSS: {html.escape(answer.model)}</h1>
<p>{DISCLAIMER}</p>
<div class="pictures">{pictures}</div>
<table>{table}</table>
</html>
"""


def main() -> NoReturn:
    """Run the command; errors that are expected are printed and set the exit code."""
    console.run(app, *HANDLED_ERRORS, OSError)


if __name__ == "__main__":
    main()
