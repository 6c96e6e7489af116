"""Features for questions: found in the store, or made from the photograph and stored."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from extractor.extraction import Prepared
from extractor.preprocess import Framed
from service.deletions import Deletions
from service.device import Device
from service.errors import NotFound
from service.question import Question, Work
from service.single_flight import SingleFlight
from service.storage import GuardedStore
from store.features import Features, Key
from store.spec import FeatureSpec
from store.views import IDENTITY


class _Found(NamedTuple):
    """The features of one view, as all who asked for them at once get them.

    Attributes:
        cached: whether they were in the store.
        stored: whether they are in it now, or being stored by another process.
        troubles: warnings about the store.
    """

    features: Features
    cached: bool
    stored: bool
    troubles: tuple[str, ...]


class FeatureFinder:
    """Finds the features of photographs, or makes and stores them; safe to call from several threads.

    What several questions need at the same time is made once.

    Args:
        storage: the feature store, looked up before anything is made.
        device: inverts photographs.
    """

    def __init__(self, storage: GuardedStore, device: Device) -> None:
        self._storage, self._device = storage, device
        self._deletions = Deletions()
        self._single_flight: SingleFlight[_Found] = SingleFlight()

    def features(self, question: Question, framed: Framed | None, work: Work) -> tuple[dict[str, Features], bool]:
        """Return the features that a question needs by view, and whether all of them were in the store.

        Args:
            framed: the photograph, cropped and resized; None if it was not sent, so that nothing can be made.
            work: gets the times, forwards and troubles.

        Raises:
            NotFound: the photograph was not sent, and features are not in the store (any more).
            Abandoned: nobody waits for the answer any more.
        """
        view_of = question.model.extractor.view_of
        upright = None if framed is None else cache(lambda: view_of(framed, Key(question.image_id)))
        by_view, cached = dict[str, Features](), True
        for view in question.views:
            by_view[view], stored = self._of_view(question, view, upright, work)
            cached &= stored
            work.check()
        return by_view, cached

    def last_deleted(self, spec: FeatureSpec, image_id: str) -> float:
        """Return when a photograph was deleted last (``time.monotonic``); 0 if not lately."""
        return self._deletions.last(spec.digest, image_id)

    def is_deleted(self, question: Question) -> bool:
        """Return whether the photograph has been deleted since the question was posed."""
        return self.last_deleted(question.model.card.spec, question.image_id) > question.deleted

    def forget(self, spec: FeatureSpec, image_id: str) -> int:
        """Delete a photograph's features, in every view, and return the number of views; none in the making are kept.

        Raises:
            StoreBusy: another process is writing some of them.
            StoreUnavailable: the store is unavailable.
        """
        self._deletions.add(spec.digest, image_id)
        return self._storage.forget(spec, image_id)

    def _of_view(
        self, question: Question, view: str, upright: Callable[[], Prepared] | None, work: Work
    ) -> tuple[Features, bool]:
        """Return the features of one view, and whether they were in the store.

        Args:
            upright: prepares the photograph for the network; None if it was not sent.
        """
        key, spec = Key(question.image_id, view), question.model.card.spec

        def found_or_made(wanted: Callable[[], bool]) -> _Found:
            with work.stage("read"):
                features, trouble = self._storage.read(spec, key)
            troubles = () if trouble is None else (trouble,)
            if features is not None:
                return _Found(features, True, True, troubles)
            if upright is None:
                if view == IDENTITY:
                    raise NotFound("these features are not stored here (any more); send the photograph")
                raise NotFound(
                    "the features of this photograph's mirror images are not stored here (any more); send the "
                    "photograph, or ask without mirrored"
                )
            made = self._made(upright, question, key, work, wanted)
            return made._replace(troubles=troubles + made.troubles)

        shared = (spec.digest, key, upright is None, question.deleted)
        found = self._single_flight.do(shared, work.wanted, found_or_made)
        work.troubles += found.troubles
        work.all_stored &= found.stored
        return found.features, found.cached

    def _made(
        self, upright: Callable[[], Prepared], question: Question, key: Key, work: Work, wanted: Callable[[], bool]
    ) -> _Found:
        """Invert one view and store its features, whose maps are encoded as in the store."""
        extractor, card = question.model.extractor, question.model.card
        with work.stage("prepare"):
            prepared = upright().flipped(key.view)
        features = work.on_device("invert", lambda: self._device.invert(extractor, prepared, wanted))
        work.forwards += len(card.spec.grid)
        with work.stage("store"):
            if not self.is_deleted(question):
                written = self._storage.write(card.spec, key, features, card.backbone, extractor.codebook)
                if not self.is_deleted(question):
                    work.bytes_stored += written.bytes
                    troubles = () if written.trouble is None else (written.trouble,)
                    return _Found(features, False, written.trouble is None, troubles)
                if written.bytes:  # deleted while they were written
                    self._storage.discard(card.spec, key)
        gone = "the photograph was deleted while its features were made; they are not kept"
        return _Found(features, False, False, (gone,))
