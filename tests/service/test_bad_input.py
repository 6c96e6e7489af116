"""More than 500 bad files and a thousand odd requests: no 500, no hang, and the next good request is fine."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from starlette.types import Receive, Scope, Send

from service.engine import Engine
from store.memory import resident_bytes
from tests.conftest import draw_fundus
from tests.service.conftest import png, post, serving
from tests.service.corpus import corpus

ALLOWED = {200, 413, 415, 422}
HEALTH = list(HealthCheck)


@pytest.fixture(scope="module")
def api(shared_engine: Engine) -> Iterator[TestClient]:
    client = serving(shared_engine, max_bytes=400_000)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    yield client


def test_every_tiff_that_the_commands_read_is_accepted(api: TestClient) -> None:
    photograph = Image.fromarray(draw_fundus(seed=5)[0])
    for big in (False, True):
        buffer = io.BytesIO()
        photograph.save(buffer, "TIFF", big_tiff=big)
        assert api.post("/v1/segment", files={"image": ("eye.tif", buffer.getvalue())}).status_code == 200


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd files, which is what these are
def test_a_corpus_of_bad_files(api: TestClient) -> None:
    expected = post(api, png(), "image/png").content
    cases = list(corpus())
    assert len(cases) >= 500
    assert len({name for name, _ in cases}) == len(cases)
    for _, data in cases[:50]:  # warm up
        post(api, data)
    before, seen = resident_bytes(), Counter[int]()
    for i, (name, data) in enumerate(cases):
        started = time.perf_counter()
        answer = post(api, data, name="eye.png")
        assert answer.status_code in ALLOWED, (name, answer.text)
        if answer.status_code != 200:
            assert answer.json()["detail"].startswith("eye.png: "), name
        assert time.perf_counter() - started < 30, name
        seen[answer.status_code] += 1
        if i % 100 == 0:
            assert post(api, png(), "image/png").content == expected
    assert post(api, png(), "image/png").content == expected
    assert set(seen) == ALLOWED, seen  # every way to refuse was met, and photographs that can be read were
    assert resident_bytes() < before + 300_000_000


MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", MULTIPART),
        (b"--x--\r\n", MULTIPART),
        (PART, MULTIPART),
        (PART + b"abc\r\n", MULTIPART),
        (b"--y\r\n\r\n", MULTIPART),
        (b"\x00" * 100, MULTIPART),
        (PART + b"a\r\n" + PART + b"b\r\n--x--\r\n", MULTIPART),
        (b"--x\r\nContent-Disposition: nonsense\r\n\r\na\r\n--x--\r\n", MULTIPART),
        (b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--x--\r\n', MULTIPART),
        (b'--x\r\nContent-Disposition: form-data; name="\xff\xfe"; filename="a"\r\n\r\na\r\n--x--\r\n', MULTIPART),
        (b"--x\r\n" + b"A" * 60_000 + b"\r\n\r\na\r\n--x--\r\n", MULTIPART),
        (
            b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\na\r\n' % i for i in range(100)),
            MULTIPART,
        ),
        (b"abc", {"Content-Type": "multipart/form-data"}),
        (b"abc", {"Content-Type": "multipart/form-data; boundary="}),
        (b"abc", {"Content-Type": "text/plain"}),
        (b"{}", {"Content-Type": "application/json"}),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"abc", {"Content-Type": "\xff"}),
        (b"", {"Content-Type": "image/png"}),
        (b"abc", {"Content-Type": "image/png", "Content-Encoding": "gzip"}),
    ],
)
@pytest.mark.parametrize("path", ["/segment", "/v1/segment", "/v1/features", "/v1/jobs"])
def test_bodies_that_are_none(api: TestClient, body: bytes, headers: dict[str, str], path: str) -> None:
    answer = api.post(path, content=body, headers={k: v.encode("latin-1") for k, v in headers.items()})  # type: ignore[misc]
    assert answer.status_code in (202, 400, 413, 415, 422), answer.text
    assert answer.json()["detail"] if answer.status_code != 202 else True


@pytest.fixture(scope="module")
def described(api: TestClient) -> schemathesis.BaseSchema:
    async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        """The application with its engine as it is: what starts and stops is acknowledged and not done."""
        if scope["type"] != "lifespan":
            headers = [(b"host", b"localhost"), *(one for one in scope["headers"] if one[0] != b"host")]
            await api.app({**scope, "headers": headers}, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return schemathesis.openapi.from_asgi("/openapi.json", without_lifespan)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_requests_made_from_the_description(
    described: schemathesis.BaseSchema, mode: schemathesis.GenerationMode
) -> None:
    """Fitting and unfitting requests of every operation, answered as the description says."""
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    counted: Counter[str] = Counter()
    for operation in (result.ok() for result in described.get_all_operations()):

        @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=HEALTH)
        @given(case=operation.as_strategy(generation_mode=mode))
        def asked(case: schemathesis.Case) -> None:
            counted[case.operation.label] += 1
            case.call_and_validate(checks=checks)

        with contextlib.suppress(Unsatisfiable):  # an operation without parameters cannot be asked unfittingly
            asked()
    assert sum(counted.values()) >= 200
    assert {"POST /v1/segment", "POST /v1/jobs", "GET /v1/features/{key}"} <= set(counted)
