"""What all commands share: sizes as they are read, versions, and lines about what is damaged."""

from __future__ import annotations

import pytest

from store import Collection, FeatureStore, Sample, console
from store.console import human_bytes
from tests.conftest import Run


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (999_700, "1 MB"),
        (7_300_000_000_000_000, "7.3e+03 TB"),
    ],
)
def test_sizes_are_told_in_three_digits(count: int, said: str) -> None:
    assert human_bytes(count) == said


@pytest.mark.parametrize("command", ["extractor", "interpreter", "store", "service"])
def test_every_command_tells_its_version(run: Run, command: str) -> None:
    told = run(command, "--version")
    assert (told.returncode, told.stdout.split()[0]) == (0, "diffdgss")
    assert "--version" in run(command, "--help").stdout


def test_brackets_in_names_are_shown_as_they_are(run: Run, filled_store: FeatureStore) -> None:
    sample = Sample(image_id="0" * 64, name="[OD] a[/b]", split="[/train]", masks={"[bold]x": "1" * 64})
    image_id = filled_store.collections.read("eyes").samples[0].image_id
    filled_store.collections.write(Collection(name="eyes", samples=(sample.model_copy(update={"image_id": image_id}),)))
    assert "eyes/[OD] a[/b]" in run("store", "ls", str(filled_store.location)).stdout
    told = run("store", "info", str(filled_store.location))
    assert ("[/train]:1" in told.stdout, "[bold]x" in told.stdout) == (True, True), told.stderr


def test_one_damaged_data_set_hides_no_other(run: Run, filled_store: FeatureStore) -> None:
    filled_store.objects.put("datasets/torn/zarr.json", b"{")
    for command in ("info", "ls"):
        told = run("store", command, str(filled_store.location))
        assert told.returncode == 0, told.stderr
        assert "torn" in told.stderr
        assert "eye0" in told.stdout or "eyes" in told.stdout
    assert run("store", "verify", str(filled_store.location)).returncode == 4


def test_a_line_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a folder with spaces " * 20
    console.print_line(long)
    console.say(long)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{long}\n", f"{long}\n")
