"""The features or photographs that a protocol's experiments read, extracted where the store lacks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from interpreter.data import LabelledImage, images_of, labelled_at
from interpreter.errors import ConfigurationError
from interpreter.protocols.extracting import DataSource, Extract, FeatureRequest
from interpreter.protocols.protocol import Experiment, Protocol, ProtocolSettings, Row
from interpreter.stored import views_read
from store.feature_store import FeatureStore
from store.spec import FeatureSpec
from store.views import IDENTITY, plain_view

Say = Callable[[str], None]
Splits = Sequence[tuple[str, str]]
"""Splits of data sets: (data set, split) pairs."""


class ProtocolFeatures:
    """The features and images of a protocol's data sets.

    Args:
        protocol: the protocol whose experiments read them.
        sources: the data sets.
        store: receives the features.
        settings: the user's settings.
        extract: extracts features.
        say: called with progress messages.

    Attributes:
        sources: the data sets by name.

    Raises:
        ConfigurationError: two data sets have the same name, or the chosen preprocessing does not suit the protocol.
    """

    def __init__(
        self,
        protocol: Protocol,
        sources: Sequence[DataSource],
        store: FeatureStore,
        settings: ProtocolSettings,
        extract: Extract,
        say: Say = lambda _: None,
    ) -> None:
        self.sources = {source.name: source for source in sources}
        if len(self.sources) < len(sources):
            raise ConfigurationError(
                f"expected data sets with distinct names, got {', '.join(s.name for s in sources)}"
            )
        self.protocol, self.store, self.settings, self.say = protocol, store, settings, say
        self._preprocessing, self._extract = protocol.preprocessing_for(settings), extract
        self._digests: dict[FeatureRequest, str] = {}

    def test_views(self, experiment: Experiment) -> tuple[str, ...]:
        """The views of each test image that the experiment reads."""
        return views_read(experiment.test_view, mirrored=self.settings.mirrored)

    def images(self, splits: Splits, view: str = IDENTITY) -> list[LabelledImage]:
        """The labelled images of some splits in one view, each photograph once."""
        return [image.seen_as(view) for image in labelled_at(self.store, splits, self.protocol.task)]

    def photographs(self, splits: Splits) -> list[LabelledImage]:
        """All images of some splits, labelled or not."""
        return [image for name, split in splits for image in images_of(self.store, name, split)]

    def extract_for_experiment(self, experiment: Experiment) -> FeatureSpec:
        """Extract what an experiment is trained and tested on, where it is missing; return its spec."""
        row, test_views = experiment.row, self.test_views(experiment)
        drawn = self.settings.views_of(row)
        views = tuple(dict.fromkeys((plain_view(drawn), *drawn)))
        digests = {self.extract(name, split, row, views) for name, split in experiment.sources}
        digests |= {self.extract(name, split, row, test_views) for name, split in experiment.tests}
        return self._only_spec(digests)

    def extract_at_resolution(
        self, resolution: int | None, row: Row, splits: Splits, views: tuple[str, ...]
    ) -> FeatureSpec:
        """Extract views of some splits at a resolution (None: the settings'), where missing; return their spec."""
        return self._only_spec({self.extract(name, split, row, views, resolution) for name, split in splits})

    def extract(self, name: str, split: str, row: Row, views: tuple[str, ...], resolution: int | None = None) -> str:
        """Extract views of a split, as features or as photographs, where missing; return the digest of their spec."""
        wanted = FeatureRequest(
            self.sources[name], split, row.trajectory, views, self._preprocessing, row.untrained, resolution, row.pixels
        )
        if wanted not in self._digests:
            made = "photographs" if row.pixels else f"features ({row.trajectory})"
            how = ["random weights"] * row.untrained + ([] if resolution is None else [f"{resolution} pixels"])
            self.say(f"  {made} of {name}, {split}: {', '.join([*how, *views])}")
            self._digests[wanted] = self._extract(wanted)
        return self._digests[wanted]

    def _only_spec(self, digests: set[str]) -> FeatureSpec:
        if len(digests) != 1:
            raise ConfigurationError(f"data sets were extracted under several specs: {', '.join(sorted(digests))}")
        return self.store.spec(next(iter(digests)))
