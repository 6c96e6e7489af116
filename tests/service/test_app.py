"""The service answers like `interpreter evaluate`, caches, and tells bad input from its own trouble."""

from __future__ import annotations

import base64
import contextlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from extractor.extraction import Extractor
from extractor.images import image_id
from interpreter.cli import app as interpreter_app
from service.app import create_app
from service.cli import bound
from service.engine import Engine, load_engine
from service.models import Model
from service.settings import Settings
from store import FeatureSpec, FeatureStore, SpecMismatch, StoreFull
from store.features import Key
from tests.conftest import changed
from tests.service.conftest import png, post, with_store


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Small packets are sent at once; else every answer takes the 40 ms of a delayed acknowledgement."""
    with contextlib.closing(bound(uvicorn.Config("unused", port=0))) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_new_photograph_is_inverted_once(client: TestClient) -> None:
    first = post(client, png()).json()
    assert first["cached"] is False
    assert first["forwards"] == 3
    assert first["image_id"] == image_id(png())
    again = post(client, png()).json()
    assert again["cached"] is True
    assert again["forwards"] == 0
    assert again["mask_png"] == first["mask_png"]


def test_the_json_answer_is_complete(client: TestClient) -> None:
    answer = post(client, png()).json()
    assert (answer["width"], answer["height"]) == (96, 80)
    assert [c["name"] for c in answer["classes"]] == ["background", "mask"]
    assert sum(c["pixels"] for c in answer["classes"]) == 80 * 96
    assert sum(c["share"] for c in answer["classes"]) == pytest.approx(1)
    assert 1 / 3 <= answer["mean_agreement"] <= 1
    assert answer["disclaimer"].startswith("For research only")
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask_png"]))))
    assert mask.shape == (80, 96)
    assert int((mask == 1).sum()) == answer["classes"][1]["pixels"]


def test_masks_are_those_of_interpreter_evaluate(
    client: TestClient, model_folder: Path, filled_store: FeatureStore, dataset_folder: Path, tmp_path: Path
) -> None:
    arguments = ["evaluate", "--store", filled_store.location, "--dataset", "eyes", "--model", str(model_folder)]
    result = CliRunner().invoke(interpreter_app, [*arguments, "--masks", str(tmp_path / "masks"), "--json"])
    assert result.exit_code == 0, result.output
    other = load_engine(str(model_folder), "memory://")
    for image in sorted((dataset_folder / "images").iterdir()):
        offline = (tmp_path / "masks" / "eyes" / image.name).read_bytes()
        assert post(client, image.read_bytes(), "image/png").content == offline  # from the cache
        from interpreter.rendering import encode_labels

        inverted = other.segment(image.read_bytes())
        assert not inverted.cached
        assert encode_labels(inverted.labels, other.card.task.colours) == offline  # inverted anew


def test_health_readiness_and_the_page(client: TestClient, spec: FeatureSpec) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = {"status": "ready", "model": "vessels", "spec": spec.digest, "models": ["vessels"], "store": {}}
    ready["jobs"] = None
    assert client.get("/readyz").json() == ready
    page = client.get("/")
    assert page.status_code == 200
    assert "not a medical device" in page.text
    assert "http://" not in page.text  # nothing is fetched from elsewhere
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_the_schema_tells_every_answer(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/segment"]["post"]
    assert set(operation["responses"]) >= {"200", "400", "406", "413", "415", "422", "503"}
    assert set(operation["responses"]["200"]["content"]) >= {"application/json", "image/png"}
    assert "multipart/form-data" in operation["requestBody"]["content"]


def dark() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 415, "empty"),
        (b"rubbish", 415, "not an image"),
        (png()[:300], 415, "damaged or truncated"),
        (dark(), 422, "too dark"),
        (png(side=400), 413, "pixels are more than 100000"),
        (b"x" * 250_000, 413, "the limit is 200000"),
    ],
)
def test_bad_images_are_refused_with_a_reason(client: TestClient, data: bytes, status: int, reason: str) -> None:
    response = post(client, data)
    assert response.status_code == status
    assert reason in response.json()["detail"]
    assert post(client, png()).status_code == 200  # the next good request is fine


def test_requests_without_an_image_are_refused(client: TestClient) -> None:
    assert client.post("/segment").status_code == 400
    assert client.post("/segment", files={"picture": ("a.png", png())}).status_code == 400
    assert client.post("/segment", data={"image": "text"}).status_code == 400
    broken = client.post("/segment", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=y"})
    assert broken.status_code == 400
    assert post(client, png(), "text/plain").status_code == 406


def test_names_cannot_leave_the_request(client: TestClient) -> None:
    response = post(client, b"rubbish", name="../../etc/passwd")
    assert response.json()["detail"].startswith("passwd: not an image")


def test_until_models_are_loaded_it_says_so_and_a_failure_too() -> None:
    def fail() -> Engine:
        raise FileNotFoundError("weights are gone")

    with TestClient(create_app(Settings(keep_nothing=True), fail), base_url="http://localhost") as client:
        client.app.state.context.engine.exception()  # type: ignore[attr-defined]
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert response.status_code == 503
        assert "weights are gone" in response.json()["detail"]
        assert response.headers["Retry-After"]
        assert post(client, png()).status_code == 503


def test_an_undeclared_length_is_cut_off_as_it_arrives(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(50):
            yield b"0" * 10_000

    response = client.post("/segment", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert response.status_code == 413
    assert "more than 200000 bytes" in response.json()["detail"]


def test_a_store_that_cannot_be_reached_is_no_reason_not_to_answer(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    answer = with_store(engine, lambda: FeatureStore(tmp_path / "file" / "store")).segment(png())
    assert "could not be stored" in answer.warnings[-1]
    np.testing.assert_array_equal(answer.labels, engine.segment(png()).labels)


class FullStore(FeatureStore):
    """A store on a disk without room."""

    def write(self, *_: object) -> int:
        raise StoreFull("no room")


def test_a_full_store_is_no_reason_not_to_answer(engine: Engine) -> None:
    full = with_store(engine, lambda: FullStore("memory://"))
    answer = full.segment(png())
    assert "could not be stored" in answer.warnings[-1]
    expected = engine.segment(png())
    np.testing.assert_array_equal(answer.labels, expected.labels)


def test_damaged_features_are_made_anew(engine: Engine, spec: FeatureSpec, filled_store: FeatureStore) -> None:
    expected = engine.segment(png())
    key = Key(expected.image_id)
    shard = next((Path(filled_store.location) / spec.digest / key.image_id / "identity" / "block_2" / "c").rglob("0"))
    while shard.is_dir():
        shard = shard / "0"
    shard.write_bytes(shard.read_bytes()[:-5])
    answer = engine.segment(png())
    assert not answer.cached
    assert "damaged" in answer.warnings[-1]
    np.testing.assert_array_equal(answer.labels, expected.labels)
    assert engine.segment(png()).cached


def test_another_backbone_is_refused(engine: Engine, spec: FeatureSpec) -> None:
    model = engine.models.default
    other = Extractor(model.extractor.backbone, changed(spec, clip=True))
    with pytest.raises(SpecMismatch, match="clip"):
        Model("vessels", model.interpreter, model.card, other)
