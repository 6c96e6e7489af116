"""Names of views."""

from __future__ import annotations

import numpy as np
import pytest

from store import SpecError, parse_views
from store.views import fixed_rendering, flipped_axes, photometric_seed, plain_view


def test_lists_are_spelled_out() -> None:
    assert parse_views("identity") == ("identity",)
    assert parse_views("identity, flips,photometric:2") == (
        "identity", "flip-h", "flip-v", "flip-hv", "photometric-0", "photometric-1",
    )  # fmt: skip
    assert parse_views("negative,red-free") == ("negative", "red-free")
    assert parse_views("flip-v,photometric-7") == ("flip-v", "photometric-7")


@pytest.mark.parametrize(
    "text", ["", "sideways", "photometric:0", "photometric-007", "photometric:x", "photometric-", "identity,"]
)
def test_what_is_no_view_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="no view"):
        parse_views(text)


def test_a_view_named_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="twice"):
        parse_views("flips,flip-h")


def test_what_a_view_does() -> None:
    assert flipped_axes("flip-hv") == (-2, -1)
    assert flipped_axes("photometric-3") == ()
    assert photometric_seed("photometric-3") == 3
    assert photometric_seed("identity") is None
    image = np.arange(12, dtype=np.uint8).reshape(1, 4, 3)
    for view, expected in (("negative", [255, 254, 253]), ("red-free", [1, 1, 1])):
        rendering = fixed_rendering(view)
        assert rendering is not None
        assert rendering(image)[0, 0].tolist() == expected
    assert [fixed_rendering(view) for view in ("identity", "flip-h", "photometric-3")] == [None] * 3


@pytest.mark.parametrize(
    ("views", "plain"),
    [("flips,identity", "identity"), ("flip-h,red-free,photometric:2", "red-free"), ("flips", "identity")],
)
def test_photographs_are_read_plainly_where_nothing_is_drawn(views: str, plain: str) -> None:
    assert plain_view(parse_views(views)) == plain
