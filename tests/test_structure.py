"""Rules that the packages agreed on, read from the code itself."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "store": {"store"},
    "extractor": {"extractor", "store"},
    "interpreter": {"interpreter", "store"},
    "service": {"service", "interpreter", "extractor", "store"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of all imports in a file, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = (imported(path) & {*ALLOWED, "recipes", "benchmarks", "tests"}) - ALLOWED[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_no_room_without_a_name_of_its_own() -> None:
    rooms = {"utils", "util", "helpers", "common", "misc"}
    assert not [path for package in ALLOWED for path in (ROOT / package).rglob("*") if path.stem in rooms]


def test_every_command_has_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == set(ALLOWED)
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


PROMISED = {
    "extractor": """
        Assessment Backbone BackboneError CheckpointError ClusterError DataSet DatasetError DeviceFull Diffusion
        Execution Extractor ExtractorError ImageError ImageTooLarge NoFieldOfView NoiseSchedule NonFiniteActivation
        PreparedPhotographs Preset Pretraining PretrainingError PretrainingSettings Request RunReport ScheduleError
        Selection UnrecordedOptions
        anchor assess decode_image diffuse extract_recorded fast image_id import_checkpoint invert load_backbone
        load_dataset noise_schedule open_backbone paper prepare_photographs read_checkpoint reconstruct save_backbone
        small
    """,
    "interpreter": """
        Card CheckpointError ConfigurationError DataError Domain DomainScore ExtractionFailed ImageScores Interpreter
        InterpreterConfig InterpreterError LabelledImage NonFinitePrediction Prediction PseudoLabels Rules
        ScanUnavailable Scores
        Segmentation SegmentedPhotograph TRAINING_PRESETS Task Training TrainingDiverged TrainingPlan
        TrainingRecord TrainingSettings Validation all_images evaluate labelled_in load_domain load_interpreter predict
        save_interpreter segment segment_into
    """,
    "service": """
        Answer BadRequest Busy Client DeadlinePassed DeviceLost DeviceOutOfMemory DicomError Engine FeaturesInfo
        JobStatus Limits ModelInfo NotFound NotReady Ready Refused SegmentResponse ServiceError Settings Unavailable
        Unreachable WrongSettings create_app load_engine
    """,
    "store": """
        AffineEncoding Batch Block Clahe Codebook Collection Collections DamagedEntry DamagedModel
        Encoded Encoding FeatureEntry FeatureSpec FeatureStore Features FloatEncoding FormatError
        Geometry Interpolation Key MissingEntry Moments NonFiniteFeatures Plan Preprocessing Sample
        SpecError SpecMismatch StoreBusy StoreError StoreFull StoreUnavailable TransformEncoding
        lazy_maps load_codebook parse_spec parse_views plan_epoch stream to_xarray
    """,
}


@pytest.mark.parametrize("package", PROMISED)
def test_the_public_surface(package: str) -> None:
    exported = importlib.import_module(package)
    assert sorted(exported.__all__) == PROMISED[package].split()  # who takes a name away, or adds one, says so here
    assert all(hasattr(exported, name) for name in exported.__all__)
    assert (ROOT / package / "py.typed").exists()


def test_a_package_loads_nothing_before_it_is_asked_for() -> None:
    heavy = {"torch", "diffusers", "fastapi", "zarr", "dask.array", "cv2", "pandas"}
    code = f"import extractor, interpreter, service, store, sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_lock_is_for_every_machine() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "torch==2.13.0\n" in lock
    for unwanted in ("+cpu", "--hash", "mamba-ssm", "://", "nvidia"):
        assert unwanted not in lock, unwanted


def test_what_a_command_makes_is_not_kept_with_the_code() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: what is kept cannot be asked")
    kept = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = {path: (ROOT / path).stat().st_size for path in kept.split("\0") if (ROOT / path).is_file()}
    assert not [path for path in sizes if ".zarr/" in path]
    large = {path for path, size in sizes.items() if size > 2**20}
    assert large == {f"extractor/models/{name}/diffusion_pytorch_model.safetensors" for name in ("base", "small")}


def test_a_run_record_holds_what_decides_what_is_made_and_no_other_option() -> None:
    import typer

    from extractor.cli import app
    from store.extraction_command import REPEATABLE

    command = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = {option.opts[0].removeprefix("--") for option in command.params}
    how = {"store", "device", "batch", "workers", "scheduler", "compile", "overwrite", "profile", "dry-run"}
    assert options - REPEATABLE == how | {"expect-spec", "ignore-space", "json"}
    assert options >= REPEATABLE
