"""Settings of the service: the command line overrides the environment (``DIFFDGSS_PORT=8001``), that overrides a file.

The file is TOML and named by ``DIFFDGSS_CONFIG``; its keys are the names of the fields below. Environment and file are
read again on a reload, so that API keys can be rotated without a restart.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from service.errors import WrongSettings
from service.security import key_digest
from store.validation import problem_text

PREFIX = "DIFFDGSS_"
CONFIG = f"{PREFIX}CONFIG"
FORMATS = ("PNG", "JPEG", "TIFF", "PPM", "GIF", "BMP", "DICOM")
"""Image formats that ``service.photographs`` decodes; listed here so that settings do not import the decoders."""
MEMORY = "memory://"


def _parse_list(value: Any) -> Any:
    """Parse a list from the environment: separated by commas, or JSON."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError("expected a list separated by commas, or as JSON") from error
    return tuple(part.strip() for part in value.split(",") if part.strip())


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_list)]


FIXED_AT_START = ("host", "port", "jobs", "keep_nothing", "cors_origins", "log_level")
"""Settings that a reload cannot change."""
FIXED_IN_ENGINE = ("store", "memory_bytes", "device")
"""Settings that a reload cannot change once the models are loaded, besides the limits of the engine."""


class Settings(BaseSettings):
    """Everything an operator decides."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # errors are shown and logged, and must not contain keys
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    model: str = Field(default="vessels", description="default model: shipped name or folder of an interpreter")
    models: Names = Field(default=(), description="further models; those with the same feature spec share features")
    backbone: str | None = Field(default=None, description="shipped name, folder or hub id; by default, the model's")
    store: str | Path = Field(
        default=Path("~/.cache/diffdgss/features.zarr"),
        description="feature store: a folder or s3://bucket/prefix; may be shared with the trainer",
    )
    keep_nothing: bool = Field(default=False, description="write nothing to disk: store and jobs are kept in memory")
    memory_bytes: int = Field(
        default=1_000_000_000, gt=0, description="with keep_nothing: most bytes of features, and of jobs"
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N")

    max_bytes: int = Field(default=64_000_000, gt=0, description="most bytes of one request")
    max_pixels: int = Field(default=50_000_000, gt=0, description="most pixels of one image")
    formats: Names = Field(default=("PNG", "JPEG", "TIFF", "PPM", "DICOM"), description="accepted image formats")

    batch: int = Field(
        default=1, gt=0, description="images inverted together; above 1, features may differ in last bits"
    )
    batch_wait: float = Field(default=0.01, ge=0, le=10, description="seconds to wait for a batch to fill")
    queue: int = Field(default=32, gt=0, description="most images in progress or queued; more are answered with 503")
    deadline: float = Field(default=120.0, gt=0, description="seconds that a request may take")
    answers_bytes: int = Field(default=256_000_000, ge=0, description="bytes of the cache of answers; 0 disables it")
    store_timeout: float = Field(
        default=10.0,
        gt=0,
        description="seconds until an operation on storage is given up; one more per 10 MB of features or uploads",
    )
    max_requests: int = Field(default=64, gt=0, description="most concurrent requests, including downloads of results")
    uploads_bytes: int = Field(default=2_000_000_000, gt=0, description="most bytes of all request bodies in memory")
    upload_seconds: float = Field(default=600.0, gt=0, description="seconds within which a request body must arrive")

    jobs: str | Path = Field(
        default=Path("~/.cache/diffdgss/jobs"), description="storage of jobs: a folder or s3://bucket/prefix"
    )
    job_images: int = Field(default=1000, gt=0, description="most photographs in one job")
    job_bytes: int = Field(default=1_000_000_000, gt=0, description="most bytes of one job's upload")
    jobs_bytes: int = Field(
        default=20_000_000_000, gt=0, description="most bytes of all jobs; the oldest finished ones are deleted first"
    )
    max_jobs: int = Field(default=100, gt=0, description="most unfinished jobs")
    job_hours: float = Field(default=24.0, gt=0, description="hours after which finished jobs are deleted")
    folders: dict[str, str | Path] = Field(
        default={}, description="name = folder or s3://bucket/prefix; jobs may read these and no others"
    )

    api_keys: dict[str, tuple[SecretStr, ...]] = Field(
        default={},
        description="name = key or sha256:<hex> of it, or a list of them during a rotation; without any, everybody has "
        "access",
    )
    admins: Names = Field(default=(), description="names of keys that may reload the service and delete features")
    rate: float = Field(default=0.0, ge=0, description="most requests per minute for each key; 0: no limit")
    key_requests: int = Field(default=0, ge=0, description="most concurrent requests for each key; 0: no limit")
    cors_origins: Names = Field(default=(), description="web origins whose pages may send requests (CORS)")
    trusted_hosts: Names = Field(
        default=(),
        description="host names that a service without API keys answers to, besides this machine's own; * for any",
    )
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$", description="level of the JSON log")

    @model_validator(mode="after")
    def _admins_have_keys(self) -> Settings:
        if unknown := sorted(set(self.admins) - set(self.api_keys)):
            raise ValueError(f"expected names of api_keys in admins, found {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _a_job_fits(self) -> Settings:
        if self.job_bytes > min(self.uploads_bytes, self.jobs_bytes):
            raise ValueError("expected job_bytes, of one job, to be at most uploads_bytes and jobs_bytes, of all")
        if self.max_bytes > self.uploads_bytes:
            raise ValueError("expected max_bytes, of one request, to be at most uploads_bytes, of all")
        return self

    @field_validator("folders", "api_keys", mode="before")
    @classmethod
    def _no_setting_has_slipped_in(cls, table: Any) -> Any:
        if isinstance(table, dict) and (slipped := [name for name in table if name in cls.model_fields]):
            raise ValueError(
                f"found {slipped[0]}, which is a setting of its own; a TOML file has settings above its tables"
            )
        return table

    @field_validator("api_keys", mode="before")
    @classmethod
    def _one_key_is_a_list_of_one(cls, keys: Any) -> Any:
        if not isinstance(keys, dict):
            return keys
        return {name: (one,) if isinstance(one, (str, SecretStr)) else one for name, one in keys.items()}

    @field_validator("api_keys")
    @classmethod
    def _hashes_are_hashes(cls, keys: dict[str, tuple[SecretStr, ...]]) -> dict[str, tuple[SecretStr, ...]]:
        owners: dict[bytes, str] = {}
        for name, secrets in keys.items():
            if not secrets or not all(secret.get_secret_value() for secret in secrets):
                raise ValueError(f"expected a key in api_keys.{name}")
            for secret in secrets:
                kind, colon, digest = secret.get_secret_value().partition(":")
                if colon and kind == "sha256" and not re.fullmatch("[0-9a-fA-F]{64}", digest):
                    raise ValueError(f"expected sha256: followed by 64 hexadecimal digits in api_keys.{name}")
                if (owner := owners.setdefault(key_digest(secret), name)) != name:
                    raise ValueError(f"expected different keys in api_keys.{owner} and api_keys.{name}")
        return keys

    @field_validator("formats")
    @classmethod
    def _formats_are_known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise ValueError(f"expected some of {', '.join(FORMATS)} in formats, found {', '.join(unknown) or 'none'}")
        return formats

    @field_validator("folders")
    @classmethod
    def _folders_are_places(cls, folders: dict[str, str | Path]) -> dict[str, str | Path]:
        for name, place in folders.items():
            if not name or "/" in name:
                raise ValueError(f"expected names without a slash in folders, found {name!r}")
            if "://" in str(place) and not str(place).startswith("s3://"):
                raise ValueError(f"expected a folder or s3://bucket/prefix for {name}, found {place}")
        return folders

    def reloaded(self, new: Settings, fixed: Sequence[str]) -> tuple[Settings, list[str]]:
        """Return new settings with this one's values of those that are fixed, and the names of these that differ."""
        kept = {name: getattr(self, name) for name in fixed}
        return new.model_copy(update=kept), [name for name, value in kept.items() if getattr(new, name) != value]

    @property
    def store_location(self) -> str | Path:
        return MEMORY if self.keep_nothing else self.store

    @property
    def jobs_location(self) -> str | Path:
        return MEMORY if self.keep_nothing else self.jobs

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG)
        sources = (init_settings, env_settings)
        if file is None:
            return sources
        if not Path(file).is_file():
            raise FileNotFoundError(f"{CONFIG} names {file}, which is not a file")
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(file)))


def read_settings(**given: Any) -> Settings:
    """Return the settings of this process; ``given`` are those of the command line.

    Raises:
        WrongSettings: an invalid value, a file that cannot be read, or a variable that is nearly the name of a
            setting. Were ``DIFFDGSS_API_KEY`` ignored, the service would be open to everybody.
    """
    names = [name.lower() for name in (CONFIG, *(f"{PREFIX}{field}" for field in Settings.model_fields))]
    for variable in os.environ:
        name = variable.lower()
        if name.startswith(PREFIX.lower()) and name not in names and (near := get_close_matches(name, names, 1, 0.84)):
            raise WrongSettings(f"{variable} is not a setting; did you mean {near[0].upper()}?")
    try:
        return Settings(**given)
    except ValidationError as error:
        raise WrongSettings("; ".join(dict.fromkeys(map(_error_text, error.errors())))) from error
    except SettingsError as error:  # a table in the environment that is not JSON; the message names its field
        field = re.search(r'"(\w+)"', str(error))
        variable = f"{PREFIX}{field[1].upper()}" if field else "a setting"
        raise WrongSettings(f'{variable}: expected a table as JSON, such as {{"name": "value"}}') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongSettings(f"{os.environ[CONFIG]} is not valid TOML: {error}") from error
    except OSError as error:
        raise WrongSettings(str(error)) from error


def _error_text(problem: Mapping[str, Any]) -> str:
    """One problem of the settings; for an unknown one, the setting whose name is nearest."""
    if problem["type"] != "extra_forbidden":
        return problem_text(problem)
    place = ".".join(map(str, problem["loc"]))
    near = get_close_matches(place, Settings.model_fields, 1)
    return f"{place}: not a setting{f'; did you mean {near[0]}?' if near else ''}"


def settings_table() -> list[tuple[str, str, str]]:
    """Return (environment variable, default, description) of every setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default: Any = field.default
        rows.append((f"{PREFIX}{name.upper()}", "" if default is None else _shown(default), field.description or ""))
    return rows


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default == {} else str(default)
