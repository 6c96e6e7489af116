"""Every way to ask and every way to be answered."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from importlib import metadata

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import ImageError
from extractor.field_of_view import find_field_of_view
from extractor.images import decode_image
from service.engine import Engine
from service.options import Options
from service.outputs import negotiate_output
from service.photographs import decode_photograph
from service.schemas import FeaturesInfo, JobStatus, ModelInfo, Ready, Reloaded, SegmentResponse
from service.settings import Settings
from store.features import Key
from store.views import FLIPS
from tests.service.conftest import png, serving


@pytest.fixture(scope="module")
def api(shared_engine: Engine) -> Iterator[TestClient]:
    """A client whose engine outlives its application."""
    client = serving(shared_engine, max_bytes=200_000)
    client.app.state.context.engine.set_result(shared_engine)  # type: ignore[attr-defined]
    yield client


def segment(api: TestClient, data: bytes = png(), **options: object):  # type: ignore[no-untyped-def]
    return api.post("/v1/segment", files={"image": ("eye.png", data)}, params=options)


def picture(data: bytes | str) -> NDArray[np.uint8]:
    raw = base64.b64decode(data) if isinstance(data, str) else data
    return np.asarray(Image.open(io.BytesIO(raw)))


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
def test_raw_bodies_are_photographs(api: TestClient, kind: str) -> None:
    raw = api.post("/v1/segment?output=png", content=png(), headers={"Content-Type": kind})
    assert raw.content == segment(api, output="png").content
    assert api.post("/segment", content=png(), headers={"Content-Type": kind}).json()["model"] == "vessels"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "PPM"])
def test_formats_that_are_read(api: TestClient, kind: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png())).save(buffer, kind)
    assert segment(api, buffer.getvalue()).status_code == 200


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_formats_that_the_operator_does_not_allow(kind: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png())).save(buffer, kind)
    with pytest.raises(ImageError, match=f"{kind} is not accepted here; expected one of PNG"):
        decode_photograph(buffer.getvalue(), 100_000, Settings(keep_nothing=True).formats)


def test_outputs_by_name_and_by_accept(api: TestClient) -> None:
    by_name = {name: segment(api, output=name) for name in ("json", "png", "overlay", "npz")}
    types = {name: response.headers["content-type"] for name, response in by_name.items()}
    assert types == {
        "json": "application/json", "png": "image/png", "overlay": "image/png", "npz": "application/x-npz"
    }  # fmt: skip
    files = {"image": ("eye.png", png())}
    for accept, name in [
        ("application/x-npz", "npz"),
        ("image/png;q=0.5, application/json;q=0.4", "png"),
        ("text/html, */*;q=0.1", "json"),
        ("image/*", "png"),
        ("", "json"),
    ]:
        answer = api.post("/v1/segment", files=files, headers={"Accept": accept})
        assert answer.headers["x-output"] == name, accept
    for accept in ("text/plain", "image/png;q=0"):
        assert api.post("/v1/segment", files=files, headers={"Accept": accept}).status_code == 406
    assert segment(api, output="docx").status_code == 406


def test_the_overlay_is_the_photograph_where_nothing_was_found(api: TestClient) -> None:
    tinted, labels = picture(segment(api, output="overlay").content), picture(segment(api, output="png").content)
    photograph = decode_image(png())
    assert tinted.shape == photograph.shape
    np.testing.assert_array_equal(tinted[labels == 0], photograph[labels == 0])
    assert (tinted[labels == 1] != photograph[labels == 1]).any()
    np.testing.assert_array_equal(picture(segment(api, output="overlay", opacity=0).content), photograph)


def test_npz_holds_what_numpy_reads(api: TestClient) -> None:
    content = segment(api, output="npz", uncertainty=True, by_timestep=True).content
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    assert arrays["probabilities"].shape == (2, 80, 96)
    np.testing.assert_array_equal(arrays["labels"], picture(segment(api, output="png").content))
    fov = find_field_of_view(decode_image(png()))
    inside = arrays["probabilities"].astype(np.float32).sum(axis=0)[fov]
    assert np.median(inside) == pytest.approx(1, abs=2e-3)
    assert arrays["by_timestep"].shape == (3, 80, 96)
    assert list(arrays["voters"]) == ["1", "10", "100"]
    assert arrays["uncertainty"].shape == (80, 96)
    assert arrays["classes"].tolist() == ["background", "mask"]


def test_run_lengths_are_the_mask(api: TestClient) -> None:
    answer = segment(api, mask="rle").json()
    runs = answer["mask_rle"]
    assert answer["mask_png"] is None
    labels = np.repeat(runs["values"], runs["lengths"]).reshape(runs["height"], runs["width"])
    np.testing.assert_array_equal(labels, picture(segment(api).json()["mask_png"]))


def test_votes_and_uncertainty_on_request(api: TestClient) -> None:
    plain, full = segment(api).json(), segment(api, by_timestep=True, uncertainty=True).json()
    assert plain["by_timestep"] is None
    assert plain["uncertainty_png"] is None
    assert list(full["by_timestep"]) == ["1", "10", "100"]
    votes = np.stack([picture(mask) for mask in full["by_timestep"].values()])
    uncertainty = picture(full["uncertainty_png"])
    if uncertainty.ndim == 3:
        uncertainty = uncertainty[..., 0]
    assert uncertainty.shape == (80, 96)
    unanimous = (votes == votes[0]).all(axis=0)
    assert uncertainty[unanimous].mean() < uncertainty[~unanimous].mean()


def test_mirror_images_are_inverted_kept_and_read(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    with serving(engine) as api:
        api.app.state.context.engine.result()  # type: ignore[attr-defined]
        plain, mirrored = segment(api).json(), segment(api, mirrored=True).json()
        assert (plain["mirrored"], mirrored["mirrored"]) == (False, True)
        assert (plain["forwards"], mirrored["forwards"]) == (3, 9)  # the photograph's own features were there
        assert plain["mask_png"] != mirrored["mask_png"]
        again = segment(api, mirrored=True, timesteps=10).json()
        assert (again["cached"], again["forwards"], again["timesteps"]) == (True, 0, [10])
        by_key = api.post("/v1/segment", params={"key": plain["key"], "mirrored": True}).json()
        assert by_key["mask_png"] == mirrored["mask_png"]
        expected = engine.segment(png(), mirrored=True)
        np.testing.assert_array_equal(picture(mirrored["mask_png"]), expected.labels)
        assert expected.domain == engine.segment(png()).domain  # trust is judged by the photograph itself
        spec = engine.card.spec
        arrays = np.load(io.BytesIO(segment(api, mirrored=True, output="npz").content))
        assert arrays["mirrored"]
        for view in FLIPS:
            engine.storage.store().delete(spec, Key(plain["image_id"], view))
        with_key = {"key": plain["key"], "mirrored": True}
        refused = api.post("/v1/segment", params=with_key)
        assert refused.status_code == 404
        assert "ask without mirrored" in refused.json()["detail"]
        made = api.post("/v1/features", files={"image": png()}, data={"mirrored": "true"}).json()
        assert (made["key"], made["forwards"], made["cached"]) == (plain["key"], 9, False)
        assert api.post("/v1/segment", params=with_key).json()["mask_png"] == mirrored["mask_png"]
        assert not segment(api, mirrored=True, fov_only=True).json()["mirrored"]


def test_a_photograph_in_a_mirror_has_its_mask_in_a_mirror(make_engine: Callable[..., Engine]) -> None:
    """Of a scene without a dark frame, which nothing is cropped of; the network itself knows left from right."""
    side = 32
    scene = np.random.default_rng(0).integers(60, 255, (side, side, 3)).astype(np.uint8)
    engine, files = make_engine(), []
    for pixels in (scene, scene[:, ::-1], scene[::-1]):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    differences = {}
    for mirrored in (False, True):
        upright, h, v = (engine.segment(data, mirrored=mirrored).prediction.probabilities for data in files)
        turned = h[..., ::-1], v[..., ::-1, :]
        differences[mirrored] = np.array([float(np.abs(upright - one).mean()) for one in turned])
    assert (differences[True] < differences[False] / 4).all()  # equalising is not quite the same from both sides


def test_some_timesteps_vote_alone(api: TestClient) -> None:
    every = segment(api, by_timestep=True).json()["by_timestep"]
    one = segment(api, timesteps=10, by_timestep=True).json()
    assert one["timesteps"] == [10]
    assert one["by_timestep"]["10"] == every["10"]
    assert one["mean_agreement"] == 1
    both = segment(api, timesteps="10,1").json()
    assert both["timesteps"] == [1, 10]
    assert segment(api, timesteps=7).status_code == 404
    assert "it has 1, 10, 100" in segment(api, timesteps=7).json()["detail"]


def test_a_threshold_instead_of_the_vote(api: TestClient) -> None:
    fov = find_field_of_view(decode_image(png()))
    everything = picture(segment(api, output="png", threshold=0).content)
    nothing = picture(segment(api, output="png", threshold=1).content)
    assert (everything[fov] == 1).mean() > 0.99
    assert everything[~fov].mean() < 0.1  # the field of view at 32 pixels is coarse
    assert not nothing.any()
    probabilities = np.load(io.BytesIO(segment(api, output="npz").content))["probabilities"][1]
    half = picture(segment(api, output="png", threshold=0.5).content)
    sure = np.abs(probabilities.astype(np.float32) - 0.5) > 1e-3
    np.testing.assert_array_equal(half[sure] == 1, probabilities[sure] > 0.5)


def test_classes_that_are_not_kept_become_background(api: TestClient) -> None:
    assert not picture(segment(api, output="png", labels="background").content).any()
    assert segment(api, output="png", labels="mask").content == segment(api, output="png").content
    assert segment(api, labels="disc").status_code == 404


def test_the_field_of_view_alone(api: TestClient) -> None:
    arrays = np.load(io.BytesIO(segment(api, fov_only=True, output="npz").content))
    assert (arrays["timesteps"].shape, arrays["timesteps"].dtype) == ((0,), np.int64)
    answer = segment(api, fov_only=True).json()
    assert segment(api, fov_only=True, labels="outside").json()["field_of_view"] == answer["field_of_view"]
    assert (answer["forwards"], answer["key"], answer["abstain"]) == (0, None, None)
    np.testing.assert_array_equal(picture(answer["mask_png"]), find_field_of_view(decode_image(png())))


def test_options_as_form_fields(api: TestClient) -> None:
    files = {"image": ("eye.png", png())}
    answer = api.post("/v1/segment", files=files, data={"output": "png", "timesteps": "1"})
    assert answer.content == segment(api, output="png", timesteps=1).content
    assert api.post("/v1/segment", files=files, data={"colour": "red"}).status_code == 400
    assert api.post("/v1/segment", files=files, params={"colour": "red"}).status_code == 422
    assert api.post("/v1/segment", files=files, data={"threshold": "high"}).status_code == 400


def test_features_by_key(api: TestClient) -> None:
    made = api.post("/v1/features", files={"image": ("eye.png", png(51))}).json()
    assert (made["cached"], made["forwards"], made["models"]) == (False, 3, ["vessels"])
    info = api.get(f"/v1/features/{made['key']}").json()
    assert info["blocks"] == made["blocks"]
    block = info["blocks"][0]
    maps = np.load(io.BytesIO(api.get(f"/v1/features/{made['key']}", params={"block": block["name"]}).content))
    assert list(maps.shape) == block["shape"]
    assert maps.dtype == np.float32
    one = api.get(f"/v1/features/{made['key']}", params={"block": block["name"], "timestep": 10}).content
    np.testing.assert_array_equal(np.load(io.BytesIO(one)), maps[1:2])
    by_key = api.post("/v1/segment", params={"key": made["key"], "output": "png"})
    assert by_key.content == segment(api, png(51), output="png").content
    again = api.post("/v1/features", content=png(51), headers={"Content-Type": "image/png"}).json()
    assert (again["cached"], again["forwards"]) == (True, 0)


def test_keys_that_lead_nowhere(api: TestClient) -> None:
    spec = api.get("/v1/models").json()[0]["spec"]
    for key, status in [(f"{spec[:16]}.{'0' * 64}", 404), (f"{'0' * 16}.{'0' * 64}", 404), ("..", 404), ("x", 422)]:
        assert api.get(f"/v1/features/{key}").status_code == status, key
    assert api.post("/v1/segment", params={"key": f"{spec[:16]}.{'0' * 64}"}).status_code == 404
    nothing = api.get(f"/v1/features/{spec[:16]}.{'0' * 64}", params={"block": "block_0"})
    assert (nothing.status_code, nothing.json()["detail"]) == (404, "no such features here (any more)")
    engine = api.app.state.context.ready_engine()  # type: ignore[attr-defined]
    assert not [key for key in engine.storage.store().objects.keys("used") if "0" * 64 in key]  # nothing is noted of it
    assert api.post("/v1/segment", params={"key": "../../etc/passwd"}).status_code == 422
    made = api.post("/v1/features", files={"image": ("eye.png", png())}).json()["key"]
    assert api.get(f"/v1/features/{made}", params={"block": "block_99"}).status_code == 404
    assert api.get(f"/v1/features/{made}", params={"block": "block_0", "timestep": 7}).status_code == 404
    assert segment(api, key=made).status_code == 400  # a photograph and a key
    assert api.post("/v1/segment", params={"key": made, "output": "overlay"}).status_code == 406


def test_models_and_the_open_inference_protocol(api: TestClient) -> None:
    (model,) = api.get("/v1/models").json()
    assert (model["name"], model["default"], model["classes"]) == ("vessels", True, ["background", "mask"])
    assert api.get("/v2").json() == {"name": "diffdgss", "version": metadata.version("diffdgss"), "extensions": []}
    assert api.get("/v2/health/live").json() == {"live": True}
    assert api.get("/v2/health/ready").json() == {"ready": True}
    described = api.get("/v2/models/vessels").json()
    assert described["versions"] == [model["version"]]
    assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, 3]}]
    assert api.get("/v2/models/vessels/ready").json() == {"name": "vessels", "ready": True}
    assert api.get("/v2/models/discs").status_code == 404
    assert segment(api, model="discs").status_code == 404


def test_routes_that_do_not_exist_answer_alike(api: TestClient) -> None:
    assert api.get("/v3").json() == {"detail": "Not Found"}
    assert api.get("/v1/segment").status_code == 405


def test_every_operation_names_its_errors_and_its_example(api: TestClient) -> None:
    schema = api.get("/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert operation.get("description"), (path, method)
            for status, response in operation["responses"].items():
                if status[0] in "45":
                    assert response["content"]["application/json"]["example"]["detail"], (path, status)
            if "security" in operation:
                assert {"401", "429", "503"} <= set(operation["responses"]), path
    for kind in (SegmentResponse, FeaturesInfo, ModelInfo, JobStatus, Ready, Reloaded):
        assert schema["components"]["schemas"][kind.__name__]["examples"]
        (example,) = kind.model_json_schema()["examples"]  # FastAPI leaves out what is null
        assert kind.model_validate(example).model_dump(mode="json") == example  # whole, and as it is answered
    form = schema["paths"]["/v1/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"image", *Options.model_fields}
    assert set(schema["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("*/*", "json"),
        ("image/png, application/json", "png"),
        ("application/json, image/png", "json"),
        ("application/json;q=0, */*", "png"),
        ("application/json;q=0.1, image/*;q=0.5, */*;q=0.2", "png"),
        ("image/png;q=0.2, */*;q=0.1", "png"),
    ],
)
def test_the_most_specific_range_says_how_much_a_type_is_wanted(accept: str, answered: str) -> None:
    assert negotiate_output(None, accept)[0] == answered


def test_options_of_features_that_do_not_exist_are_refused(api: TestClient) -> None:
    image = {"image": ("a.png", png())}
    refused = api.post("/v1/features", files=image, data={"mirored": "true"})
    assert (refused.status_code, "mirored" in refused.json()["detail"]) == (400, True)
    assert api.post("/v1/features?output=png", files=image).status_code == 422
    for route in ("/v1/features", "/v1/segment"):
        text = api.post(route, files={"image": (None, "eye.jpg")})  # as curl sends it without the @
        assert (text.status_code, "-F image=@FILE" in text.json()["detail"]) == (400, True)
