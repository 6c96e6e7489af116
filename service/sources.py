"""Folders and prefixes of object storage from which jobs may read photographs, allowed by the operator by name.

A request names ``NAME`` or ``NAME/PREFIX``. The operator chooses the name; the client chooses the prefix, which cannot
lead out of the folder. Clients are never told where a folder is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import structlog

from extractor.images import is_image_name
from service.dicom import is_dicom_file
from service.errors import BodyTooLarge, Forbidden, NotFound, Unavailable, trouble_of
from service.photographs import SUFFIXES
from store.errors import FormatError, MissingEntry, StoreUnavailable
from store.objects import Objects, open_objects

logger = structlog.get_logger(__name__)
T = TypeVar("T")


class _NotMounted(StoreUnavailable):
    """A local folder that holds nothing, or is not there; the message names neither it nor a photograph."""


class Source(Protocol):
    """The photographs below one folder or prefix of object storage."""

    def keys(self, prefix: str, most: int | None) -> list[str]:
        """Return the sorted keys of the photographs below a prefix: all, or ``most`` of them, not always the first.

        Raises:
            Forbidden: the prefix leads out of this place.
            NotFound: nothing is there.
        """

    def read(self, key: str, limit: int) -> bytes:
        """Return the bytes of one photograph.

        Raises:
            BodyTooLarge: it has more than ``limit`` bytes.
            Forbidden: the key leads out of this place.
            NotFound: the photograph does not exist (any more).
        """


class FolderSource:
    """A local folder; symbolic links that lead out of it are not followed."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().resolve()

    def keys(self, prefix: str, most: int | None) -> list[str]:
        below = self._inside(prefix)
        if not self._is_there():
            raise _NotMounted("the folder is empty or not mounted")
        if not below.is_dir():
            raise NotFound("no such folder")
        found = (path for path in below.rglob("*") if _is_photograph(path))
        keys = (path.relative_to(self._root).as_posix() for path in found if self._is_inside(path))
        readable = list(islice((key for key in keys if self._can_be_told(key)), most))
        return sorted(readable)

    def _can_be_told(self, key: str) -> bool:
        if not _is_text(key):
            logger.warning("a photograph whose name is not UTF-8 is left out")
        return _is_text(key)

    def read(self, key: str, limit: int) -> bytes:
        path = self._inside(key)
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            if not self._is_there():
                raise _NotMounted("the folder is empty or not mounted") from error
            raise NotFound(f"{path.name}: cannot be read (any more)") from error
        if len(data) > limit:
            raise _too_large(path.name, limit)
        return data

    def _is_there(self) -> bool:
        """Return whether the folder holds anything: an unmounted one is empty or gone."""
        try:
            return any(self._root.iterdir())
        except OSError:
            return False

    def _inside(self, key: str) -> Path:
        path = self._root / _checked(key)
        if not self._is_inside(path):
            raise Forbidden("the prefix leads out of the folder")
        return path

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self._root)


class ObjectSource:
    """A prefix of object storage. Objects have no types, so photographs are recognised by the suffix of their keys."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def keys(self, prefix: str, most: int | None) -> list[str]:
        keys = self._objects.keys(_checked(prefix))
        if not keys:
            raise NotFound("no such folder")
        return [key for key in keys if is_image_name(PurePosixPath(key), SUFFIXES)][:most]

    def read(self, key: str, limit: int) -> bytes:
        name = PurePosixPath(key).name
        try:
            size = self._objects.size(_checked(key))
            if size > limit:
                raise _too_large(name, limit)
            return self._objects.get_range(key, 0, size).tobytes() if size else b""
        except MissingEntry as error:
            raise NotFound(f"{name}: cannot be read (any more)") from error


class Sources:
    """The folders that the operator allowed, each opened on first use.

    Args:
        folders: {name: a folder, or s3://bucket/prefix}.
        timeout: seconds until an operation on a folder that does not answer is given up.
    """

    def __init__(self, folders: Mapping[str, str | Path], timeout: float = 10.0) -> None:
        self._folders, self._timeout = dict(folders), timeout
        self._opened: dict[str, Source] = {}
        # A pool for each folder: one that hangs blocks its own threads, and the others go on.
        self._pools = {name: ThreadPoolExecutor(2, thread_name_prefix=f"source-{name}") for name in self._folders}

    def keys(self, location: str, most: int | None = None) -> list[str]:
        """Return the photographs of ``NAME`` or ``NAME/PREFIX`` as sorted ``NAME/KEY``.

        Args:
            most: most photographs to return, not necessarily the first ones; all if None.

        Raises:
            Forbidden: no folder of this name is allowed, or the prefix leads out of it.
            NotFound: nothing is there.
            Unavailable: the folder cannot be read now.
        """
        name, _, prefix = location.partition("/")
        return [f"{name}/{key}" for key in self._in_time(name, lambda: self._source(name).keys(prefix, most))]

    def read(self, location: str, limit: int) -> bytes:
        """Return the bytes of one photograph, named ``NAME/KEY`` as by ``keys``.

        Raises:
            Forbidden: the folder is not allowed (any more).
            NotFound: the photograph does not exist (any more).
            BodyTooLarge: it has more than ``limit`` bytes.
            Unavailable: the folder cannot be read now.
        """
        name, _, key = location.partition("/")
        return self._in_time(name, lambda: self._source(name).read(key, limit))

    def close(self) -> None:
        """Stop the threads, without waiting for operations that hang."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _source(self, name: str) -> Source:
        if name not in self._opened:  # two threads may both open it, which does no harm
            self._opened[name] = _opened(self._folders[name])
        return self._opened[name]

    def _in_time(self, name: str, work: Callable[[], T]) -> T:
        """Return the result of work on a folder, within the timeout.

        The errors of the work name the folder's location, and may name photographs: what kind they are is logged.
        """
        if name not in self._folders:
            raise Forbidden(f"no folder {name[:40]!r} is allowed here; allowed: {', '.join(self._folders) or 'none'}")
        try:
            future = self._pools[name].submit(work)
            try:
                return future.result(self._timeout)
            finally:
                future.cancel()  # work that was still queued behind an operation that hangs is dropped
        except (CancelledError, RuntimeError) as error:  # a reload has closed this pool meanwhile
            raise Unavailable("the folders are being reloaded; ask again", retry_after=1) from error
        except (FutureTimeout, StoreUnavailable, FormatError, OSError) as error:
            if isinstance(error, _NotMounted):
                problem = str(error)
            else:
                late = f"no answer within {self._timeout:.0f} s"
                problem = late if isinstance(error, FutureTimeout) else trouble_of(error)
            logger.warning("a folder of jobs cannot be read", folder=name, problem=problem)
            raise Unavailable(f"the folder {name} cannot be read now ({problem}); ask later", retry_after=30) from error


def _is_photograph(path: Path) -> bool:
    """Return whether a file has a name as photographs have; files of DICOM often have none of its suffixes."""
    if is_image_name(path, SUFFIXES):
        return path.is_file()
    plain = (
        not path.name.startswith(".") and path.name != "DICOMDIR" and (not path.suffix or path.suffix[1:].isdecimal())
    )  # such as IM0001, 1.2.8
    try:
        return plain and path.is_file() and is_dicom_file(path)
    except OSError:
        return False


def _opened(location: str | Path) -> Source:
    if "://" in str(location):
        return ObjectSource(open_objects(location, read_only=True))
    return FolderSource(Path(location))


def _checked(key: str) -> str:
    """Return a key without its last slash.

    Raises:
        Forbidden: a part of it could lead out of the folder.
        NotFound: it cannot be the name of a file.
    """
    plain = key.removesuffix("/")
    if "\0" in plain or not _is_text(plain):
        raise NotFound("no such folder")
    if plain and any(part in ("", ".", "..") for part in plain.split("/")):
        raise Forbidden("the prefix leads out of the folder")
    return plain


def _is_text(key: str) -> bool:
    """Return whether a file's name can be encoded as UTF-8; names from old archives may not be."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_large(name: str, limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"{name}: more than {limit} bytes")
