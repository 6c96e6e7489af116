"""How to read the photographs of a camera that nobody has labelled.

Cameras show more or less of the retina in the same square, and an interpreter reads some sizes of vessels better than
others. Which resolution it reads a camera best at, it tells itself: by the Dice that it expects of its masks
(``interpreter.expected``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interpreter.checkpoint import Card, save_interpreter
from interpreter.data import Labelled, extraction_options
from interpreter.domain import LEAST, descriptor, fit_domain, residual
from interpreter.errors import TrainingDataError
from interpreter.expected import expected_dice, expected_sums
from interpreter.network import Interpreter
from interpreter.prediction import predict
from store.errors import SpecError
from store.feature_store import FeatureStore
from store.spec import FeatureSpec


@dataclass(frozen=True)
class Expected:
    """What an interpreter expects of itself at one resolution.

    Attributes:
        spec: of the features that were read.
        by_class: Dice of each class but the background, 0..1, of all photographs together; nan where none has a pixel.
    """

    spec: FeatureSpec
    by_class: tuple[float, ...]

    @property
    def dice(self) -> float:
        """Mean over the classes that have one; nan if none has."""
        known = [dice for dice in self.by_class if not np.isnan(dice)]
        return float(np.mean(known)) if known else float("nan")


def expected_at(
    interpreter: Interpreter,
    store: FeatureStore,
    spec: FeatureSpec,
    images: Sequence[Labelled],
    on_image: Callable[[Labelled], None] | None = None,
) -> Expected:
    """The Dice that an interpreter expects on photographs, all together; no labels are read.

    On other cameras than those that its temperature was fitted to it is too high, and tells which of several readings
    of the same photographs is the best one.

    Args:
        spec: of the features: the interpreter's, at its resolution or another one.
        images: their keys say which view is read.
        on_image: called behind each.
    """
    interpreter.spec.of_resolution(spec.resolution).require(spec)
    sums = np.zeros((3, interpreter.config.classes - 1))
    for image in images:
        features = store.entry(spec, image.key).features()
        sums += expected_sums(predict(interpreter, features.maps, features.fov), features.fov)
        if on_image is not None:
            on_image(image)
    return Expected(spec, expected_dice(sums))


def readable(store: FeatureStore, card: Card, images: Sequence[Labelled]) -> list[FeatureSpec]:
    """The specs in a store that an interpreter reads and that have all of some images, coarsest first.

    They differ from its own in resolution alone.

    Raises:
        TrainingDataError: there is none; says how to make some.
    """
    found = [one for one in store.specs() if _differs_in_resolution_alone(card.spec, one)]
    whole = [one for one in found if all(store.has(one, image.key) for image in images)]
    if not whole:
        partly = ", ".join(str(one.resolution) for one in found) or "none"
        how = extraction_options(card.spec, card.backbone)
        raise TrainingDataError(
            f"{store.location} has no resolution at which all {len(images)} photographs were extracted as this "
            f"interpreter reads them (some were at: {partly}); run `extractor run {how}` with other --resolution, such "
            "as 384, 512, 704 and 1024"
        )
    return sorted(whole, key=lambda one: one.resolution)


def _differs_in_resolution_alone(spec: FeatureSpec, other: FeatureSpec) -> bool:
    try:
        return spec.of_resolution(other.resolution) == other
    except SpecError:
        return False


def best_of(expected: Sequence[Expected]) -> Expected:
    """That of the highest expected Dice; of equal ones the coarsest, which costs least.

    Raises:
        TrainingDataError: nothing was found at any resolution.
    """
    known = [one for one in expected if not np.isnan(one.dice)]
    if not known:
        raise TrainingDataError("none of the classes is in any of these photographs, as far as the interpreter sees")
    return max(known, key=lambda one: (one.dice, -one.spec.resolution))


def save_adapted(
    folder: Path,
    interpreter: Interpreter,
    card: Card,
    store: FeatureStore,
    images: Sequence[Labelled],
    expected: Sequence[Expected],
) -> Card:
    """Write a copy of an interpreter that reads photographs at the best of some resolutions.

    Its domain is that of these photographs, so that what the camera's others are measured by are its own: from
    ``interpreter.domain.LEAST`` of them on, and none of fewer.

    Args:
        images: the photographs that the expectations are of.

    Returns:
        The copy's card.
    """
    best = best_of(expected)
    learnt_at = interpreter.spec.resolution
    told = {
        "photographs": len(images),
        "expected_dice": {str(one.spec.resolution): round(one.dice, 4) for one in expected},
    }
    adapted = card.model_copy(
        update={
            "spec": best.spec,
            "learnt_at": None if best.spec.resolution == learnt_at else learnt_at,
            "training": card.training | {"adapted_to": told},
        }
    )
    save_interpreter(folder, interpreter, adapted)
    if len(images) >= LEAST:
        codec = store.codec(best.spec)
        read = [store.entry(best.spec, image.key).features() for image in images]
        fit_domain(best.spec, (descriptor(one, codec) for one in read), [residual(one) for one in read]).save(folder)
    return adapted
