"""What the documents say is what happens: the README's commands and code are run."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from interpreter import TRAINING_PRESETS
from tests.conftest import Run, draw_fundus

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SERVICE = (ROOT / "docs" / "service.md").read_text()
COMMANDS = ("extractor", "interpreter", "store", "service")


def blocks(language: str, document: str = README) -> list[str]:
    """Fenced code blocks in that language of a document's text."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    return [code for found, code in fenced if found == language]


def calls() -> list[list[str]]:
    """Every call of one of our commands in the README, split into words."""
    text = "\n".join(blocks("bash") + blocks("")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    return [words for words in lines if words[0] in COMMANDS]


@pytest.mark.parametrize("words", calls(), ids=" ".join)
def test_every_call_has_the_options_it_names(words: list[str]) -> None:
    command = typer.main.get_command(importlib.import_module(f"{words[0]}.cli").app)
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        context = command.make_context(words[0], words[1:])
    else:
        context = subcommands[words[1]].make_context(words[1], words[2:])
    assert context.params


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("docker/*.md"),
        *ROOT.glob("*/models/*/*.md"),
    ]


def anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub and others make them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    for document in documents():
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", document.read_text()):
            there = document.parent / target if target else document
            assert there.exists(), f"{document.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{document.name} links to {target}#{anchor}"


def test_the_index_of_decisions_is_complete() -> None:
    folder = ROOT / "docs" / "decisions"
    linked = re.findall(r"^\| \d+ \| \[.*?\]\(([^)]*)\)", (folder / "README.md").read_text(), re.MULTILINE)
    assert linked == sorted(path.name for path in folder.glob("0*.md"))


def test_the_examples_of_the_service_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.schemas import SegmentResponse
    from service.settings import CONFIG, read_settings

    [toml], [answer] = blocks("toml", SERVICE), blocks("json", SERVICE)
    (tmp_path / "service.toml").write_text(toml)
    monkeypatch.setenv(CONFIG, str(tmp_path / "service.toml"))
    settings = read_settings()
    assert (settings.models, len(settings.api_keys["screening"])) == (("disc_cup", "lesions"), 2)
    example = SegmentResponse.model_config["json_schema_extra"]["examples"][0]  # type: ignore[index, call-overload]
    SegmentResponse.model_validate(example | json.loads(answer))
    assert json.loads(answer).keys() <= example.keys()


def test_what_docker_copies_exists() -> None:
    for dockerfile in (ROOT / "docker").glob("*.Dockerfile"):
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile.read_text(), re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), f"{dockerfile.name} copies {source}"


@pytest.fixture
def retina() -> Path:
    """The photograph that scikit-image ships."""
    import skimage

    return Path(skimage.__file__).parent / "data" / "retina.jpg"


def draw_photos() -> None:
    """Three labelled photographs in ``photos``."""
    for part in ("images", "masks"):
        Path("photos", part).mkdir(parents=True)
    for i in range(3):
        image, vessel = draw_fundus(256, i)
        Image.fromarray(image).save(f"photos/images/{i}.png")
        Image.fromarray(vessel).save(f"photos/masks/{i}.png")


def test_the_python_examples_run(
    retina: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(retina.read_bytes())
    draw_photos()
    assert TRAINING_PRESETS["fast"].training_settings(steps=8).steps == 8
    monkeypatch.setitem(TRAINING_PRESETS, "fast", TRAINING_PRESETS["fast"].model_copy(update={"steps": 1}))
    told = []
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), {})  # what a reader would paste
        told.append(capsys.readouterr().out.splitlines())
    assert told[0][0].startswith("(1411, 1411) ")
    assert told[1][:2] == ["6 []", "(2, 16, 512, 512)"]
    assert 0 <= float(told[1][2]) <= 1
    assert told[1][3].startswith("{'dice': ")


def test_the_demo_inverts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from service import demo

    last_lines = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path / "demo")])
        with pytest.raises(SystemExit) as stopped:
            demo.main()
        assert stopped.value.code == 0
        last_lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    first, second = last_lines
    assert (first["forwards"], second["forwards"]) == (2, 0)
    assert first["bytes_stored"] > 1e6
    assert second["bytes_stored"] == 0
    assert set(first["seconds"]) >= {"load", "decode", "invert", "interpret"}
    with Image.open(first["mask"]) as mask, Image.open(first["overlay"]) as overlay:
        assert mask.size == overlay.size == (1411, 1411)
        assert overlay.mode == "RGB"
    assert "not a medical device" in Path(first["report"]).read_text()


@pytest.mark.slow
def test_the_path_on_own_photographs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.chdir(tmp_path)
    draw_photos()
    for line in "".join(blocks("bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[0] != "service":
            quick = ["--epochs", "1", "--steps", "1"] if words[1] == "train" else []
            result = run(*words, *quick)
            assert result.returncode == 0, result.stderr
