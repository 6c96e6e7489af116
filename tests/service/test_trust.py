"""When an answer advises not to be relied on, and what it says where a figure is not known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from interpreter.domain import Domain, descriptor, fit_domain, residual
from service.engine import Engine
from service.models import Models
from store import Features, Key
from tests.service.conftest import png, post, serving

MakeEngine = Callable[..., Engine]


def features_of(engine: Engine, seed: int) -> Features:
    """Features of a drawn photograph, put into the engine's store."""
    answer = engine.segment(png(seed))
    return engine.storage.store().entry(engine.card.spec, Key(answer.image_id)).features()


@pytest.fixture
def trusting(make_engine: MakeEngine) -> Engine:
    """An engine whose model has statistics of five drawn photographs."""
    engine = make_engine()
    model, trained = engine.models.default, [features_of(engine, seed) for seed in range(5)]
    descriptors = [descriptor(one, model.extractor.codec) for one in trained]
    domain = fit_domain(model.card.spec, descriptors, [residual(one) for one in trained])
    engine.replace_models(Models([replace(model, version="1", domain=replace(domain, threshold=1e9))]))
    return engine


def judged_by(engine: Engine, residual_range: tuple[float, float] | None) -> None:
    """The same model with another range of the usual residual."""
    model = engine.models.default
    assert isinstance(model.domain, Domain)
    domain = replace(model.domain, residual_range=residual_range)
    engine.replace_models(Models([replace(model, domain=domain)]))


def test_the_residual_is_the_same_fresh_and_cached(trusting: Engine) -> None:
    fresh, cached = trusting.segment(png(6)), trusting.segment(png(6))
    assert (fresh.cached, cached.cached) == (False, True)
    assert fresh.domain is not None
    assert fresh.domain == cached.domain
    assert not fresh.domain.abstain
    assert 'diffdgss_inversion_residual_count{model="vessels"} 2.0' in trusting.metrics.text().decode()
    assert 'diffdgss_domain_distance_count{model="vessels"} 2.0' in trusting.metrics.text().decode()
    assert fresh.domain.residual == residual(features_of(trusting, 6))


def test_an_unusual_residual_advises_to_abstain(trusting: Engine) -> None:
    known = residual(features_of(trusting, 6))
    assert known is not None
    judged_by(trusting, (0.5 * known, 0.99 * known))
    with serving(trusting) as client:
        client.app.state.context.engine.result()  # type: ignore[attr-defined]
        answer = post(client, png(6))
        models = client.get("/v1/models").json()
        assert answer.headers["X-Abstain"] == "true"
        assert answer.json()["abstain"]
        assert answer.json()["domain"] == {
            "distance": pytest.approx(answer.json()["domain"]["distance"]),
            "threshold": 1e9,
            "residual": known,
            "residual_range": [0.5 * known, 0.99 * known],
            "abstain": True,
        }
        assert models[0]["residual_range"] == [0.5 * known, 0.99 * known]
        assert 'diffdgss_abstentions_total{model="vessels"} 1.0' in client.get("/metrics").text


def test_a_residual_without_a_range_is_told_and_not_judged(trusting: Engine) -> None:
    judged_by(trusting, None)
    score = trusting.segment(png(6)).domain
    assert score is not None
    assert score.residual is not None
    assert not score.abstain


def test_features_of_an_earlier_version_say_that_their_residual_is_unknown(trusting: Engine) -> None:
    features, spec = features_of(trusting, 7), trusting.card.spec
    key = Key(trusting.segment(png(7)).image_id)
    trusting.storage.store().write(spec, key, replace(features, residuals={}))
    answer = trusting.segment(png(7))
    assert answer.cached
    assert answer.domain is not None
    assert answer.domain.residual is None
    assert not answer.domain.abstain
    assert any("without their inversion's residual" in warning for warning in answer.warnings)
    judged_by(trusting, None)  # nothing is missed where it is not judged
    assert not any("residual" in warning for warning in trusting.segment(png(7)).warnings)
    assert np.isfinite(answer.domain.distance)
