"""The effect of half precision in the backbone on features and masks.

    python benchmarks/precision.py --photographs FOLDER [--count 4] [--json]

The shipped vessels model reads features of the same photographs from the backbone in float32, bfloat16 and float16
(autocast; states, schedule and the interpreter stay float32). On CPUs half precision is emulated and slow; only its
numerical effect is measured. Writes its table into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from PIL import Image

from benchmarks.drawn import draw_photograph
from benchmarks.measuring import DEVICE
from benchmarks.report import device_name, table, write_section
from extractor.backbones import open_backbone
from extractor.extraction import Extractor
from extractor.presets import fast
from interpreter.checkpoint import load_interpreter
from interpreter.metrics import count
from interpreter.network import Interpreter
from interpreter.prediction import predict
from store import FeatureSpec, FloatEncoding
from store.spec import Precision

HALF: tuple[Precision, ...] = ("bfloat16", "float16")


def measure(photographs: Sequence[bytes]) -> dict[str, dict[str, Any]]:
    """For each precision, the differences from float32 of every block and timestep, and of the masks."""
    prepared = load_interpreter("vessels")[1].spec.preprocessing
    recipe = replace(fast(), encoding=FloatEncoding(kind="float32"), preprocessing=prepared)
    exact = open_backbone(recipe.backbone, device=DEVICE)
    extractors = {"float32": Extractor(exact, recipe.spec(exact))}
    for precision in HALF:
        network = open_backbone(recipe.backbone, precision, DEVICE)
        extractors[precision] = Extractor(network, recipe.spec(network))
    interpreter = reader("vessels", recipe.spec(exact))
    found: dict[str, dict[str, Any]] = {name: {"features": {}, "pixels": [], "dice": [], "float32": 0} for name in HALF}
    for data in photographs:
        prepared = extractors["float32"].prepare(data)
        usual = extractors["float32"].features([prepared])[0]
        mask = predict(interpreter, usual.maps, usual.fov).masks[0] & usual.fov
        for name in HALF:
            half = extractors[name].features([prepared])[0]
            result = found[name]
            result["float32"] += len(extractors[name].take_fallbacks())
            for block, maps in usual.maps.items():
                for t, a, b in zip(recipe.timesteps, maps.values, half.maps[block].values, strict=True):
                    difference = np.abs(a - b)
                    scale = float(np.abs(a).max())
                    at = result["features"].setdefault(f"{block}, t = {t}", [])
                    at.append((float(difference.max()) / scale, float(difference.mean()) / float(a.std())))
            other = predict(interpreter, half.maps, half.fov).masks[0] & usual.fov
            result["pixels"].append(float((mask != other)[usual.fov].mean()))
            result["dice"].append(count(other, mask, usual.fov).dice)
    return found


def reader(name: str, spec: FeatureSpec) -> Interpreter:
    """Load a shipped interpreter so that it reads its features in the encoding of ``spec`` instead of its own."""
    shipped, card = load_interpreter(name)
    card.spec.with_encoding(spec.encoding).require(spec)
    network = Interpreter(spec, card.config).eval()
    network.load_state_dict(shipped.state_dict())
    network.temperature = shipped.temperature
    return network


def lines(found: dict[str, dict[str, Any]], count: int) -> list[str]:
    places = list(found[HALF[0]]["features"])

    def worst(name: str, place: str, i: int) -> float:
        return max(pair[i] for pair in found[name]["features"][place])

    return [
        f"`python benchmarks/precision.py` on {device_name(DEVICE)}, {count} photographs: features of half precision "
        "against those of float32. Largest difference over the largest value, and mean difference over the map's "
        "standard deviation; the worst photograph of each.",
        "",
        *table(
            ["", *(f"{name}, {what}" for name in HALF for what in ("largest", "mean"))],
            [[place, *(worst(name, place, i) for name in HALF for i in range(2))] for place in places],
        ),
        "",
        "Vessel masks against those of float32 (the interpreter stays in float32):",
        "",
        *table(
            ["", "pixels that differ", "Dice, mean", "Dice, worst", "photographs done in float32 instead"],
            [
                [
                    name,
                    f"{100 * float(np.mean(result['pixels'])):.3f} %",
                    float(np.mean(result["dice"])),
                    float(min(result["dice"])),
                    result["float32"],
                ]
                for name, result in found.items()
            ],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder of photographs; drawn if not given")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one photograph; docs/benchmarks.md stays as it is")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    wanted = 1 if given.quick else given.count
    with tempfile.TemporaryDirectory() as folder:
        places = sorted(p for p in (given.photographs or draw(Path(folder), wanted)).iterdir() if p.is_file())
        found = measure([path.read_bytes() for path in places[:wanted]])
    text = lines(found, min(wanted, len(places)))
    print("\n".join(text))
    if not given.quick:
        write_section("Half precision", text, device=DEVICE)
    if given.json:
        print(json.dumps({name: {key: result[key] for key in ("pixels", "dice")} for name, result in found.items()}))


def draw(folder: Path, count: int) -> Path:
    for i in range(count):
        Image.fromarray(draw_photograph(960, i)[0]).save(folder / f"eye{i}.png")
    return folder


if __name__ == "__main__":
    main()
