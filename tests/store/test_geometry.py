"""What goes through a Geometry comes back to the pixel it came from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from store import Geometry, Interpolation

sizes = st.integers(20, 90)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    height, width = draw(sizes), draw(sizes)
    box_height, box_width = draw(sizes), draw(sizes)
    return Geometry(
        height=height,
        width=width,
        top=draw(st.integers(-box_height + 10, height - 10)),
        left=draw(st.integers(-box_width + 10, width - 10)),
        box_height=box_height,
        box_width=box_width,
        resolution=draw(st.integers(16, 128)),
    )


@settings(deadline=None)
@given(geometries())
def test_coordinates_come_back_within_a_network_pixel(geometry: Geometry) -> None:
    ramp = np.stack(np.mgrid[: geometry.height, : geometry.width], axis=-1).astype(np.float32)
    back = geometry.restore(geometry.apply(ramp, Interpolation.NEAREST, fill=-1000), Interpolation.NEAREST, fill=-1000)
    seen = (back > -500).all(axis=-1)
    allowed = np.maximum(1.0, np.array(geometry.scale))
    assert seen.any()
    assert (np.abs(back - ramp)[seen] <= allowed).all()


@settings(deadline=None)
@given(geometries())
def test_whole_multiples_are_undone_exactly(geometry: Geometry) -> None:
    enlarged = geometry.model_copy(update={"box_height": 32, "box_width": 32, "resolution": 96})
    enlarged = enlarged.model_copy(update={"top": min(enlarged.top, 0), "left": min(enlarged.left, 0)})
    image = np.random.default_rng(0).integers(1, 255, (enlarged.height, enlarged.width), dtype=np.uint8)
    if enlarged.top + 32 <= 0 or enlarged.left + 32 <= 0:
        return
    back = enlarged.restore(enlarged.apply(image, Interpolation.NEAREST), Interpolation.NEAREST)
    inside = back > 0
    assert (back[inside] == image[inside]).all()


def test_linear_maps_are_not_shifted() -> None:
    geometry = Geometry(height=60, width=80, top=-10, left=0, box_height=80, box_width=80, resolution=64)
    ramp = np.tile(np.arange(80, dtype=np.float32), (60, 1))
    back = geometry.restore(geometry.apply(ramp, Interpolation.LINEAR), Interpolation.LINEAR)
    assert np.abs(back - ramp)[15:45, 8:-8].max() < 1e-3


def test_square_around_a_region_is_centred_on_it() -> None:
    region = np.zeros((100, 200), dtype=np.bool_)
    region[20:60, 90:190] = True
    geometry = Geometry.square_around(region, 32)
    assert (geometry.box_height, geometry.box_width) == (100, 100)
    assert (geometry.top, geometry.left) == (-10, 90)
    assert geometry.restore(geometry.apply(region)).sum() == pytest.approx(region.sum(), rel=0.1)


def test_a_box_beside_the_image_is_refused() -> None:
    with pytest.raises(ValidationError, match="lies outside the image"):
        Geometry(height=10, width=10, top=20, left=0, box_height=5, box_width=5, resolution=8)


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a network array of 8 x 8 pixels"):
        Geometry.whole(10, 10, 8).restore(np.zeros((9, 8)))


def test_an_empty_region_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Geometry.square_around(np.zeros((4, 4), dtype=np.bool_), 8)
