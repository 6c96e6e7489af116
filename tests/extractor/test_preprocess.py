"""The field of view, and what the network is given."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from extractor.backbone import Backbone
from extractor.errors import ImageError, NoFieldOfView
from extractor.extraction import Extractor
from extractor.field_of_view import find_field_of_view
from extractor.images import decode_image, decode_mask
from extractor.preprocess import preprocess, to_pixels
from store import Clahe, FeatureSpec, Key, Preprocessing
from store.spec import red_free, squeeze
from store.views import NEGATIVE, RED_FREE
from tests.conftest import changed, draw_fundus

PLAIN = Preprocessing(clahe=None)


def test_the_disc_is_found() -> None:
    image, _ = draw_fundus(160)
    fov = find_field_of_view(image)
    y, x = np.mgrid[:160, :176]
    truth = np.hypot(y - 80, x - 88) < 160 * 0.46
    assert (fov & truth).sum() / (fov | truth).sum() > 0.95


@pytest.mark.parametrize("dataset", ["CHASE_DB1", "HRF_1024", "STARE"])
def test_the_disc_of_real_photographs_is_found(shared: Path, dataset: str) -> None:
    with (shared / "data" / "splits.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset][::5]
    overlaps = []
    for row in rows:
        fov = find_field_of_view(decode_image((shared / "data" / row["image"]).read_bytes()))
        truth = decode_mask((shared / "data" / row["fov"]).read_bytes())
        overlaps.append((fov & truth).sum() / (fov | truth).sum())
    assert np.mean(overlaps) > 0.96
    assert min(overlaps) > 0.85


def test_images_without_a_dark_frame_are_all_field_of_view() -> None:
    angiogram = np.random.default_rng(0).integers(60, 200, (50, 60, 3), dtype=np.uint8)
    assert find_field_of_view(angiogram).all()


def test_a_net_of_bright_lines_is_no_disc() -> None:
    lines = np.zeros((200, 200, 3), dtype=np.uint8)
    lines[20:180:20, 20:180] = 200
    lines[20:180, 20:180:20] = 200
    lines = np.maximum(lines, np.roll(lines, (1, 1), axis=(0, 1)))
    lines = np.maximum(lines, np.roll(lines, (3, 3), axis=(0, 1)))
    lines = np.maximum(lines, np.roll(lines, (3, 3), axis=(0, 1)))
    assert find_field_of_view(lines).all()


@pytest.mark.parametrize(("level", "message"), [(0, "too dark"), (10, "too dark")])
def test_darkness_is_refused(level: int, message: str) -> None:
    with pytest.raises(NoFieldOfView, match=f"^{message}"):
        find_field_of_view(np.full((40, 40, 3), level, dtype=np.uint8))


def test_a_spot_is_no_field_of_view() -> None:
    spot = np.zeros((400, 400, 3), dtype=np.uint8)
    spot[100:180, 100:180] = 220
    with pytest.raises(NoFieldOfView, match="covers 4"):
        find_field_of_view(spot)


def test_the_network_sees_the_disc_and_black() -> None:
    image, _ = draw_fundus()
    given = preprocess(image, 32, PLAIN)
    assert given.x0.shape == (1, 3, 32, 32)
    assert given.x0.min() >= -1
    assert given.x0.max() <= 1
    assert (given.x0[0, :, ~given.fov] == -1).all()
    assert given.fov[16].all()  # the crop touches the disc's sides
    assert not given.fov[0, 0]


def test_clahe_raises_contrast_and_its_parameters_matter() -> None:
    image, _ = draw_fundus(160)
    plain = preprocess(image, 64, PLAIN).x0
    equalised = preprocess(image, 64, Preprocessing()).x0
    stronger = preprocess(image, 64, Preprocessing(clahe=Clahe(clip_limit=8, tiles=4))).x0
    assert not np.allclose(plain, equalised)
    assert not np.allclose(equalised, stronger)


def test_the_whole_image_can_be_squeezed() -> None:
    image, _ = draw_fundus()
    squeezed = preprocess(
        image, 32, Preprocessing(crop="none", interpolation="lanczos", clahe=None, mask_outside=False)
    )
    assert squeezed.geometry.box_height == 80
    assert squeezed.geometry.box_width == 96


def test_a_strip_is_no_photograph() -> None:
    """A square around it would take four times the memory of the largest photograph, and more."""
    strip = np.full((20, 100, 3), 200, np.uint8)
    with pytest.raises(ImageError, match=r"^100 x 20 pixels are no photograph of a retina"):
        preprocess(strip, 64, Preprocessing())
    assert preprocess(strip[:, :80], 64, Preprocessing()).geometry.box_height == 80
    assert preprocess(strip, 64, squeeze()).geometry.box_width == 100


def test_pixels_survive_the_network_range() -> None:
    image, _ = draw_fundus()
    given = preprocess(image, 80, Preprocessing(crop="none", clahe=None, mask_outside=False))
    assert np.abs(to_pixels(given.x0)[0].astype(int) - given.geometry.apply(image)).max() == 0


def test_a_squeeze_is_pillows_lanczos_of_the_whole_image_and_nothing_else() -> None:
    image, _ = draw_fundus(160)
    found = preprocess(image, 64, squeeze())
    expected = Image.fromarray(image).resize((64, 64), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(to_pixels(found.x0)[0], np.asarray(expected))
    assert (found.geometry.box_height, found.geometry.box_width) == image.shape[:2]
    with pytest.raises(ValidationError, match="squeeze takes the whole photograph"):
        Preprocessing(name="squeeze")


def test_a_negative_exchanges_light_and_dark(backbone: Backbone, spec: FeatureSpec) -> None:
    image, _ = draw_fundus(160)
    extractor = Extractor(backbone, changed(spec, preprocessing=Preprocessing(clahe=None)))
    plain, negative = (extractor.render(image, Key("0" * 64, view)).input for view in ("identity", NEGATIVE))
    inside = plain.fov
    np.testing.assert_array_equal(plain.fov, negative.fov)
    np.testing.assert_array_equal(to_pixels(plain.x0)[0][inside], 255 - to_pixels(negative.x0)[0][inside])
    assert not to_pixels(negative.x0)[0][~inside].any()


def test_a_red_free_rendering_has_the_green_channel_alone(backbone: Backbone, spec: FeatureSpec) -> None:
    image, _ = draw_fundus(160)
    extractor = Extractor(backbone, changed(spec, preprocessing=Preprocessing(clahe=None)))
    plain, grey = (extractor.render(image, Key("0" * 64, view)).input for view in ("identity", RED_FREE))
    np.testing.assert_array_equal(plain.fov, grey.fov)
    for channel in range(3):
        np.testing.assert_array_equal(grey.x0[0, channel], plain.x0[0, 1])


def test_red_free_photographs_are_equalised_as_others_are_and_rendered_before() -> None:
    image, _ = draw_fundus(160)
    without, plain = (preprocess(image, 64, how) for how in (red_free(), Preprocessing()))
    np.testing.assert_array_equal(without.fov, plain.fov)
    grey = to_pixels(without.x0)[0].astype(int)
    assert np.ptp(grey, axis=2).max() <= 2  # CIELAB and back
    assert np.ptp(to_pixels(plain.x0)[0].astype(int), axis=2).max() > 20
    flat = preprocess(image, 64, red_free(), rendering=lambda pixels: np.full_like(pixels, (0, 90, 200)))
    inside = to_pixels(flat.x0)[0][flat.fov]
    assert len(np.unique(inside)) <= 2
