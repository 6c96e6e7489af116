"""Keys, limits, headers; what is said about a photograph and what is not."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send
from structlog.testing import capture_logs

from service.app import create_app
from service.engine import Engine
from service.errors import BodyTooSlow, Busy, TooManyRequests, Unauthorised
from service.metrics import HttpMetrics, Metrics
from service.middleware import SECURITY_HEADERS, RequestMiddleware, UnexpectedErrorMiddleware
from service.question import Limits
from service.security import ANYBODY, Admission, Keys, presented_key
from service.settings import FIXED_AT_START, FIXED_IN_ENGINE, Settings, read_settings
from service.storage import GuardedStore
from service.uploads import UploadBudget, plain_name, read_body, release_body
from store import FeatureStore
from tests.service.conftest import png, post, serving

MakeEngine = Callable[..., Engine]
OPEN = ("/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v2", "/v2/health/live", "/v2/health/ready")


def test_keys_are_known_by_name_and_held_as_hashes() -> None:
    digest = hashlib.sha256(b"other").hexdigest()
    keys = Keys({"clinic": [SecretStr("secret")], "new": [SecretStr(f"sha256:{digest}")]})
    assert keys.name_of("secret") == "clinic"
    assert keys.name_of("other") == "new"
    assert "secret" not in str(vars(keys))
    for wrong in (None, "", "Secret", f"sha256:{digest}", "sécret"):
        with pytest.raises(Unauthorised):
            keys.name_of(wrong)
    assert Keys({}).name_of(None) == ANYBODY


def test_keys_come_in_either_header() -> None:
    assert presented_key({"authorization": "Bearer abc"}) == "abc"
    assert presented_key({"authorization": "Basic abc", "x-api-key": "def"}) == "def"
    assert presented_key({}) is None


def test_rates_refill_and_are_each_keys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("service.security.time", SimpleNamespace(monotonic=lambda: now[0]))
    admission = Admission(rate=2, at_once=0, total=10)
    for _ in range(2):
        with admission.admit("one"):
            pass
    with pytest.raises(TooManyRequests) as refused, admission.admit("one"):
        pass
    assert 0 < refused.value.retry_after <= 30
    with admission.admit("other"):
        pass
    now[0] += 30.1
    with admission.admit("one"):
        pass


def test_requests_at_once_are_bounded_for_one_and_for_all() -> None:
    admission = Admission(rate=0, at_once=1, total=2)
    with admission.admit("one"):
        with pytest.raises(TooManyRequests), admission.admit("one"):
            pass
        with admission.admit("two"), pytest.raises(Busy), admission.admit("three"):
            pass
    with admission.admit("one"):
        pass


def test_every_operation_but_health_asks_for_a_key(shared_engine: Engine) -> None:
    client = serving(shared_engine, api_keys={"clinic": "secret"})
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    schema = client.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method in operations:
            url = path.format(key=f"{'0' * 16}.{'0' * 64}", job_id="0" * 32, name="vessels")
            answer = client.request(method, url)
            if path in OPEN or path.startswith("/v2/"):
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, path
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "security" in operations[method]
    answer = client.post("/segment", files={"image": ("a.png", png())}, headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 200


def test_reloading_is_for_admins_and_rotates_keys(shared_engine: Engine, model_folder: Path) -> None:
    now = {"settings": Settings(model=str(model_folder), keep_nothing=True, api_keys={"boss": "old"}, admins=("boss",))}  # type: ignore[dict-item]
    client = TestClient(create_app(now["settings"], lambda: shared_engine, lambda: now["settings"]))
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    assert client.get("/v1/models", headers={"X-API-Key": "old"}).status_code == 200
    now["settings"] = Settings(
        model=str(model_folder), keep_nothing=True, api_keys={"boss": "new", "clinic": "c"}, admins=("boss",)  # type: ignore[dict-item]
    )  # fmt: skip
    assert client.post("/v1/reload", headers={"X-API-Key": "old"}).json() == {"models": ["vessels"]}
    assert client.get("/v1/models", headers={"X-API-Key": "old"}).status_code == 401
    assert client.post("/v1/reload", headers={"X-API-Key": "c"}).status_code == 403
    now["settings"] = Settings(model="nothing", keep_nothing=True)
    failed = client.post("/v1/reload", headers={"X-API-Key": "new"})
    assert (failed.status_code, failed.json()["detail"][:21]) == (409, "nothing was reloaded:")
    assert client.get("/v1/models", headers={"X-API-Key": "new"}).status_code == 200  # as it was


def test_a_reload_leaves_what_needs_a_restart_and_says_so(shared_engine: Engine, model_folder: Path) -> None:
    settings = Settings(model=str(model_folder), keep_nothing=True)
    new = settings.model_copy(update={"max_pixels": 10, "device": "cuda", "job_images": 7})
    context = create_app(settings, lambda: shared_engine, lambda: new).state.context
    context.engine.set_result(shared_engine)
    with capture_logs() as logs:
        context.reload()
    adopted = context.settings
    assert (adopted.max_pixels, adopted.device, adopted.job_images) == (settings.max_pixels, "cpu", 7)
    assert [log["settings"] for log in logs if "need a restart" in log["event"]] == [["device", "max_pixels"]]
    documented = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
    assert all(
        f"`{name}`" in documented for name in (*FIXED_AT_START, *FIXED_IN_ENGINE, *(one.name for one in fields(Limits)))
    )


def test_features_are_deleted_by_admins(make_engine: MakeEngine) -> None:
    engine = make_engine(answers_bytes=10_000_000)
    with serving(engine, api_keys={"boss": "b", "clinic": "c"}, admins=("boss",)) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        boss, clinic = {"X-API-Key": "b"}, {"X-API-Key": "c"}
        asked = {"files": {"image": ("a.png", png(44))}, "data": {"mirrored": "true"}, "headers": clinic}
        key = client.post("/v1/segment", **asked).json()["key"]
        assert client.get(f"/v1/features/{key}", headers=clinic).status_code == 200
        refused = client.delete(f"/v1/features/{key}", headers=clinic)
        assert (refused.status_code, "admins" in refused.json()["detail"]) == (403, True)
        assert client.delete(f"/v1/features/{key}", headers=boss).status_code == 204
        assert client.get(f"/v1/features/{key}", headers=clinic).status_code == 404
        assert client.delete(f"/v1/features/{key}", headers=boss).status_code == 404
        assert not list(engine.storage.store().keys(engine.card.spec))  # nor the flips
        assert client.post("/v1/segment", params={"key": key}, headers=clinic).status_code == 404  # nor an answer
        assert client.post("/v1/segment", **asked).json()["forwards"] == 12


def test_a_name_may_have_two_keys_while_one_is_replaced(make_engine: MakeEngine) -> None:
    with serving(make_engine(), api_keys={"clinic": ["new", "old"], "other": "x"}) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        job = client.post("/v1/jobs", files={"image": ("a.png", png())}, headers={"X-API-Key": "old"}).json()
        for key, status in (("new", 200), ("old", 200), ("x", 404), ("none", 401)):
            assert client.get(f"/v1/jobs/{job['id']}", headers={"X-API-Key": key}).status_code == status, key


def test_settings_that_cannot_be_meant_change_nothing(shared_engine: Engine, model_folder: Path) -> None:
    for digest in ("0" * 63, "x" * 64):
        with pytest.raises(ValidationError, match=r"64 hexadecimal digits in api_keys\.new") as told:
            Settings(api_keys={"new": f"sha256:{digest}", "old": "hunter2"})  # type: ignore[dict-item]
        assert "hunter2" not in str(told.value)
    assert Keys(Settings(api_keys={"a": f"sha256:{'A' * 64}"}).api_keys)  # type: ignore[dict-item]
    with pytest.raises(ValidationError, match="job_bytes, of one job, to be at most"):
        Settings(job_bytes=10, uploads_bytes=9, max_bytes=1)
    with pytest.raises(ValidationError, match="max_bytes, of one request, to be at most"):
        Settings(job_bytes=1, uploads_bytes=9, max_bytes=10)
    settings = Settings(model=str(model_folder), keep_nothing=True, api_keys={"boss": "old"}, admins=("boss",))  # type: ignore[dict-item]
    client = TestClient(
        create_app(settings, lambda: shared_engine, lambda: read_settings(job_bytes=10, uploads_bytes=9, max_bytes=1))
    )
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    models = shared_engine.models
    refused = client.post("/v1/reload", headers={"X-API-Key": "old"})
    assert refused.status_code == 409
    assert "expected job_bytes, of one job, to be at most" in refused.json()["detail"]
    assert shared_engine.models is models
    assert client.get("/v1/models", headers={"X-API-Key": "old"}).status_code == 200


def test_bodies_have_room_together_and_give_it_back(make_engine: MakeEngine) -> None:
    data = png()
    with serving(make_engine(), max_bytes=10_000, job_bytes=10_000, uploads_bytes=int(1.5 * len(data))) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        context = client.app.state.context  # type: ignore[attr-defined]
        for _ in range(3):
            assert post(client, data).status_code == 200
        held = Request({"type": "http", "state": {}})
        context.uploads.reserve(held, len(data))
        refused = post(client, data)
        assert refused.status_code == 503
        assert "take all the memory for uploads" in refused.json()["detail"]
        former, context.uploads = context.uploads, UploadBudget(int(1.5 * len(data)), 10.0)  # as a reload does
        release_body(held)
        former.reserve(held, len(data))
        context.uploads.reserve(Request({"type": "http", "state": {}}), int(0.4 * len(data)))
        assert post(client, data).status_code == 200


def test_an_answer_that_is_not_written_in_time_is_told(make_engine: MakeEngine) -> None:
    with serving(make_engine(answers_bytes=10_000_000)) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        assert post(client, png()).status_code == 200  # from here on the answer is known, and only written
        client.app.state.context.rendering = asyncio.Semaphore(0)  # type: ignore[attr-defined]
        client.app.state.context.settings = client.app.state.context.settings.model_copy(update={"deadline": 0.2})  # type: ignore[attr-defined]
        refused = post(client, png())
    assert refused.status_code == 503
    assert "before the answer was written" in refused.json()["detail"]


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.sleep(10)
        raise AssertionError("not asked for so long")

    headers = [(b"content-type", b"image/png")]
    request = Request({"type": "http", "state": {}, "headers": headers, "method": "POST"}, receive)
    with pytest.raises(BodyTooSlow, match="did not arrive within 0 s"):
        asyncio.run(read_body(request, UploadBudget(100, 0.01), 100))


def test_pages_of_other_sites_may_not_use_a_service_without_keys(shared_engine: Engine) -> None:
    elsewhere, ours = {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil"}, {"Sec-Fetch-Site": "same-origin"}
    files = {"image": ("a.png", png())}
    for settings, host, headers, expected in (
        ({}, "127.0.0.1:8000", ours, 200),
        ({}, "[::1]:8000", {}, 200),
        ({}, "evil.example", {}, 403),
        ({"trusted_hosts": ("eyes.example",)}, "eyes.example", {}, 200),
        ({"trusted_hosts": ("*",)}, "evil.example", {}, 200),
        ({"host": "0.0.0.0"}, "eyes.example", elsewhere, 200),
        ({"api_keys": {"a": "key"}}, "eyes.example", elsewhere | {"X-API-Key": "key"}, 200),
        ({}, "localhost", elsewhere, 403),
        ({"cors_origins": ("http://evil",)}, "localhost", elsewhere, 200),
        ({"cors_origins": ("*",)}, "localhost", elsewhere, 200),
        ({}, "localhost", {"Origin": "http://evil"}, 403),
        ({}, "localhost:8000", {"Origin": "http://localhost:8000"}, 200),
        ({}, "[::1", {}, 403),
        ({"trusted_hosts": ("Eyes.example",)}, "eyes.example.", {}, 200),
    ):
        client = serving(shared_engine, **settings)
        client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
        answer = client.post("/v1/segment", files=files, headers=headers | {"Host": host})
        assert answer.status_code == expected, (settings, host, headers, answer.text)


def test_a_body_that_is_cut_off_is_malformed(shared_engine: Engine) -> None:
    client = serving(shared_engine)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + png() + b"\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for path, ending, expected in (
        ("/v1/segment", b"--x--\r\n", 200),
        ("/v1/segment", b"", 400),
        ("/v1/jobs", part[:-1000], 400),
    ):
        answer = client.post(path, content=part + ending, headers=headers)
        assert answer.status_code == expected, answer.text
        assert expected == 200 or "ends before its last boundary" in answer.json()["detail"]


def test_monitors_may_ask_by_head(shared_engine: Engine) -> None:
    client = serving(shared_engine)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    for path in ("/healthz", "/readyz", "/metrics"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_names_are_short_enough_for_a_file_and_keep_their_suffix() -> None:
    assert plain_name("a/" + 96 * "\u5c71" + ".png") == 32 * "\u5c71" + ".png"


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x"])
def test_who_goes_away_while_sending_is_no_error_of_ours(shared_engine: Engine, content_type: str) -> None:
    client = serving(shared_engine)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    begun = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\nhalf of'
    arriving: list[Message] = [
        {"type": "http.request", "body": begun, "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(message: Message) -> None:
        answers.append(message)

    answers = list[Message]()
    scope = {"type": "http", "method": "POST", "path": "/v1/segment", "query_string": b"", "http_version": "1.1"}
    scope |= {"headers": [(b"content-type", content_type.encode())], "client": ("127.0.0.1", 1), "root_path": ""}
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert answers[0]["status"] == 499
    metrics = client.get("/metrics").text
    assert 'route="/v1/segment",status="499"} 1.0' in metrics
    assert "diffdgss_requests_in_flight 1.0" in metrics  # the one that asks


def test_models_that_could_not_be_loaded_are_loaded_by_a_reload(make_engine: MakeEngine) -> None:
    outcomes: list[Engine | Exception] = [OSError("/private/place is away"), make_engine()]

    def load() -> Engine:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    settings = Settings(keep_nothing=True)
    with TestClient(create_app(settings, load, lambda: settings), base_url="http://localhost") as client:
        with pytest.raises(OSError, match="away"):
            client.app.state.context.engine.result()  # type: ignore[attr-defined]
        refused = post(client, png())
        assert (refused.status_code, "private" in refused.text) == (503, False)
        assert "/private/place is away" in client.get("/readyz").json()["detail"]  # for the operator
        assert client.app.state.context.reload() == ["vessels"]  # type: ignore[attr-defined]
        assert client.get("/readyz").status_code == 200
        assert post(client, png()).status_code == 200


def test_an_answer_that_nobody_takes_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(600)

    monkeypatch.setattr("service.middleware.ANSWER_SECONDS", 0.05)
    metrics = HttpMetrics()
    with pytest.raises(TimeoutError):
        asyncio.run(
            RequestMiddleware(app, metrics)(
                {"type": "http", "path": "/x", "method": "GET", "headers": []}, receive, send
            )
        )
    text = metrics.text().decode()
    assert 'status="500"} 1.0' in text  # it was cut off, whatever it began with
    assert "diffdgss_requests_in_flight 0.0" in text


def test_a_method_of_the_clients_own_makes_no_series(make_engine: MakeEngine) -> None:
    with serving(make_engine()) as client:
        for method in ("BREW", "WHEN"):
            assert client.request(method, "/healthz").status_code == 405
        metrics = client.get("/metrics").text
    assert 'method="other"' in metrics
    assert "BREW" not in metrics


def test_other_origins_may_not_ask_unless_they_are_named(shared_engine: Engine) -> None:
    for origins, allowed in (((), None), (("https://clinic.example",), "https://clinic.example")):
        client = serving(shared_engine, cors_origins=origins)
        client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
        answer = client.get("/healthz", headers={"Origin": "https://clinic.example"})
        assert answer.headers.get("access-control-allow-origin") == allowed
        if allowed is not None:
            assert {"X-Abstain", "X-Image-Id", "Retry-After"} <= set(
                answer.headers["access-control-expose-headers"].split(", ")
            )
        other = client.get("/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_every_answer_has_security_headers_and_an_id(shared_engine: Engine) -> None:
    client = serving(shared_engine)
    for answer in (client.get("/"), client.get("/healthz"), client.get("/nothing"), post(client, b"rubbish")):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert len(answer.headers["X-Request-Id"]) == 32
    assert client.get("/healthz", headers={"X-Request-Id": "trace-1"}).headers["X-Request-Id"] == "trace-1"
    forged = client.get("/healthz", headers={"X-Request-Id": "a" * 200})
    assert forged.headers["X-Request-Id"] != "a" * 200


class BrokenStore(GuardedStore):
    """Fails as nobody expects it to."""

    def read(self, *_: object) -> None:
        raise RuntimeError("private: /home/operator")


def test_failures_that_nobody_expected_have_the_headers_too(make_engine: MakeEngine) -> None:
    origin = {"Origin": "https://clinic.example", "X-Request-Id": "trace-9"}
    metrics = Metrics()
    engine = Engine(make_engine().models, BrokenStore(lambda: FeatureStore("memory://"), metrics), metrics=metrics)
    with serving(engine, cors_origins=("https://clinic.example",)) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        for path in ("/v1/segment", "/segment", "/v1/features"):
            answer = client.post(path, files={"image": ("a.png", png(9))}, headers=origin)
            assert answer.status_code == 500
            assert answer.json() == {"detail": "internal error; the log of the service has more"}
            for name, value in SECURITY_HEADERS.items():
                assert answer.headers[name] == value, name
            assert answer.headers["X-Request-Id"] == "trace-9"
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Access-Control-Allow-Origin"] == "https://clinic.example"
        assert 'route="/v1/segment",status="500"' in client.get("/metrics").text


def test_an_answer_that_fails_midway_is_cut_off() -> None:
    async def failing(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the first half", "more_body": True})
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        TestClient(UnexpectedErrorMiddleware(failing)).get("/")


def test_the_log_has_no_photograph_and_no_key(make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    from service import logs

    logs.configure("debug")
    try:
        with serving(make_engine(), api_keys={"clinic": "very-secret"}) as client:
            client.app.state.context.engine.result()  # type: ignore[attr-defined]
            headers = {"X-API-Key": "very-secret", "X-Request-Id": "trace-7"}
            files = {"image": ("Jane Doe.png", png(7))}
            assert client.post("/segment", files=files, headers=headers).status_code == 200
            assert client.post("/segment", files=files, headers={"X-API-Key": "very-wrong"}).status_code == 401
    finally:
        import structlog

        structlog.reset_defaults()
    lines = capsys.readouterr().err.splitlines()
    parsed = [json.loads(line) for line in lines]
    requests = [line for line in parsed if line["event"] == "request"]
    assert requests[0]["request_id"] == "trace-7"
    assert (requests[0]["route"], requests[0]["status"]) == ("/segment", 200)
    text = "\n".join(lines)
    for private in ("very-secret", "very-wrong", "Jane", "IHDR"):
        assert private not in text


def test_metrics_count_by_route_and_never_by_path(shared_engine: Engine) -> None:
    client = serving(shared_engine)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    post(client, png(8))
    client.get("/somewhere/else")
    post(client, b"rubbish")
    text = client.get("/metrics").text
    for name in (
        'diffdgss_requests_total{method="POST",route="/segment",status="200"}',
        'route="unknown"',
        'diffdgss_stage_seconds_count{stage="invert"}',
        "diffdgss_queue_length",
        "diffdgss_batch_size_bucket",
        "diffdgss_answers_total",
        "diffdgss_resident_bytes",
        "diffdgss_device_memory_bytes",
        "diffdgss_abstentions",
        "diffdgss_store_failures",
        'diffdgss_refused_total{reason="ImageError"}',
    ):
        assert name in text, name
    assert "somewhere" not in text


def test_keys_are_read_as_utf_8(make_engine: Callable[..., Engine]) -> None:
    with serving(make_engine(), api_keys={"one": "schlüssel"}) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        for header in ({"X-API-Key": "schlüssel".encode()}, {"Authorization": "Bearer schlüssel".encode()}):
            assert client.get("/v1/models", headers=header).status_code == 200  # type: ignore[arg-type]
    assert presented_key({"x-api-key": "schl\xfcssel"}) != "schlüssel"  # sent as Latin-1
