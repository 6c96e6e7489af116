"""Views: renderings of a photograph that are extracted and stored beside the photograph itself.

What augmentation is to a network, views are to a cache. A view is part of an entry's key:

    identity        the photograph
    flip-h, flip-v, flip-hv   exact flips of the network's square, along width, height, both
    negative        light and dark exchanged: an angiogram shows vessels bright, a photograph dark
    red-free        the green channel in all three: what cameras and scanners without colour show
    photometric-K   the photograph as another camera might have rendered it, K a seed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import SpecError

Rendering = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""uint8 (h, w, 3) to the same."""

IDENTITY = "identity"
NEGATIVE = "negative"
RED_FREE = "red-free"
FLIPS = {"flip-h": (-1,), "flip-v": (-2,), "flip-hv": (-2, -1)}
MIRRORED = (*FLIPS, IDENTITY)
"""A photograph and its mirror images."""
_PHOTOMETRIC = "photometric-"


class PhotometricSpread(NamedTuple):
    """How much cameras differ: standard deviations of logarithms, and how often an image is blurred.

    Attributes:
        gamma: of the exponent of brightness.
        gain: of a factor of all channels; ``colour`` of one of each channel besides.
        contrast: of the distance from the mean.
        blurred: probability, 0..1.
    """

    gamma: float = 0.25
    gain: float = 0.12
    colour: float = 0.12
    contrast: float = 0.15
    blurred: float = 0.25


PHOTOMETRIC = PhotometricSpread()
"""Of photometric views, and of what networks on pixels draw for themselves."""


def without_colour(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The green channel in all three, uint8 (h, w, 3)."""
    return np.repeat(image[..., 1:2], 3, axis=-1)


_FIXED: dict[str, Rendering] = {NEGATIVE: lambda image: 255 - image, RED_FREE: without_colour}


def parse_views(text: str) -> tuple[str, ...]:
    """Names of views from a list such as ``identity,flips,photometric:8``.

    ``flips`` stands for all three, ``photometric:N`` for seeds 0 to N - 1; single views may be named.

    Raises:
        SpecError: something in the list is no view, or stands there twice.
    """
    views: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        name, _, count = part.partition(":")
        if name == "photometric" and count.isdigit() and int(count) > 0:
            views += [f"{_PHOTOMETRIC}{seed}" for seed in range(int(count))]
        elif part == "flips":
            views += FLIPS
        elif is_view(part):
            views.append(part)
        else:
            raise SpecError(
                f"no view {part!r}; expected {', '.join((IDENTITY, *_FIXED, 'flips', *FLIPS))}, photometric:N"
            )
    if len(set(views)) != len(views):
        raise SpecError(f"a view stands twice in {text!r}")
    return tuple(views)


def is_view(name: str) -> bool:
    """Whether this is the name of a view."""
    return name == IDENTITY or name in _FIXED or name in FLIPS or photometric_seed(name) is not None


def is_upright(name: str) -> bool:
    """Whether this is a view, and what it shows lies where the photograph has it."""
    return is_view(name) and not flipped_axes(name)


def is_fixed(view: str) -> bool:
    """Whether a view draws nothing and moves nothing: the photograph as it is, or in a fixed rendering."""
    return view == IDENTITY or view in _FIXED


def fixed_rendering(view: str) -> Rendering | None:
    """What a view does to the numbers of every photograph alike; None for any other view."""
    return _FIXED.get(view)


def plain_view(views: Sequence[str]) -> str:
    """How photographs are read where nothing is drawn: as they are, or as the first view that leaves them in place.

    So an interpreter that was trained on red-free views alone is validated on such.
    """
    return IDENTITY if IDENTITY in views else next((view for view in views if is_upright(view)), IDENTITY)


def flipped_axes(view: str) -> tuple[int, ...]:
    """Axes (from the end) along which a view shows the photograph reversed; none for most views."""
    return FLIPS.get(view, ())


def photometric_seed(view: str) -> int | None:
    """The seed of a photometric view; None for any other view."""
    seed = view.removeprefix(_PHOTOMETRIC)
    return int(seed) if seed != view and seed.isdigit() else None
