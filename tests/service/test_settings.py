"""Settings from the command line, the environment and a file; and what `service check` says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from extractor.images import FORMATS as IMAGE_FORMATS
from service.errors import WrongSettings
from service.models import load_servable
from service.photographs import DECODERS
from service.settings import FORMATS, MEMORY, Settings, read_settings, settings_table
from store.pixels import spec_of_pixels
from store.spec import Preprocessing
from tests.conftest import Run


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"deadline": "inf"}, "deadline: Input should be a finite number"),
        ({"rate": "nan"}, "rate: Input should be a finite number"),
        ({"api_keys": {"a": "k", "b": "k"}}, "expected different keys in api_keys.a and api_keys.b"),
        ({"api_keys": {"a": ""}}, r"expected a key in api_keys\.a"),
    ],
)
def test_what_would_fail_later_is_refused_now(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(WrongSettings, match=problem):
        read_settings(**settings)


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "service.toml"
    file.write_text('port = 1\nqueue = 5\ndeadline = 9.5\nadmins = ["boss"]\n[api_keys]\nboss = "secret"\n')
    monkeypatch.setenv("DIFFDGSS_CONFIG", str(file))
    monkeypatch.setenv("DIFFDGSS_QUEUE", "6")
    monkeypatch.setenv("DIFFDGSS_MODELS", '["a", "b"]')
    settings = Settings(port=2)
    assert (settings.port, settings.queue, settings.deadline) == (2, 6, 9.5)
    assert settings.models == ("a", "b")
    assert [one.get_secret_value() for one in settings.api_keys["boss"]] == ["secret"]
    assert "secret" not in repr(settings)


def test_what_cannot_be_meant_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="names of api_keys"):
        Settings(admins=("nobody",))
    with pytest.raises(ValidationError):
        Settings(queue=0)
    with pytest.raises(ValidationError, match="found jpg"):
        Settings(formats=("PNG", "jpg"))
    with pytest.raises(ValidationError, match=r"expected a key in api_keys\.boss"):
        Settings(api_keys={"boss": ()})
    monkeypatch.setenv("DIFFDGSS_CONFIG", str(tmp_path / "nothing.toml"))
    with pytest.raises(FileNotFoundError, match="DIFFDGSS_CONFIG names"):
        Settings()
    (tmp_path / "nothing.toml").write_text("colour = 1\n")
    with pytest.raises(ValidationError, match="colour"):
        Settings()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("DIFFDGSS_API_KEY", "hunter2", "DIFFDGSS_API_KEY is not a setting; did you mean DIFFDGSS_API_KEYS?"),
        ("diffdgss_keys", "hunter2", "diffdgss_keys is not a setting; did you mean DIFFDGSS_API_KEYS?"),
        ("DIFFDGSS_API_KEYS", "hunter2", "DIFFDGSS_API_KEYS: expected a table as JSON"),
        ("DIFFDGSS_FORMATS", "PNG,jpg", "found jpg"),
        ("DIFFDGSS_FORMATS", "", "in formats, found none"),
        ("DIFFDGSS_MODELS", '["a"', "models: expected a list separated by commas, or as JSON"),
        ("DIFFDGSS_ADMINS", "nobody", "expected names of api_keys in admins"),
        ("DIFFDGSS_CONFIG", "/nothing.toml", "which is not a file"),
    ],
)
def test_wrong_settings_are_told_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(WrongSettings) as told:
        read_settings()
    assert said in str(told.value)
    assert "hunter2" not in str(told.value)


def test_variables_of_others_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes names such ones after a service; folders of tests are named so, too."""
    for name in ("DIFFDGSS_SERVICE_HOST", "DIFFDGSS_PORT_8000_TCP", "DIFFDGSS_SHARED", "DIFFDGSS_HEALTH_PORT"):
        monkeypatch.setenv(name, "x")
    assert read_settings() == Settings()


def test_lists_are_given_by_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFDGSS_FORMATS", "PNG, JPEG")
    monkeypatch.setenv("DIFFDGSS_MODELS", "lesions")
    monkeypatch.setenv("DIFFDGSS_CORS_ORIGINS", '["https://clinic.example"]')
    settings = read_settings()
    assert settings.formats == ("PNG", "JPEG")
    assert (settings.models, settings.cors_origins) == (("lesions",), ("https://clinic.example",))
    (tmp_path / "service.toml").write_text("port = 1\nport = 2\n")
    monkeypatch.setenv("DIFFDGSS_CONFIG", str(tmp_path / "service.toml"))
    with pytest.raises(WrongSettings, match=r"service\.toml is not valid TOML: .*line 2"):
        read_settings()
    for table in ("folders", "api_keys"):  # as a client's key it would have been accepted
        (tmp_path / "service.toml").write_text(f'[{table}]\nclinic = "/data"\nadmins = ["boss"]\n')
        with pytest.raises(WrongSettings, match=f"^{table}: .*found admins, which is a setting of its own; a TOML"):
            read_settings()
    (tmp_path / "service.toml").write_text("prot = 1\n")
    with pytest.raises(WrongSettings, match=r"prot: not a setting; did you mean port\?"):
        read_settings()
    (tmp_path / "service.toml").write_bytes("store = 'Ä'".encode("latin-1"))
    with pytest.raises(WrongSettings, match=r"service\.toml is not valid TOML: .*utf-8"):
        read_settings()


def test_nothing_is_kept_where_nothing_may_be() -> None:
    settings = Settings(keep_nothing=True)
    assert (settings.store_location, settings.jobs_location) == (MEMORY, MEMORY)
    assert Settings().store_location == Settings().store


def test_help_and_document_name_every_setting(run: Run) -> None:
    shown = run("service", "--help").stdout
    document = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
    for name, _, description in settings_table():
        assert description, name
        assert name in shown, name
        assert f"`{name.removeprefix('DIFFDGSS_').lower()}`" in document, name


def test_check_says_what_is_there_and_what_is_wrong(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = run("service", "check", "--model", model_folder, "--store", tmp_path / "store.zarr")
    assert good.returncode == 0, good.stderr
    assert "model vessels" in good.stdout
    assert "can be read and written" in good.stdout
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes" / "eye.png").write_bytes(b"")
    monkeypatch.setenv("DIFFDGSS_FOLDERS", json.dumps({"clinic": str(tmp_path / "eyes")}))
    assert "folder clinic: 1 photographs" in run("service", "check", "--model", model_folder).stdout
    monkeypatch.setenv("DIFFDGSS_FOLDERS", json.dumps({"clinic": str(tmp_path / "nothing")}))
    lacks = run("service", "check", "--model", model_folder)
    assert (lacks.returncode, "(the folder is empty or not mounted)" in lacks.stdout) == (1, True)
    monkeypatch.delenv("DIFFDGSS_FOLDERS")
    (tmp_path / "file").write_text("in the way")
    assert run("service", "check", "--model", model_folder, "--store", tmp_path / "file").returncode == 1
    assert run("service", "check", "--model", "nothing").returncode == 1
    monkeypatch.setenv("DIFFDGSS_QUEUE", "none")
    wrong = run("service", "check", "--model", model_folder)
    assert wrong.returncode == 2
    assert "queue" in wrong.stderr


def test_a_model_of_photographs_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    card = SimpleNamespace(spec=spec_of_pixels(64, Preprocessing()))
    monkeypatch.setattr("service.models.load_interpreter", lambda _: (None, card))
    with pytest.raises(WrongSettings, match=r"reads photographs.*use `interpreter segment`"):
        load_servable(str(tmp_path))


def test_the_formats_of_the_settings_are_those_that_are_read() -> None:
    assert (*IMAGE_FORMATS, "DICOM") == FORMATS
    assert {decoder.name for decoder in DECODERS} == set(FORMATS)
