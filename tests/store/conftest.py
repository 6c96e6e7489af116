"""A feature store in every place it can be in, and features in every encoding."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from store import Codebook, Features, FeatureSpec, FeatureStore, Geometry, Key, Moments
from store.codecs import codec_for
from store.spec import AffineEncoding, FloatEncoding

KEY = Key("a" * 64)
BACKENDS = ["folder", "memory", "s3"]
ENCODINGS = ["float32", "float16", "int8", "compact"]


class Coded(NamedTuple):
    """A spec in one encoding."""

    spec: FeatureSpec
    codebook: Codebook | None


def some_maps(spec: FeatureSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """{block: float32 (t, c, h, w)} whose channels are correlated, as those of a network are."""
    random = np.random.default_rng(seed)
    maps = {}
    for block in spec.blocks:
        basis = np.linalg.qr(np.random.default_rng(99).normal(size=(block.channels, block.channels)))[0]
        strength = 4.0 * 0.6 ** np.arange(block.channels)
        components = random.normal(size=(len(spec.timesteps), block.channels, block.height * block.width))
        mixed = basis @ (strength[:, None] * components) + 1.5
        maps[block.name] = torch.from_numpy(
            mixed.reshape(len(spec.timesteps), block.channels, block.height, block.width).astype(np.float32)
        )
    return maps


def some_features(spec: FeatureSpec, seed: int = 0, codebook: Codebook | None = None) -> Features:
    codec = codec_for(spec, codebook)
    fov = np.random.default_rng(seed).random((spec.resolution, spec.resolution)) < 0.5
    encoded = {name: codec.encode(name, maps) for name, maps in some_maps(spec, seed).items()}
    return Features(encoded, fov, Geometry.whole(40, 50, spec.resolution))


def fitted(spec: FeatureSpec, distortion: float = 0.02) -> Codebook:
    moments = {block.name: Moments(block.channels) for block in spec.blocks}
    for seed in (1000, 1001):
        for name, maps in some_maps(spec, seed).items():
            moments[name].add(maps.numpy())
    return Codebook({name: one.fit(distortion) for name, one in moments.items()})


def coded(spec: FeatureSpec, name: str) -> Coded:
    """The spec in the encoding of that name."""
    if name == "compact":
        codebook = fitted(spec)
        return Coded(spec.with_encoding(codebook.encoding), codebook)
    return Coded(spec.with_encoding(AffineEncoding() if name == "int8" else FloatEncoding(kind=name)), None)  # type: ignore[arg-type]


class S3Server:
    """moto's server in a process of its own, which can be told to fail."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("s3_server.py")
        self._process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.request("PUT", "/bucket")

    def request(self, method: str, path: str) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(self.endpoint + path, method=method), timeout=120).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise RuntimeError(f"the S3 server does not answer {method} {path}")

    def faults(self, **settings: float) -> None:
        """error: share of requests answered 500; slow: share that take ``seconds``."""
        query = "&".join(f"{name}={value}" for name, value in settings.items())
        self.request("POST", f"/_faults?{query}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    before = dict(os.environ)
    os.environ.update(AWS_ENDPOINT_URL=server.endpoint, AWS_REGION="eu-west-1")
    os.environ.update(AWS_ACCESS_KEY_ID="tests", AWS_SECRET_ACCESS_KEY="tests")
    yield server
    os.environ.clear()
    os.environ.update(before)
    server.stop()


@pytest.fixture(params=BACKENDS)
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3_server")
        return f"s3://bucket/{uuid.uuid4().hex}"
    return str(tmp_path / "store") if request.param == "folder" else "memory://"


@pytest.fixture
def store(location: str) -> FeatureStore:
    return FeatureStore(location)
