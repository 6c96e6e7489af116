"""Settings of the service, from the environment (``DIFFDGSS_PORT=8001``) or the command line."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything an operator decides."""

    model_config = SettingsConfigDict(env_prefix="DIFFDGSS_", frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535)
    model: str = Field(default="vessels", description="shipped name or folder of an interpreter")
    backbone: str | None = Field(default=None, description="shipped name, folder or hub id; the model's if not given")
    store: str | Path = Field(
        default=Path("~/.cache/diffdgss/features.zarr"),
        description="feature store, a folder or s3://bucket/prefix; the trainer's may be it",
    )
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N")
    max_bytes: int = Field(default=64_000_000, gt=0, description="of one request")
    max_pixels: int = Field(default=50_000_000, gt=0, description="of one image")
