"""The page in a real Chromium, with the service on loopback."""

from __future__ import annotations

import base64
import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from service.app import create_app
from service.engine import Engine
from service.models import Models
from service.settings import Settings
from tests.conftest import draw_fundus
from tests.service.conftest import make_engine  # noqa: F401  # a fixture

expect.set_options(timeout=60_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARTEFACTS = Path(os.environ.get("DIFFDGSS_ARTEFACTS", Path(__file__).parents[2] / "artefacts"))
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def photograph(seed: int = 1, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_fundus(200, seed)[0]).save(buffer, kind)
    return buffer.getvalue()


def upload(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": data}


@pytest.fixture(scope="module")
def url(make_engine: Any) -> Iterator[str]:  # noqa: F811
    """A service with tiny models, on a free port of loopback."""
    engine: Engine = make_engine(max_pixels=100_000)
    model = engine.models.default
    engine.replace_models(Models([model, replace(model, name="twin")]))
    settings = Settings(keep_nothing=True, max_pixels=100_000)
    config = uvicorn.Config(create_app(settings, lambda: engine), log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=120_000)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page; whatever it logs as an error, or fetches from elsewhere, fails the test."""
    scheme = getattr(request, "param", "light")
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1360, "height": 860})
    page = context.new_page()
    page.set_default_timeout(60_000)
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda one: None if one.url.startswith((url, "blob:", "data:")) else troubles.append(one.url))
    page.goto(url)
    yield page
    context.close()
    refusals = ("status of 4", "status of 503")  # part of some tests
    assert not [trouble for trouble in troubles if not any(known in trouble for known in refusals)]


def segmented(page: Page, *files: dict[str, Any]) -> None:
    page.set_input_files("#files", list(files) or [upload("eye.png", photograph())])
    expect(page.locator("#running")).to_be_hidden(timeout=60_000)
    expect(page.locator("#answer")).to_be_visible()
    shown(page)


def shown(page: Page) -> None:
    """Wait for the chosen photograph and its mask: both are decoded after the choice, and hidden until then."""
    expect(page.locator("#layers")).to_have_js_property("hidden", False)


def becomes(page: Page, canvas: str, wanted: Callable[[Any], bool]) -> None:
    """Wait until a canvas is as it is wanted."""
    for _ in range(600):
        if wanted(pixels(page, canvas)):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"the canvas {canvas} is not as it was waited for")


def pixels(page: Page, canvas: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """RGBA of a canvas, uint8 (H, W, 4)."""
    url = page.evaluate("id => document.getElementById(id).toDataURL('image/png')", canvas)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))


def scale(page: Page) -> float:
    return float(page.locator("#zoom").inner_text().split()[0])


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_a_photograph_is_shown_with_its_mask(page: Page, request: pytest.FixtureRequest, url: str) -> None:
    segmented(page)
    np.testing.assert_array_equal(pixels(page, "photo")[..., :3], draw_fundus(200, 1)[0])
    answer = page.request.post(url + "segment?output=png", multipart={"image": upload("eye.png", photograph())}).body()
    labels = np.asarray(Image.open(io.BytesIO(answer)))
    assert labels.any()
    np.testing.assert_array_equal(pixels(page, "mask")[..., 3] > 0, labels > 0)
    expect(page.locator("header .notice")).to_contain_text("not a medical device")
    expect(page.locator("#warnings")).to_contain_text("small: 216 x 200")
    page.locator("#uncertain").check()
    assert pixels(page, "heat")[..., 3].any()
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTEFACTS / f"page-{request.node.callspec.params['page']}.png"
    page.screenshot(path=path)
    assert path.stat().st_size > 10_000


def test_many_photographs_one_of_them_broken(page: Page) -> None:
    files = [upload(f"eye{i}.png", photograph(i)) for i in range(3)]
    segmented(page, files[0], upload("broken.png", photograph()[:400]), *files[1:])
    rows = page.locator("#list li")
    expect(rows).to_have_count(4)
    expect(page.locator("#list li.done")).to_have_count(3)
    expect(rows.nth(1)).to_contain_text("damaged or truncated")
    rows.nth(3).get_by_role("button").click()
    expect(rows.nth(3).get_by_role("button")).to_have_attribute("aria-current", "true")
    shown(page)
    np.testing.assert_array_equal(pixels(page, "photo")[..., :3], draw_fundus(200, 2)[0])


def test_what_the_browser_cannot_decode_is_decoded_by_the_service(page: Page) -> None:
    from tests.service.dicom_files import photograph as dicom
    from tests.service.dicom_files import written

    segmented(page, upload("eye.dcm", written(dicom(draw_fundus(200, 4)[0]))))
    np.testing.assert_array_equal(pixels(page, "photo")[..., :3], draw_fundus(200, 4)[0])
    with page.expect_download() as download:
        page.get_by_role("button", name="DICOM SEG").click()
    assert download.value.suggested_filename == "eye_seg.dcm"
    assert Path(download.value.path()).read_bytes()[128:132] == b"DICM"


def test_overlay_opacity_classes_and_votes(page: Page) -> None:
    segmented(page)
    mask = page.locator("#mask")
    page.get_by_label("Show the mask").uncheck()
    expect(mask).to_have_css("visibility", "hidden")
    page.get_by_label("Show the mask").check()
    page.get_by_label("Opacity").fill("20")
    expect(mask).to_have_css("opacity", "0.2")
    voted = pixels(page, "mask")
    page.locator("#classes").get_by_label("mask").uncheck()
    assert not pixels(page, "mask")[..., 3].any()
    page.locator("#classes").get_by_label("mask").check()
    steps = page.get_by_role("radio")
    expect(steps).to_have_count(4)
    page.get_by_label("t = 100").check()
    expect(page.locator("#status")).to_contain_text("Timestep 100 alone")
    becomes(page, "mask", lambda now: bool((now != voted).any()))
    page.get_by_label("all", exact=True).check()
    becomes(page, "mask", lambda now: np.array_equal(now, voted))


def test_a_single_voter_is_named_and_has_nobody_to_agree_with(page: Page) -> None:
    def of_one_voter(route: Route) -> None:
        response = route.fetch()
        answer = response.json()
        route.fulfill(response=response, json=answer | {"by_timestep": {"joint": answer["mask_png"]}})

    page.route("**/segment*", of_one_voter)
    segmented(page)
    page.get_by_label("joint", exact=True).check()
    expect(page.locator("#status")).to_contain_text("joint alone")
    expect(page.get_by_role("radio")).to_have_count(2)
    facts = page.locator("#facts").inner_text()
    assert "Residual" in facts
    assert "Agreement" not in facts


def test_downloads_are_the_services_answers(page: Page, url: str) -> None:
    segmented(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Mask (PNG)").click()
    assert download.value.suggested_filename == "eye_mask.png"
    expected = page.request.post(
        url + "segment?output=png", multipart={"image": upload("eye.png", photograph())}
    ).body()
    assert Path(download.value.path()).read_bytes() == expected
    expect(page.get_by_role("button", name="DICOM SEG")).to_have_count(0)


def test_mirror_images_are_read_when_asked_for(page: Page, url: str) -> None:
    page.get_by_label("Read mirror images").check()
    segmented(page)
    assert "three mirror images" in page.locator("#facts").inner_text()
    expected = page.request.post(
        url + "segment?output=png&mirrored=true", multipart={"image": upload("eye.png", photograph())}
    ).body()
    labels = np.asarray(Image.open(io.BytesIO(expected)))
    np.testing.assert_array_equal(pixels(page, "mask")[..., 3] > 0, labels > 0)
    with page.expect_download() as download:
        page.get_by_role("button", name="Mask (PNG)").click()
    assert Path(download.value.path()).read_bytes() == expected


def test_zoom_and_pan_by_wheel_and_pointer(page: Page) -> None:
    segmented(page)
    fitted, box = scale(page), page.locator("#viewer").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -400)
    expect(page.locator("#zoom")).not_to_have_text(f"{fitted:.0f} %")
    before = page.locator("#layers").bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 130)
    page.mouse.up()
    after = page.locator("#layers").bounding_box()
    assert before is not None
    assert after is not None
    assert (after["x"] - before["x"], after["y"] - before["y"]) == pytest.approx((50, 30), abs=1)
    page.get_by_role("button", name="Fit").click()
    assert scale(page) == fitted


def test_everything_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the photograph")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    segmented(page)
    page.locator("#viewer").focus()
    fitted = scale(page)
    page.keyboard.press("+")
    assert scale(page) > fitted
    style = page.locator("#layers").get_attribute("style")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#layers").get_attribute("style") != style
    page.keyboard.press("0")
    assert scale(page) == fitted
    page.keyboard.press("o")
    expect(page.locator("#mask")).to_have_css("visibility", "hidden")
    page.keyboard.press("u")
    expect(page.locator("#heat")).to_have_css("visibility", "visible")
    page.keyboard.press("]")
    expect(page.get_by_label("t = 1", exact=True)).to_be_checked()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Zoom out")).to_be_focused()


@pytest.mark.parametrize("page", ["light", "dark"], indirect=True)
def test_rules_of_accessibility(page: Page) -> None:
    """axe-core's rules, contrast among them, before and after an answer."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for step in ("empty", "answered"):
        if step == "answered":
            segmented(page, upload("eye.png", photograph()), upload("broken.png", b"rubbish"))
        found = axe.run(page).response["violations"]
        assert not found, [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


def test_narrow_windows_scroll_in_one_direction(page: Page) -> None:
    segmented(page)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_dropping_files(page: Page) -> None:
    transfer = page.evaluate_handle(
        """bytes => { const d = new DataTransfer()
                      d.items.add(new File([new Uint8Array(bytes)], 'dropped.png')); return d }""",
        list(photograph(2)),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#list li.done")).to_have_count(1, timeout=60_000)
    expect(page.locator("#list")).to_contain_text("dropped.png")


def test_what_should_not_be_relied_on_is_said(page: Page) -> None:
    """The tiny model knows no domain; its answer is given one on the way."""

    def unlike(route: Route) -> None:
        response = route.fetch()
        domain = {
            "distance": 3.25,
            "threshold": 1.5,
            "residual": 0.01,
            "residual_range": [0.005, 0.02],
            "abstain": True,
        }
        route.fulfill(response=response, json=response.json() | {"abstain": True, "domain": domain})

    page.route("**/v1/segment?*output=json*", unlike)
    segmented(page)
    expect(page.locator("#abstain")).to_contain_text("Do not rely on this answer")
    expect(page.locator("#abstain")).to_contain_text("distance 3.25, threshold 1.50")
    expect(page.locator("#abstain")).not_to_contain_text("residual")
    expect(page.locator("#facts")).to_contain_text("3.25 (threshold 1.50)")
    expect(page.locator("#facts")).to_contain_text("0.0100, usual 0.0050 to 0.0200")
    expect(page.locator("#list")).to_contain_text("abstain")


def test_a_busy_service_is_asked_again(page: Page) -> None:
    asked: list[str] = []

    def busy_at_first(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "the queue is full"})
        else:
            route.continue_()

    page.route("**/v1/segment?*output=json*", busy_at_first)
    segmented(page)
    assert len(asked) == 2
    expect(page.locator("#list li.done")).to_have_count(1)


def test_a_key_is_asked_for_and_sent(page: Page) -> None:
    def guarded(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"detail": "expected an API key"})

    page.route("**/v1/segment?*", guarded)
    page.set_input_files("#files", [upload("eye.png", photograph())])
    expect(page.locator("#status")).to_have_text("expected an API key")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("secret")
    page.locator("#list button").click()
    expect(page.locator("#list li.done")).to_have_count(1, timeout=60_000)


def test_what_waits_can_be_stopped(page: Page) -> None:
    page.route("**/v1/segment?*", lambda route: None)  # never answered
    page.set_input_files("#files", [upload(f"eye{i}.png", photograph(i)) for i in range(2)])
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#list li.failed")).to_have_count(2)
    expect(page.locator("#running")).to_be_hidden()


def test_files_are_read_by_the_model_that_was_chosen(page: Page) -> None:
    expect(page.get_by_label("Model")).to_have_value("vessels")
    segmented(page)
    page.get_by_label("Model").select_option("twin")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if "v1/segment" in one.url else None)
    segmented(page, upload("other.png", photograph(2)))
    assert "model=twin" in asked[0]
    for name, model in (("other.png", "twin"), ("eye.png", "vessels")):
        page.get_by_role("button", name=name).click()
        expect(page.locator("#facts")).to_contain_text(model)
