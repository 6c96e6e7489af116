"""Object storage that fails and hangs in between: retried, or told in one line; never a wrong number."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest
from obstore.store import S3Store
from zarr.storage import ObjectStore

from store import FeatureSpec, FeatureStore, FormatError, Key, StoreUnavailable
from store.objects import open_objects
from tests.store.conftest import KEY, S3Server, some_features


@pytest.fixture
def server(s3_server: S3Server) -> Iterator[S3Server]:
    yield s3_server
    s3_server.faults()


def store_at(server: S3Server, prefix: str, seconds: float, retries: int) -> FeatureStore:
    """A store whose client waits so long for an answer and asks again soon."""
    client = S3Store(
        "bucket",
        prefix=prefix,
        endpoint=server.endpoint,
        client_options={"allow_http": True, "timeout": timedelta(seconds=seconds)},
        retry_config={
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=300),
            "backoff": {
                "init_backoff": timedelta(milliseconds=5),
                "max_backoff": timedelta(milliseconds=50),
                "base": 2,
            },
        },
    )
    return FeatureStore(ObjectStore(client))


def test_errors_and_time_outs_in_between_are_ridden_out(server: S3Server, spec: FeatureSpec) -> None:
    store = store_at(server, uuid.uuid4().hex, seconds=2.0, retries=20)
    server.faults(error=0.25, slow=0.02, seconds=4.0)
    keys = [Key(f"{i:064x}") for i in range(6)]
    for i, key in enumerate(keys):
        store.write(spec, key, some_features(spec, i))
    for i, key in enumerate(keys):
        back = store.entry(spec, key).features()
        for name, maps in some_features(spec, i).maps.items():
            np.testing.assert_array_equal(back.maps[name].values, maps.values)
    server.faults()
    assert list(store.all_keys(spec)) == keys
    assert all(store.verify(spec, key) == [] for key in keys)


@pytest.mark.parametrize("faults", [{"error": 1.0}, {"slow": 1.0, "seconds": 1.0}])
def test_storage_that_does_not_answer_is_told_and_nothing_is_lost(
    server: S3Server, spec: FeatureSpec, faults: dict[str, float]
) -> None:
    prefix = uuid.uuid4().hex
    store = store_at(server, prefix, seconds=60.0, retries=8)
    impatient = store_at(server, prefix, seconds=0.5, retries=1)
    store.write(spec, KEY, some_features(spec))
    server.faults(**faults)
    for work in (
        lambda: impatient.entry(spec, KEY).features(),
        lambda: impatient.write(spec, Key("b" * 64), some_features(spec)),
        lambda: list(impatient.all_keys(spec)),
        lambda: impatient.has(spec, KEY),
    ):
        with pytest.raises(StoreUnavailable, match=r"refuses access or does not answer .* run the same command again"):
            work()
    server.faults()
    assert list(store.all_keys(spec)) == [KEY]
    assert store.verify(spec, KEY) == []
    store.write(spec, Key("b" * 64), some_features(spec))


def test_a_bucket_that_is_not_there_is_told(s3_server: S3Server, spec: FeatureSpec) -> None:
    nowhere = "s3://nowhere/prefix: there is no such bucket"
    with pytest.raises(StoreUnavailable, match=nowhere):
        FeatureStore("s3://nowhere/prefix").records.all()
    with pytest.raises(StoreUnavailable, match=nowhere):
        FeatureStore("s3://nowhere/prefix").write(spec, KEY, some_features(spec))


def test_the_region_and_endpoint_come_from_the_environment(
    s3_server: S3Server, spec: FeatureSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    store = FeatureStore(f"s3://bucket/{uuid.uuid4().hex}/")
    store.write(spec, KEY, some_features(spec))
    assert store.has(spec, KEY)
    assert store.objects.free_bytes() is None


def test_other_storage_is_refused() -> None:
    with pytest.raises(FormatError, match="expected a folder, s3://bucket/prefix or memory://"):
        open_objects("gs://bucket/prefix")
