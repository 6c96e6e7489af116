"""The service at tiny size: an untrained interpreter, a two-level backbone, photographs of 80 pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from httpx import Response
from PIL import Image

from extractor.backbone import Backbone
from extractor.backbone_folder import save_backbone
from interpreter.checkpoint import Card, save_interpreter
from interpreter.config import InterpreterConfig
from interpreter.network import Interpreter
from interpreter.task import Task
from service.app import create_app
from service.engine import Engine, load_engine
from service.metrics import Metrics
from service.models import load_models
from service.question import Limits
from service.settings import Settings
from service.storage import GuardedStore
from store import FeatureSpec, FeatureStore
from tests.conftest import draw_fundus


@pytest.fixture(scope="session")
def model_folder(backbone: Backbone, spec: FeatureSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained interpreter and its backbone, as files."""
    root = tmp_path_factory.mktemp("model")
    torch.manual_seed(3)
    network = Interpreter(spec, InterpreterConfig())
    torch.nn.init.normal_(network.head.head.weight, std=1.0)
    save_backbone(backbone, root / "backbone", half=False)
    task = Task(name="vessels", targets=("mask",))
    save_interpreter(root, network, Card(spec=spec, backbone=str(root / "backbone"), task=task, config=network.config))
    return root


@pytest.fixture
def engine(model_folder: Path, filled_store: FeatureStore) -> Engine:
    return load_engine(str(model_folder), filled_store.location, limits=Limits(max_pixels=100_000))


def with_store(engine: Engine, open_store: Callable[[], FeatureStore], **limits: int) -> Engine:
    """The same models with another store."""
    metrics = Metrics()
    return Engine(engine.models, GuardedStore(open_store, metrics), Limits(**limits), metrics)


@pytest.fixture(scope="session")
def make_engine(model_folder: Path) -> Iterator[Callable[..., Engine]]:
    """Engines with limits of their own and a store in memory."""
    made: list[Engine] = []

    def make(**limits: object) -> Engine:
        metrics = Metrics()
        models = load_models([str(model_folder)])
        storage = GuardedStore(lambda: FeatureStore("memory://"), metrics)
        made.append(Engine(models, storage, Limits(**limits), metrics))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="session")
def shared_engine(make_engine: Callable[..., Engine]) -> Engine:
    """One engine for tests that change nothing but its caches."""
    return make_engine(answers_bytes=10_000_000, max_pixels=100_000)


def serving(engine: Engine, **settings: object) -> TestClient:
    """A client of an application with this engine; a context."""
    chosen = Settings(**({"keep_nothing": True, "max_pixels": 100_000} | settings))  # type: ignore[arg-type]
    return TestClient(create_app(chosen, lambda: engine, lambda: chosen), base_url="http://localhost")


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    settings = Settings(max_bytes=200_000, max_pixels=100_000, keep_nothing=True)
    with TestClient(create_app(settings, lambda: engine), base_url="http://localhost") as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        yield client


def png(seed: int = 50, side: int = 80) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_fundus(side, seed)[0]).save(buffer, format="PNG")
    return buffer.getvalue()


def post(
    client: TestClient, data: bytes, accept: str = "application/json", name: str = "eye.png", **params: str
) -> Response:
    return client.post("/segment", files={"image": (name, data)}, headers={"Accept": accept}, params=params)
