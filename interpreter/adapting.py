"""Choosing the resolution at which an interpreter reads a camera whose photographs nobody has labelled.

Cameras show more or less of the retina in the same square, and an interpreter segments some sizes of vessels better
than others. At which resolution it reads a camera best is estimated without labels, by the Dice that it expects of its
own masks (``interpreter.expected``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from interpreter.checkpoint import CODEBOOK_FILE, Card, save_interpreter
from interpreter.data import LabelledImage
from interpreter.domain import DOMAIN_FILE, MIN_IMAGES, Domain, domain_of_stored
from interpreter.errors import DataError
from interpreter.expected import expected_dice, expected_sums
from interpreter.metrics import finite_or_none, mean_of_known
from interpreter.network import Interpreter
from interpreter.prediction import predict
from interpreter.settings import AdaptedTo
from store.errors import SpecError
from store.extraction_command import ExtractionCommand, options_of_spec
from store.feature_store import FeatureStore
from store.manifest import MANIFEST_FILE
from store.spec import FeatureSpec

MIN_STANDARD_ERRORS = 3.0
"""Standard errors that the gain at another resolution must reach for it to replace the one that was learnt at."""


@dataclass(frozen=True)
class Expected:
    """The Dice that an interpreter expects of itself on some photographs, read at one resolution.

    Attributes:
        spec: spec of the features that were read.
        sums: ``expected_sums`` of each photograph, float64 (images, 3, n - 1).
    """

    spec: FeatureSpec
    sums: NDArray[np.float64]

    @property
    def by_class(self) -> tuple[float, ...]:
        """Expected Dice of each class but the background, 0..1, pooled over photographs (``expected_dice``)."""
        return expected_dice(self.sums.sum(axis=0))

    @property
    def dice(self) -> float:
        """Mean over the classes whose expected Dice is not nan; nan if there is none."""
        return mean_of_known(self.by_class)

    def gain(self, over: Expected) -> tuple[float, float]:
        """The gain in expected Dice over another reading of the same photographs, and its standard error.

        The gain is the mean of paired differences, one for each photograph. With fewer than ``MIN_IMAGES`` photographs
        it says nothing, and its standard error is infinite.
        """
        pairs = zip(self.sums, over.sums, strict=True)
        gains = [mean_of_known(expected_dice(mine)) - mean_of_known(expected_dice(theirs)) for mine, theirs in pairs]
        known = np.array([gain for gain in gains if not math.isnan(gain)])
        error = float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) >= MIN_IMAGES else math.inf
        return mean_of_known(known), error


def expected_at(
    interpreter: Interpreter,
    store: FeatureStore,
    spec: FeatureSpec,
    images: Sequence[LabelledImage],
    on_image: Callable[[LabelledImage], None] | None = None,
) -> Expected:
    """The Dice that an interpreter expects on photographs; no labels are read.

    On cameras other than those its temperature was fitted to, it is too high, but still tells which of several
    readings of the same photographs is best.

    Args:
        spec: spec of the features to read: the interpreter's, at its own resolution or another one.
        images: the photographs; their keys say which view is read.
        on_image: called after each photograph.

    Raises:
        SpecMismatch: the spec differs from the interpreter's in more than resolution.
    """
    interpreter.require(spec)
    sums = []
    for image in images:
        features = store.entry(spec, image.key).features()
        sums.append(expected_sums(predict(interpreter, features.maps, features.fov), features.fov))
        if on_image is not None:
            on_image(image)
    return Expected(spec, np.stack(sums))


def readable_specs(
    store: FeatureStore, card: Card, images: Sequence[LabelledImage], say: Callable[[str], None] = lambda _: None
) -> list[FeatureSpec]:
    """The specs in a store that an interpreter can read and that have features of all ``images``, coarsest first.

    They differ from the interpreter's own spec in resolution alone.

    Args:
        say: called with a message for each resolution that is left out because it has only some of the images.

    Raises:
        DataError: there is no such spec; the message gives the command that makes one.
    """
    specs = [one for one in store.specs() if _differs_in_resolution_alone(card.spec, one)]
    counted = [(one, sum(store.has_each(one, [image.key for image in images]))) for one in specs]
    found = sorted(((one, count) for one, count in counted if count), key=lambda pair: pair[0].resolution)
    whole = [one for one, count in found if count == len(images)]
    if not whole:
        partly = ", ".join(f"{count} at {one.resolution}" for one, count in found) or "none"
        how = ExtractionCommand(options_of_spec(card.spec, card.backbone))
        raise DataError(
            f"{store.location} has no resolution at which all {len(images)} photographs were extracted as this "
            f"interpreter reads them (found: {partly}); run `{how}` with further values of --resolution, "
            "such as 384, 512, 704 and 1024"
        )
    for one, count in found:
        if count < len(images):
            say(f"resolution {one.resolution} is left out: {count} of {len(images)} photographs were extracted at it")
    return whole


def _differs_in_resolution_alone(spec: FeatureSpec, other: FeatureSpec) -> bool:
    try:
        return spec.with_resolution(other.resolution) == other
    except SpecError:
        return False


def gains(expected: Sequence[Expected], learnt_at: int) -> list[tuple[float, float] | None]:
    """``Expected.gain`` of each reading over the one at the resolution that the interpreter learnt at.

    None for that reading itself, and for all readings if it is not among them.
    """
    learnt = next((one for one in expected if one.spec.resolution == learnt_at), None)
    return [None if learnt is None or one is learnt else one.gain(learnt) for one in expected]


def best_of(expected: Sequence[Expected], learnt_at: int) -> Expected:
    """The reading with the highest expected Dice; of equal ones the coarsest, which is the cheapest.

    If the resolution that the interpreter learnt at is among the readings, another one replaces it only if its gain is
    at least ``MIN_STANDARD_ERRORS`` standard errors: a finer reading is expected to be a little better anyway.

    Raises:
        DataError: no class was found at any resolution.
    """
    known = [one for one in expected if not math.isnan(one.dice)]
    if not known:
        raise DataError("the interpreter finds none of its classes in any of these photographs, at any resolution")
    better = [gain is None or _is_beyond_doubt(*gain) for gain in gains(known, learnt_at)]
    return max(itertools.compress(known, better), key=lambda one: (one.dice, -one.spec.resolution))


def _is_beyond_doubt(gain: float, error: float) -> bool:
    return gain > 0 and gain >= MIN_STANDARD_ERRORS * error


def save_adapted(
    folder: Path,
    interpreter: Interpreter,
    card: Card,
    store: FeatureStore,
    images: Sequence[LabelledImage],
    expected: Sequence[Expected],
    domain: Domain | None,
) -> Card:
    """Write a copy of an interpreter that reads photographs at the best of some resolutions, replacing any former copy.

    With at least ``interpreter.domain.MIN_IMAGES`` photographs, the copy's domain is fitted to them, so that later
    photographs of this camera are compared with them. With fewer, the copy keeps the interpreter's own domain if its
    resolution is unchanged, and has none otherwise.

    Args:
        images: the photographs that ``expected`` was computed on.
        domain: the interpreter's own domain.

    Returns:
        The copy's card.
    """
    learnt_at = interpreter.spec.resolution
    best = best_of(expected, learnt_at)
    adapted_to = AdaptedTo(
        photographs=len(images),
        expected_dice={str(one.spec.resolution): finite_or_none(round(one.dice, 4)) for one in expected},
    )
    adapted = card.model_copy(
        update={
            "spec": best.spec,
            "learnt_at": None if best.spec.resolution == learnt_at else learnt_at,
            "training": card.training.model_copy(update={"adapted_to": adapted_to}),
        }
    )
    for former in (DOMAIN_FILE, CODEBOOK_FILE, MANIFEST_FILE):
        (folder / former).unlink(missing_ok=True)
    save_interpreter(folder, interpreter, adapted)
    if len(images) >= MIN_IMAGES:
        domain = domain_of_stored(store, best.spec, [image.key for image in images])
    elif best.spec != card.spec:
        domain = None
    if domain is not None:
        domain.save(folder)
    return adapted
