"""The engine does things once, in turn, in bounded room, and stops what nobody waits for."""

from __future__ import annotations

import io
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from extractor.errors import DeviceFull
from extractor.field_of_view import find_field_of_view
from interpreter.config import HeadName, InterpreterConfig
from interpreter.network import Interpreter
from service.answers import AnswerCache
from service.engine import Engine
from service.errors import Abandoned, Busy, Conflict, DeadlinePassed, NotFound
from service.finding import FeatureFinder
from service.flights import Flight, Flights, Ticket
from service.models import Model, Models
from service.photographs import decode_photograph
from service.single_flight import SingleFlight
from service.storage import Written
from store import Features, FeatureSpec, FeatureStore, Key, StoreFull
from tests.conftest import draw_fundus
from tests.service.conftest import png, post, serving, with_store

MakeEngine = Callable[..., Engine]


class Gate:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.runs = 0

    def work(self, _flight: Flight[int]) -> int:
        self.runs += 1
        self.begun.set()
        assert self.go.wait(120)
        return self.runs


@pytest.fixture
def blocked() -> tuple[Flights[int], Gate]:
    """One worker that is busy, and room for one more."""
    flights, gate = Flights[int](workers=1, capacity=2), Gate()
    flights.join("first", Ticket(), gate.work)
    assert gate.begun.wait(60)
    return flights, gate


def test_a_photograph_is_searched_once_and_not_held_while_it_is_inverted(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, held, searched, alive = make_engine(), list[weakref.ref[Any]](), list[None](), list[bool]()

    def decoded(*given: Any) -> Any:
        pixels = decode_photograph(*given)
        held.append(weakref.ref(pixels))
        return pixels

    def inverted(*given: Any) -> Any:
        alive.append(held[0]() is not None)
        return invert(*given)

    def found(pixels: Any) -> Any:
        searched.append(None)
        return find_field_of_view(pixels)

    invert = engine.device.invert
    monkeypatch.setattr("service.engine.decode_photograph", decoded)
    monkeypatch.setattr("service.engine.find_field_of_view", found)
    monkeypatch.setattr("extractor.preprocess.find_field_of_view", found)
    monkeypatch.setattr(engine.device, "invert", inverted)
    engine.segment(png(4))
    assert (len(searched), alive) == (1, [False])


def test_who_shares_the_work_of_another_one_is_counted() -> None:
    joined: list[None] = []
    gate = Gate()
    flights = Flights[int](1, 2, lambda: joined.append(None))
    for key in ("first", "first", "second", "first"):
        flights.join(key, Ticket(), gate.work)
    assert len(joined) == 2
    gate.go.set()
    flights.close()


def test_the_same_question_is_answered_once(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    tickets = [Ticket() for _ in range(5)]
    joined = [flights.join("first", ticket, gate.work) for ticket in tickets]
    gate.go.set()
    assert [flights.wait(flight, ticket) for flight, ticket in zip(joined, tickets, strict=True)] == [1] * 5
    assert gate.runs == 1
    assert flights.count == 0


def test_a_full_queue_refuses_and_the_patient_wait(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    flights.join("second", Ticket(), lambda _: 2)
    with pytest.raises(Busy, match="2 images are in progress or queued"):
        flights.join("third", Ticket(), lambda _: 3)
    with ThreadPoolExecutor(1) as pool:
        ticket = Ticket()
        patient = pool.submit(flights.join, "third", ticket, lambda _: 3, patient=True)
        time.sleep(0.05)
        assert not patient.done()
        gate.go.set()
        assert flights.wait(patient.result(60), ticket) == 3


def test_the_patient_share_the_work_of_one_question_too(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    flights.join("second", Ticket(), lambda _: 2)
    runs: list[int] = []

    def work(_flight: Flight[int]) -> int:
        runs.append(1)
        time.sleep(0.2)  # the other one gets its place meanwhile
        return 3

    def asked() -> int:
        ticket = Ticket()
        return flights.wait(flights.join("third", ticket, work, patient=True), ticket)

    with ThreadPoolExecutor(2) as pool:
        patient = [pool.submit(asked) for _ in range(2)]
        time.sleep(0.05)
        gate.go.set()
        assert [one.result(60) for one in patient] == [3, 3]
    assert runs == [1]


def test_what_nobody_waits_for_leaves_the_queue(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    one, other = Ticket(), Ticket()
    done: list[int] = []
    flight = flights.join("second", one, lambda _: done.append(1) or 2)  # type: ignore[func-returns-value]
    assert flights.join("second", other, lambda _: 2) is flight
    flights.leave(flight, one)
    assert flights.count == 2  # somebody still waits
    flights.leave(flight, other)
    assert flights.count == 1
    gate.go.set()
    flights.close()
    assert done == []


def test_a_deadline_in_the_queue_is_the_load_and_at_work_it_is_the_work(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    late = Ticket(0.05)
    with pytest.raises(Busy, match="before the image's turn came"):
        flights.wait(flights.join("second", late, lambda _: 2), late)
    slow = Ticket(0.05)
    with pytest.raises(DeadlinePassed):
        flights.wait(flights.join("first", slow, gate.work), slow)
    gate.go.set()


def test_stopping_finishes_what_has_begun(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    waiting, ticket = flights.join("second", Ticket(), lambda _: 2), Ticket()
    begun = flights.join("first", ticket, gate.work)
    closing = threading.Thread(target=flights.close)
    closing.start()
    for _ in range(600):
        if waiting.future.cancelled():
            break
        time.sleep(0.1)
    gate.go.set()
    closing.join(60)
    assert not closing.is_alive()
    assert flights.wait(begun, ticket) == 1
    assert waiting.future.cancelled()
    with pytest.raises(Busy, match="stopping"):
        flights.join("third", Ticket(), lambda _: 3)


def test_work_that_was_given_up_is_not_joined(blocked: tuple[Flights[int], Gate]) -> None:
    flights, gate = blocked
    given_up = flights.join("second", Ticket(), lambda _: 2)
    given_up.future.cancel()
    ticket = Ticket()
    flights.capacity = 3
    anew = flights.join("second", ticket, lambda _: 3)
    assert anew is not given_up
    gate.go.set()
    assert flights.wait(anew, ticket) == 3


def test_who_comes_when_work_is_given_up_has_it_done() -> None:
    shared, gate = SingleFlight[int](), Gate()

    def given_up(_wanted: Callable[[], bool]) -> int:
        gate.begun.set()
        assert gate.go.wait(60)
        raise Abandoned("nobody waits for this answer any more")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.do, "k", lambda: False, given_up)
        assert gate.begun.wait(60)
        asked = threading.Event()
        second = pool.submit(shared.do, "k", lambda: asked.set() or True, lambda _: 7)  # type: ignore[func-returns-value]
        assert asked.wait(60)
        gate.go.set()
        with pytest.raises(Abandoned):
            first.result(60)
        assert second.result(60) == 7


def test_a_timeout_of_the_work_is_not_taken_for_one_of_the_wait() -> None:
    shared, gate = SingleFlight[int](), Gate()

    def slow(_wanted: Callable[[], bool]) -> int:
        gate.begun.set()
        assert gate.go.wait(60)
        raise TimeoutError("the disk did not answer")

    asked: list[None] = []
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.do, "k", lambda: True, slow)
        assert gate.begun.wait(60)
        second = pool.submit(shared.do, "k", lambda: asked.append(None) is None, slow)
        while not asked:  # it waits
            time.sleep(0.01)
        gate.go.set()
        for one in (first, second):
            with pytest.raises(TimeoutError, match="the disk"):
                one.result(60)
    flights = Flights[int](1, 1)

    def late(_flight: Flight[int]) -> int:
        raise TimeoutError("the disk did not answer")

    ticket = Ticket(60)
    with pytest.raises(TimeoutError, match="the disk"):
        flights.wait(flights.join("a", ticket, late), ticket)


def test_who_joins_an_extraction_is_told_that_it_could_not_be_stored(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_store(make_engine(), lambda: FeatureStore("memory://"))
    extractor, gate = engine.models.default.extractor, Gate()
    features = extractor.features

    def waiting(*of: object) -> list[Features]:
        gate.begun.set()
        assert gate.go.wait(60)
        return features(*of)  # type: ignore[arg-type]

    def full(*_of: object) -> int:
        raise StoreFull("no room left")

    monkeypatch.setattr(extractor, "features", waiting)
    monkeypatch.setattr(engine.storage.store(), "write", full)
    tickets = Ticket(), Ticket()
    question = engine.question(png(81))
    made = engine.ask_features(question, tickets[0])
    assert gate.begun.wait(60)
    answered = engine.ask(question, tickets[1])  # another flight, which needs the same features
    joined = engine._finder._single_flight._under_way
    while not any(len(wanted) == 2 for _, wanted in list(joined.values())):
        time.sleep(0.01)
    gate.go.set()
    assert not made.future.result(60).stored
    assert any("could not be stored" in warning for warning in answered.future.result(60).warnings)
    engine.close()


def test_what_is_deleted_while_it_is_made_is_not_kept(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_store(make_engine(), lambda: FeatureStore("memory://"), answers_bytes=10_000_000)
    extractor, spec = engine.models.default.extractor, engine.card.spec
    features, question = extractor.features, engine.question(png(82))

    def deleted_meanwhile(*of: object) -> list[Features]:
        assert engine.forget(spec, question.image_id) == 0
        return features(*of)  # type: ignore[arg-type]

    monkeypatch.setattr(extractor, "features", deleted_meanwhile)
    assert not engine.segment(png(82)).cached
    assert not list(engine.storage.store().all_keys(spec))
    assert engine.cached_answer(engine.question(png(82))) is None
    ticket = Ticket(60)
    with pytest.raises(Conflict, match="deleted while"):
        engine._flights.wait(engine.ask_features(engine.question(png(82)), ticket), ticket)
    monkeypatch.undo()
    engine.segment(png(82))
    assert len(list(engine.storage.store().keys(spec))) == 1
    assert engine.cached_answer(engine.question(png(82))) is not None
    engine.close()


def test_who_asks_after_a_deletion_does_not_join_work_begun_before(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_store(make_engine(), lambda: FeatureStore("memory://"))
    extractor, spec, gate = engine.models.default.extractor, engine.card.spec, Gate()
    features = extractor.features

    def waiting(*of: object) -> list[Features]:
        gate.begun.set()
        assert gate.go.wait(60)
        return features(*of)  # type: ignore[arg-type]

    monkeypatch.setattr(extractor, "features", waiting)
    tickets, before = (Ticket(60), Ticket(60)), engine.question(png(83))
    flights = [engine.ask_features(before, tickets[0])]
    assert gate.begun.wait(60)
    engine.forget(spec, before.image_id)
    flights.append(engine.ask_features(engine.question(png(83)), tickets[1]))
    assert flights[0] is not flights[1]
    gate.go.set()
    with pytest.raises(Conflict, match="deleted while"):
        engine._flights.wait(flights[0], tickets[0])
    assert engine._flights.wait(flights[1], tickets[1]).stored
    assert len(list(engine.storage.store().keys(spec))) == 1
    engine.close()


def test_errors_reach_everybody_who_waits() -> None:
    flights, gate = Flights[int](1, 4), Gate()

    def fail(flight: Flight[int]) -> int:
        gate.work(flight)
        raise ValueError("no")

    tickets = Ticket(), Ticket()
    joined = [flights.join("a", ticket, fail) for ticket in tickets]
    gate.go.set()
    for flight, ticket in zip(joined, tickets, strict=True):
        with pytest.raises(ValueError, match="no"):
            flights.wait(flight, ticket)
    assert flights.count == 0


def test_shared_work_is_done_by_the_first_and_given_up_by_nobody_else() -> None:
    shared, gate = SingleFlight[int](), Gate()

    def work(wanted: Callable[[], bool]) -> int:
        gate.begun.set()
        assert gate.go.wait(60)
        assert wanted()  # the first has gone, the second has not
        return 7

    with ThreadPoolExecutor(3) as pool:
        first_waits = True
        first = pool.submit(shared.do, "k", lambda: first_waits, work)
        assert gate.begun.wait(60)
        asked = threading.Event()
        second = pool.submit(shared.do, "k", lambda: asked.set() or True, work)  # type: ignore[func-returns-value]
        gone = pool.submit(shared.do, "k", lambda: False, work)
        with pytest.raises(Abandoned):
            gone.result(60)
        assert asked.wait(60)
        first_waits = False
        gate.go.set()
        assert (first.result(60), second.result(60)) == (7, 7)


def test_many_clients_and_few_images_are_answered_alike(make_engine: MakeEngine) -> None:
    engine = make_engine(queue=64)
    images = [png(seed) for seed in (60, 61, 62)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(engine.segment, images * 8))
    for i, image in enumerate(images):
        alone = engine.segment(image)
        for answer in answers[i::3]:
            np.testing.assert_array_equal(answer.labels, alone.labels)
    assert engine.models.default.extractor.forwards == 9  # each image was inverted once


def test_photographs_that_wait_are_inverted_together(make_engine: MakeEngine) -> None:
    engine = make_engine(batch=4, batch_wait=120.0)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(engine.segment, [png(seed) for seed in range(70, 74)]))
    assert [answer.cached for answer in answers] == [False] * 4
    text = engine.metrics.text().decode()
    assert "diffdgss_batch_size_sum 4.0" in text
    assert "diffdgss_batch_size_count 1.0" in text
    for seed, answer in zip(range(70, 74), answers, strict=True):
        alone = make_engine().segment(png(seed))
        assert (answer.labels != alone.labels).mean() < 0.01  # batches may differ in last bits, and no more


def test_finished_answers_need_no_store_and_no_network(make_engine: MakeEngine) -> None:
    engine = make_engine(answers_bytes=10_000_000)
    first, again = engine.segment(png(80)), engine.segment(png(80))
    assert (first.cached, again.cached, again.forwards, again.seconds) == (False, True, 0, {})
    np.testing.assert_array_equal(first.labels, again.labels)
    assert 'source="answers"' in engine.metrics.text().decode()


def test_who_sends_the_photograph_is_not_told_to_send_it(make_engine: MakeEngine) -> None:
    """A question by key and an upload of the same photograph at once: each has an answer of its own."""
    engine = make_engine(answers_bytes=10_000_000)
    upload = engine.question(png(70))
    by_key = engine.question_by_key(f"{engine.card.spec.digest[:16]}.{upload.image_id}", None)
    gate, waits = threading.Event(), Ticket()
    busy = threading.Thread(target=lambda: engine.device.run(lambda: gate.wait(120), lambda: True))
    busy.start()
    first, second = engine.ask(by_key, waits), engine.ask(upload, waits)
    gate.set()
    with pytest.raises(NotFound, match="send the photograph"):
        first.future.result(120)
    assert second.future.result(120).forwards > 0
    busy.join()
    assert engine.cached_answer(by_key) is None


def test_the_cache_of_answers_is_bounded(make_engine: MakeEngine) -> None:
    answer = make_engine().segment(png(81))
    cache = AnswerCache(2 * answer.nbytes)
    for name in "abc":
        cache.put(name, answer)
    assert cache.bytes == 2 * answer.nbytes
    assert cache.get("a") is None
    assert cache.get("c") is not None
    cache.put("c", answer)
    assert cache.bytes == 2 * answer.nbytes
    small = AnswerCache(answer.nbytes - 1)
    small.put("a", answer)
    assert (small.get("a"), small.bytes) == (None, 0)


def test_models_of_one_spec_share_an_inversion(make_engine: MakeEngine) -> None:
    engine = make_engine()
    model = engine.models.default
    twin = Model("twin", model.interpreter, model.card, model.extractor, "2")
    engine.models = Models([model, twin])
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda name: engine.segment(png(82), model=name), ["vessels", "twin"])
    assert one.forwards + other.forwards == 3
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.model, other.model) == ("vessels", "twin")


@pytest.mark.parametrize(("head", "voters"), [("joint", 1), ("mlp", 10)])
def test_what_reads_all_timesteps_at_once_answers_for_all_of_them(
    make_engine: MakeEngine, head: HeadName, voters: int
) -> None:
    engine = make_engine()
    usual = engine.models.default
    network = Interpreter(usual.card.spec, InterpreterConfig(head=head))
    engine.models = Models([Model("at once", network, usual.card, usual.extractor)])
    answer = engine.segment(png(86))
    assert answer.timesteps == (1, 10, 100)
    assert len(answer.voters) == len(answer.prediction.labels_by_voter) == voters
    with serving(engine) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        shown = post(client, png(86), by_timestep="true").json()
        assert list(shown["by_timestep"]) == list(answer.voters)
        assert shown["timesteps"] == [1, 10, 100]
        assert post(client, png(86), timesteps="1,10,100").status_code == 200
        refused = post(client, png(86), timesteps="10")
    assert refused.status_code == 400
    assert "reads all its timesteps at once" in refused.json()["detail"]


def test_models_are_replaced_without_a_pause(make_engine: MakeEngine) -> None:
    engine = make_engine(answers_bytes=10_000_000)
    engine.segment(png(83))
    model = engine.models.default
    engine.replace_models(Models([Model("renamed", model.interpreter, model.card, model.extractor, "2")]))
    answer = engine.segment(png(83))
    assert (answer.model, answer.version) == ("renamed", "2")
    assert answer.cached  # its features; the answer itself was the old model's


def test_a_full_service_says_when_to_ask_again(make_engine: MakeEngine) -> None:
    engine = make_engine(queue=1)
    gate, begun = threading.Event(), threading.Event()
    with serving(engine) as client, ThreadPoolExecutor(1) as pool:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        busy = pool.submit(engine.device.run, lambda: begun.set() or gate.wait(120), lambda: True)  # type: ignore[func-returns-value]
        assert begun.wait(60)
        waiting = engine.ask(engine.question(png(84)), Ticket())
        refused = post(client, png(85))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        gate.set()
        assert busy.result(60)[0]
        assert waiting.future.result(120).forwards == 3
        assert post(client, png(85)).status_code == 200


def test_a_deadline_is_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    gate, begun = threading.Event(), threading.Event()
    with serving(engine, deadline=0.2) as client, ThreadPoolExecutor(1) as pool:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        busy = pool.submit(engine.device.run, lambda: begun.set() or gate.wait(120), lambda: True)  # type: ignore[func-returns-value]
        assert begun.wait(60)
        answer = post(client, png(86))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "deadline passed" in answer.json()["detail"]
        gate.set()
        assert busy.result(60)[0]


def test_one_photograph_that_cannot_be_held_is_its_own_trouble(make_engine: MakeEngine) -> None:
    engine = make_engine(batch=2, batch_wait=120.0)
    model = engine.models.default
    good = model.extractor.prepare(png(87))
    bad = model.extractor.prepare(png(88))
    bad.input.x0.fill_(float("nan"))
    with ThreadPoolExecutor(2) as pool:
        fine = pool.submit(engine.device.invert, model.extractor, good, lambda: True)
        wrong = pool.submit(engine.device.invert, model.extractor, bad, lambda: True)
        assert set(fine.result(120)[0].maps) == {"block_0", "block_2"}
        with pytest.raises(ArithmeticError):
            wrong.result(120)
    assert "diffdgss_batch_size_count 1.0" in engine.metrics.text().decode()


def test_the_application_answers_while_others_wait(make_engine: MakeEngine) -> None:
    engine = make_engine()
    gate, begun = threading.Event(), threading.Event()
    with serving(engine) as client, ThreadPoolExecutor(2) as pool:
        assert isinstance(client, TestClient)
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        busy = pool.submit(engine.device.run, lambda: begun.set() or gate.wait(120), lambda: True)  # type: ignore[func-returns-value]
        assert begun.wait(60)
        slow = pool.submit(post, client, png(89))
        for _ in range(600):
            if engine._flights.count == 1:
                break
            time.sleep(0.1)
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 200
        gate.set()
        assert busy.result(60)[0]
        assert slow.result(120).status_code == 200


def test_a_device_without_room_is_asked_again_later(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    extractor = engine.models.default.extractor
    features = extractor.features
    errors: list[Exception] = [
        DeviceFull("cuda has no room; read it with --device cpu"),
        torch.OutOfMemoryError("full"),
    ]

    def full(*of: object) -> list[Features]:
        if errors:
            raise errors[0]
        return features(*of)  # type: ignore[arg-type]

    with serving(engine) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        monkeypatch.setattr(extractor, "features", full)
        job = client.post("/v1/jobs", files={"image": ("a.png", png(73))}).json()
        while errors:
            answer = post(client, png(70 + len(errors)))
            assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
            assert answer.json()["detail"] == "the device has no memory for a photograph now; ask again later"
            if len(errors) == 1:
                await_that(lambda: client.get(f"/v1/jobs/{job['id']}").json()["trouble"] is not None)
            errors.pop()
        await_that(lambda: client.get(f"/v1/jobs/{job['id']}").json()["done"] == 1)


def await_that(happened: Callable[[], bool]) -> None:
    for _ in range(1200):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within a minute")


def test_a_lost_device_is_said_and_costs_no_photograph(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def fails(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with serving(engine) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        monkeypatch.setattr(engine.models.default.extractor, "features", fails)
        assert post(client, png()).status_code == 500  # the device still computes: one photograph's trouble
        assert client.get("/healthz").status_code == 200
        monkeypatch.setattr(engine.device, "_computes", lambda: False)
        job = client.post("/v1/jobs", files=[("image", ("a.png", png(1))), ("image", ("b.png", png(2)))]).json()
        await_that(lambda: client.get(f"/v1/jobs/{job['id']}").json()["trouble"] is not None)
        status = client.get(f"/v1/jobs/{job['id']}").json()
        assert "must be restarted" in status["trouble"]
        assert (status["done"], status["failed"]) == (0, 0)
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 503, path
        answer = post(client, png())
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")


def test_what_a_client_calls_its_file_is_told_to_no_other(make_engine: Callable[..., Engine]) -> None:
    narrow = io.BytesIO()
    Image.fromarray(np.resize(draw_fundus(80)[0], (60, 400, 3))).save(narrow, "PNG")

    def told(name: str) -> str:
        answer = client.post("/v1/segment", files={"image": (name, narrow.getvalue())})
        return str(answer.json()["detail"])

    with serving(make_engine()) as client, ThreadPoolExecutor(2) as pool:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        names = ("Mueller.png", "b.png")
        messages = dict(zip(names, pool.map(told, names), strict=True))
    for name, message in messages.items():
        assert message.startswith(f"{name}: 400 x 60 pixels are no photograph of a retina")


def test_features_that_are_deleted_while_they_are_written_do_not_stay(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, image = make_engine(), png(96)
    question, write = engine.question(image), engine.storage.write

    def overtaken(spec: FeatureSpec, key: Key, *rest: Any) -> Written:
        engine.forget(spec, key.image_id)  # which finds nothing yet
        return write(spec, key, *rest)

    monkeypatch.setattr(engine.storage, "write", overtaken)
    answer = engine.segment(image)
    assert "the photograph was deleted while its features were made; they are not kept" in answer.warnings
    assert engine.storage.stored_bytes(engine.card.spec, Key(question.image_id)) is None


def test_an_answer_that_comes_just_before_a_deletion_does_not_stay(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = with_store(make_engine(), lambda: FeatureStore("memory://"), answers_bytes=10_000_000)
    forget = FeatureFinder.forget

    def a_moment_too_late(finder: FeatureFinder, spec: FeatureSpec, image_id: str) -> int:
        engine.segment(png(97))
        assert "diffdgss_answer_cache_bytes 0.0" not in engine.metrics.text().decode()
        return forget(finder, spec, image_id)

    monkeypatch.setattr(FeatureFinder, "forget", a_moment_too_late)
    assert engine.forget(engine.card.spec, engine.question(png(97)).image_id) == 1
    assert "diffdgss_answer_cache_bytes 0.0" in engine.metrics.text().decode()
    engine.close()
