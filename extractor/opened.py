"""Photographs on their way through a run: read, decoded and framed once for all their views."""

from __future__ import annotations

import threading
from collections import OrderedDict

from extractor.datasets import Photograph
from extractor.errors import naming
from extractor.extraction import ViewMaker
from extractor.images import decode_image, image_id, is_indexed, read_bytes
from extractor.preprocess import Framed
from store.collection import Sample
from store.feature_store import FeatureStore
from store.geometry import Geometry


class OpenedPhotograph:
    """One photograph of a run. Each part is computed when first asked for, by one thread, and kept.

    Pixels at native size are not kept. A part that failed is tried again when it is asked for again.
    """

    def __init__(self, photograph: Photograph, store: FeatureStore, extractor: ViewMaker) -> None:
        self._photograph, self._store, self._extractor = photograph, store, extractor
        self._lock = threading.RLock()
        self._data: bytes | None = None
        self._image_id: str | None = None
        self._framed: Framed | None = None
        self._sample: Sample | None = None

    @property
    def image_id(self) -> str:
        """sha256 of the file; raises ImageError if it cannot be read."""
        with self._lock:
            if self._image_id is None:
                self._read()
            assert self._image_id is not None
            return self._image_id

    def _read(self) -> bytes:
        """The bytes of the file, kept until they are decoded."""
        if self._data is None:
            self._data = read_bytes(self._photograph.image)
            self._image_id = image_id(self._data)
        return self._data

    @property
    def framed(self) -> Framed:
        """The photograph cropped and resized; raises ImageError for what is no photograph."""
        with self._lock:
            if self._framed is None:
                data = self._read()
                with naming(self._photograph.image):
                    self._framed = self._extractor.frame(decode_image(data))
                self._data = None
            return self._framed

    def sample(self, geometry: Geometry) -> Sample:
        """The photograph as a sample of a collection; its masks are written to the store.

        Args:
            geometry: the geometry of any of its views, which has its native size.

        Raises:
            ImageError: a mask cannot be read.
            DatasetError: a mask is of another size than the photograph.
        """
        with self._lock:
            if self._sample is None:
                photograph, size = self._photograph, (geometry.height, geometry.width)
                write = self._store.collections.write_mask
                self._sample = Sample(
                    image_id=self.image_id,
                    name=photograph.name,
                    split=photograph.split,
                    group=photograph.group,
                    masks={target: write(photograph.read_mask(target, size)) for target in photograph.masks},
                    indexed=tuple(t for t, path in photograph.masks.items() if is_indexed(path)),
                )
            return self._sample


class PhotographCache:
    """A cache of the ``max_size`` photographs that were used last; safe to use from several threads."""

    def __init__(self, store: FeatureStore, extractor: ViewMaker, max_size: int) -> None:
        self._store, self._extractor, self._max_size = store, extractor, max_size
        self._opened: OrderedDict[str, OpenedPhotograph] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, photograph: Photograph) -> OpenedPhotograph:
        """Return a photograph of the run's data set, opened; photographs are told apart by name."""
        with self._lock:
            opened = self._opened.pop(photograph.name, None)
            if opened is None:
                opened = OpenedPhotograph(photograph, self._store, self._extractor)
            self._opened[photograph.name] = opened
            while len(self._opened) > self._max_size:
                self._opened.popitem(last=False)
            return opened
