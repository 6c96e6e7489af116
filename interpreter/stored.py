"""Reading images' features from a store: which spec and views, whether they are there, and their segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from interpreter.data import LabelledImage
from interpreter.errors import ConfigurationError, DataError, NonFinitePrediction
from interpreter.network import Interpreter
from interpreter.prediction import Segmentation, segment
from store.errors import MissingEntry
from store.extraction_command import ExtractionCommand, as_options, options_of_spec
from store.feature_store import FeatureStore
from store.features import Features, Key
from store.spec import FeatureSpec
from store.views import IDENTITY, MIRRORED


def store_spec(store: FeatureStore, digest: str | None, images: Sequence[LabelledImage] = ()) -> FeatureSpec:
    """The spec whose digest begins with ``digest``; if None, the store's only spec, or its only one of ``images``."""
    if digest is not None:
        return store.spec(digest)
    specs = store.specs()
    if len(specs) > 1 and images:  # a service may have stored features for its own model
        specs = [spec for spec in specs if any(store.has(spec, image.key) for image in images)] or specs
    if len(specs) == 1:
        return specs[0]
    if not specs:
        raise MissingEntry(f"{store.location}: no features here; `extractor run --dataset ... --store ...` makes them")
    listed = "; ".join(spec.summary for spec in specs)
    raise MissingEntry(f"{store.location}: features of several specs are here, choose one with --spec: {listed}")


def views_read(view: str, *, mirrored: bool) -> tuple[str, ...]:
    """The views to read of an image whose key has this view: it alone, or with the three mirror images.

    Raises:
        ConfigurationError: mirror images are asked for, and the view is not the photograph itself.
    """
    if not mirrored:
        return (view,)
    if view != IDENTITY:
        raise ConfigurationError(f"mirror images are flips of the photograph as it is; there are none of {view}")
    return MIRRORED


def segment_stored(
    interpreter: Interpreter, store: FeatureStore, spec: FeatureSpec, image: LabelledImage, *, mirrored: bool = False
) -> tuple[Features, Segmentation]:
    """Segment an image from its stored features, and return both.

    Args:
        spec: spec of the features to read: the interpreter's, at its own resolution or another one.
        mirrored: also read the image's three flips, and average the probabilities.

    Raises:
        ConfigurationError: ``mirrored``, and the image's key has another view than the photograph itself.
        MissingEntry, DamagedEntry: features of it, or of a flip, are not in the store, or no longer what was written.
        NonFinitePrediction: the interpreter computes NaN or infinity; the message names the image.
    """
    views = views_read(image.key.view, mirrored=mirrored)
    by_view = {view: store.entry(spec, image.seen_as(view).key).features() for view in views}
    features = by_view.pop(image.key.view)
    try:
        return features, segment(interpreter, features, by_view)
    except NonFinitePrediction as error:
        raise NonFinitePrediction(f"{image.name}: {error}") from error


def require_features(
    store: FeatureStore,
    spec: FeatureSpec,
    images: Sequence[LabelledImage],
    views: Sequence[str] = (),
    backbone: str | None = None,
) -> None:
    """Raise DataError if a view of an image is not in the store under this spec.

    The message names the images that lack features, five at most, and the commands that extract them.

    Args:
        views: the views that are needed; if none are given, the view of each image's key.
        backbone: name or location of the spec's backbone, for these commands; if None, the one that the store names.
    """
    wanted = [(image, view) for image in images for view in views or (image.key.view,)]
    there = store.has_each(spec, [Key(image.key.image_id, view) for image, view in wanted])
    missing = [one for one, is_there in zip(wanted, there, strict=True) if not is_there]
    if missing:
        shown = ", ".join(f"{image.name} ({view})" for image, view in missing[:5])
        shown += f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        names, needed = sorted({image.dataset for image, _ in missing}), list(dict.fromkeys(v for _, v in missing))
        commands = "; ".join(
            str(
                _extracting(
                    store, spec, name, {i.sample.split for i, _ in missing if i.dataset == name}, needed, backbone
                )
            )
            for name in names
        )
        first, view = missing[0]
        other = store.nearest_spec(spec, Key(first.key.image_id, view))
        differs = f"; those that are there differ in\n{spec.difference(other)}\n" if other is not None else "; "
        raise DataError(
            f"{store.location} lacks features of {shown} for spec {spec.digest[:12]}{differs}run `{commands}` first"
        )


def _extracting(
    store: FeatureStore,
    spec: FeatureSpec,
    dataset: str,
    splits: set[str | None],
    views: Sequence[str],
    backbone: str | None,
) -> ExtractionCommand:
    """The command that extracts these views: from the recorded run of the data set and spec, or else from the spec.

    Args:
        splits: splits of the images that lack these views.
        backbone: name or location of the spec's backbone; if None, the one that the store names.
    """
    for record in store.records.all():
        if record.spec == spec.digest and record.dataset == dataset:
            left_out = ("views", "limit", "images", "split")
            options = {name: value for name, value in record.options.items() if name not in left_out}
            if len(splits) == 1 and (split := next(iter(splits))) is not None:
                options["split"] = split
            break
    else:
        how = options_of_spec(spec, backbone or store.backbone_of(spec))
        options = {"dataset": f"...:{dataset}", "name": dataset, **how}
    return ExtractionCommand(options | as_options(store=store.location, views=tuple(views)))
