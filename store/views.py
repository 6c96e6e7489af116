"""Views: renderings of a photograph whose features are stored next to those of the photograph itself.

Views are to a feature cache what augmentation is to a network. A view is part of an entry's key:

    identity        the photograph
    flip-h, flip-v, flip-hv   exact flips of the network's square, along width, height, both
    negative        light and dark exchanged: vessels are bright in an angiogram, dark in a photograph
    red-free        the green channel in all three, as cameras and scanners without colour show it
    photometric-K   the photograph as another camera might have rendered it, K a seed
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import SpecError

Rendering = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""A function from an image, uint8 (h, w, 3), to its rendering, likewise."""

IDENTITY = "identity"
NEGATIVE = "negative"
RED_FREE = "red-free"
FLIPS = {"flip-h": (-1,), "flip-v": (-2,), "flip-hv": (-2, -1)}
MIRRORED = (*FLIPS, IDENTITY)
"""A photograph and its mirror images."""
_PHOTOMETRIC = "photometric-"


class PhotometricSpread(NamedTuple):
    """How much cameras differ: standard deviations of logarithms of random factors, and how often images are blurred.

    Attributes:
        gamma: spread of the exponent of brightness.
        gain: spread of a factor on all channels.
        colour: spread of a further factor on each channel.
        contrast: spread of the factor on the distance from the mean.
        blurred: probability of a blur, 0..1.
    """

    gamma: float = 0.25
    gain: float = 0.12
    colour: float = 0.12
    contrast: float = 0.15
    blurred: float = 0.25


PHOTOMETRIC = PhotometricSpread()
"""The spread of photometric views, and of the changes that networks on pixels draw while they train."""


def without_colour(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The green channel in all three, uint8 (h, w, 3)."""
    return np.repeat(image[..., 1:2], 3, axis=-1)


_FIXED: dict[str, Rendering] = {NEGATIVE: lambda image: 255 - image, RED_FREE: without_colour}


def parse_views(text: str) -> tuple[str, ...]:
    """Names of views from a list such as ``identity,flips,photometric:8``.

    ``flips`` stands for all three flips, ``photometric:N`` for seeds 0 to N - 1; single views may be named.

    Raises:
        SpecError: an item of the list is not a view, or a view is listed twice.
    """
    views: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        name, _, count = part.partition(":")
        if name == "photometric" and count.isdecimal() and int(count) > 0:
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
        raise SpecError(f"expected every view once, found one twice in {text!r}")
    return tuple(views)


def is_view(name: str) -> bool:
    """Return whether this is the name of a view."""
    return name == IDENTITY or name in _FIXED or name in FLIPS or photometric_seed(name) is not None


def is_upright(name: str) -> bool:
    """Return whether this is a view that leaves everything where the photograph has it."""
    return is_view(name) and not flipped_axes(name)


def is_fixed(view: str) -> bool:
    """Return whether a view is the photograph itself or a fixed rendering of it, without flips or random changes."""
    return view == IDENTITY or view in _FIXED


def fixed_rendering(view: str) -> Rendering | None:
    """The rendering of a view that changes the values of all photographs alike; None for any other view."""
    return _FIXED.get(view)


def plain_view(views: Sequence[str]) -> str:
    """The view in which photographs are read where none is drawn: ``identity``, or else the first upright one.

    An interpreter that was trained on red-free views only is thus validated on them.
    """
    return IDENTITY if IDENTITY in views else next((view for view in views if is_upright(view)), IDENTITY)


def flipped_axes(view: str) -> tuple[int, ...]:
    """Axes, counted from the end, along which a view shows the photograph reversed; none for most views."""
    return FLIPS.get(view, ())


def photometric_seed(view: str) -> int | None:
    """The seed of a photometric view; None for any other view."""
    seed = view.removeprefix(_PHOTOMETRIC)
    return int(seed) if seed != view and re.fullmatch("0|[1-9][0-9]*", seed) else None
