"""Whole objects of a store, read and written synchronously: files of a folder, or objects of any Zarr store."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO, RawIOBase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from store.errors import FormatError, MissingEntry, StoreFull, StoreUnavailable
from store.files import is_disk_full

T = TypeVar("T")
HEALTH = "health"
"""Prefix of the small objects that are written to find out whether the store is writable."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Objects(ABC):
    """Keys and bytes below one location.

    Every ``put`` is atomic. Methods raise StoreFull if there is no room, and StoreUnavailable if object storage refuses
    access or does not answer, after its client's own retries.

    Attributes:
        location: the location, as messages show it.
    """

    location: str

    @abstractmethod
    def get(self, key: str) -> bytes:
        """All bytes of one object; MissingEntry if there is none."""

    @abstractmethod
    def get_range(self, key: str, start: int, length: int) -> NDArray[np.uint8]:
        """``length`` bytes of one object from ``start``, fewer if it ends before; MissingEntry if there is none."""

    @abstractmethod
    def put(self, key: str, *parts: bytes) -> None:
        """Write or replace one object, given in one or more parts."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write one object unless it exists already; of several concurrent calls, one succeeds.

        Args:
            data: must differ from what others write, so that a lost response can be told from a lost race.

        Returns:
            Whether the stored object is now this one.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes of one object; MissingEntry if there is none."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted."""

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a prefix, sorted."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove one object, if it exists."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Remove everything below a prefix."""

    @abstractmethod
    def writable(self) -> Objects:
        """The same location, opened for writing; itself where that cannot be done."""

    def free_bytes(self) -> int | None:
        """Free bytes on the disk of a folder; None for other storage, where that cannot be known."""
        return None

    def modified(self, key: str) -> float | None:  # noqa: ARG002
        """When a file of a folder was written, seconds since 1970; None if it is gone, and for other storage."""
        return None

    def require_writable(self) -> None:
        """Write a small object and remove it again; raises what ``put`` raises."""
        name = f"{HEALTH}/{uuid.uuid4().hex}"
        self.put(name, b"alive")
        self.remove(name)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.get(key) == data
        except MissingEntry:  # its owner has just removed it
            return False


class FolderObjects(Objects):
    """Objects as files of a local folder. Zarr's own store would take them through its event loop, at several times
    the cost.

    Args:
        folder: need not exist before the first object is written.
        location: how messages name it.
        read_only: refuse to write and to remove.
    """

    def __init__(self, folder: Path, location: str, *, read_only: bool = False) -> None:
        self._folder, self.location, self._read_only = folder, location, read_only

    def get(self, key: str) -> bytes:
        with self._missing(key):
            return (self._folder / key).read_bytes()

    def get_range(self, key: str, start: int, length: int) -> NDArray[np.uint8]:
        data = np.empty(length, np.uint8)  # page faults of large ``bytes`` objects slow training down
        with self._missing(key), (self._folder / key).open("rb", buffering=0) as file:
            file.seek(start)
            filled = 0  # one call reads at most 2 GiB, and less on some network file systems
            while filled < length and (count := file.readinto(data[filled:].data)):
                filled += count
        return data[:filled]

    def put(self, key: str, *parts: bytes) -> None:
        with self._written(key, parts) as partial:
            partial.replace(self._folder / key)

    def create(self, key: str, data: bytes) -> bool:
        with self._written(key, [data]) as partial:
            try:
                os.link(partial, self._folder / key)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                self._create_without_links(key, data)
        return self._holds(key, data)  # some network file systems say that a link exists which they have just made

    def _create_without_links(self, key: str, data: bytes) -> None:
        """For file systems without hard links, where a reader may see the object before it is filled."""
        with suppress(FileExistsError), (self._folder / key).open("xb") as file:
            file.write(data)

    def exists(self, key: str) -> bool:
        return (self._folder / key).is_file()

    def size(self, key: str) -> int:
        with self._missing(key):
            return (self._folder / key).stat().st_size

    def names(self, prefix: str) -> list[str]:
        try:
            return sorted(path.name for path in (self._folder / prefix).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def keys(self, prefix: str) -> list[str]:
        found = (Path(folder) / name for folder, _, names in os.walk(self._folder / prefix) for name in names)
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

    def remove(self, key: str) -> None:
        self._refuse_if_read_only()
        (self._folder / key).unlink(missing_ok=True)
        self._remove_empty_parents(key)

    def delete(self, prefix: str) -> None:
        self._refuse_if_read_only()
        while (self._folder / prefix).is_dir():
            with suppress(FileNotFoundError):  # another process is removing some of the same objects
                shutil.rmtree(self._folder / prefix)
        self._remove_empty_parents(prefix)

    def _remove_empty_parents(self, key: str) -> None:
        with suppress(OSError):  # until one that is not empty
            for parent in list(PurePosixPath(key).parents)[:-1]:
                (self._folder / parent).rmdir()

    def writable(self) -> Objects:
        return FolderObjects(self._folder, self.location)

    def free_bytes(self) -> int | None:
        folder = self._folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def modified(self, key: str) -> float | None:
        try:
            return (self._folder / key).stat().st_mtime
        except OSError:
            return None

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise ValueError(f"{self.location}: opened for reading only")

    @contextmanager
    def _missing(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise MissingEntry(f"{self.location}: no object {key}") from error

    @contextmanager
    def _written(self, key: str, parts: Iterable[bytes]) -> Iterator[Path]:
        """A temporary file with these parts beside an object, to be renamed or linked to it; removed afterwards."""
        self._refuse_if_read_only()
        path = self._folder / key
        partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")  # of the form that zarr uses, too
        try:
            with _opened_for_writing(partial) as file:
                for part in parts:
                    _write_all(file, part)
            yield partial
        except OSError as error:
            if is_disk_full(error):
                raise StoreFull(_no_room(self.location, key)) from error
            raise
        finally:
            partial.unlink(missing_ok=True)


class ZarrObjects(Objects):
    """Objects of a Zarr store: memory, object storage or any other.

    The only class that uses zarr's asynchronous interface.
    """

    def __init__(self, zarr_store: Store, location: str) -> None:
        self._store, self.location = zarr_store, location

    def get(self, key: str) -> bytes:
        buffer = self._wait(self._store.get(key, default_buffer_prototype()))
        if buffer is None:
            raise MissingEntry(f"{self.location}: no object {key}")
        return buffer.to_bytes()

    def get_range(self, key: str, start: int, length: int) -> NDArray[np.uint8]:
        wanted = RangeByteRequest(start, start + length)
        try:
            buffer = self._wait(self._store.get(key, default_buffer_prototype(), wanted))
        except StoreUnavailable:
            if self.size(key) > start:
                raise
            return np.empty(0, np.uint8)  # object storage refuses a range that starts after the end
        if buffer is None:
            raise MissingEntry(f"{self.location}: no object {key}")
        return np.frombuffer(buffer.to_bytes(), np.uint8)

    def put(self, key: str, *parts: bytes) -> None:
        with self._room_for(key):
            self._wait(self._store.set(key, default_buffer_prototype().buffer.from_bytes(b"".join(parts))))

    def create(self, key: str, data: bytes) -> bool:
        with self._room_for(key):
            self._wait(self._store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(data)))
        return self._holds(key, data)

    def exists(self, key: str) -> bool:
        return self._wait(self._store.exists(key))

    def size(self, key: str) -> int:
        try:
            return self._wait(self._store.getsize(key))
        except FileNotFoundError as error:
            raise MissingEntry(f"{self.location}: no object {key}") from error

    def names(self, prefix: str) -> list[str]:
        found = self._wait(_collected(lambda: self._store.list_dir(prefix)))
        return sorted({name.rstrip("/") for name in found} - {""})

    def keys(self, prefix: str) -> list[str]:
        return sorted(self._wait(_collected(lambda: self._store.list_prefix(f"{prefix}/" if prefix else ""))))

    def remove(self, key: str) -> None:
        self._wait(self._store.delete(key))

    def delete(self, prefix: str) -> None:
        with suppress(FileNotFoundError):  # another process is removing the same objects
            self._wait(self._store.delete_dir(prefix))

    def writable(self) -> Objects:
        try:
            return ZarrObjects(self._store.with_read_only(False), self.location)
        except NotImplementedError:
            return self

    def _wait(self, operation: Coroutine[Any, Any, T]) -> T:
        try:
            return sync(operation)
        except _client_errors() as error:
            if "NoSuchBucket" in str(error):
                raise StoreUnavailable(_no_bucket(self.location)) from error
            reason = str(error).strip().splitlines()[0]
            raise StoreUnavailable(
                f"{self.location}: the object storage refuses access or does not answer ({reason}); check endpoint and "
                "credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) and run the same command again"
            ) from error

    @contextmanager
    def _room_for(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise StoreUnavailable(_no_bucket(self.location)) from error
        except OSError as error:
            if is_disk_full(error):
                raise StoreFull(_no_room(self.location, key)) from error
            raise


def _no_bucket(location: str) -> str:
    return f"{location}: there is no such bucket; create it first"


def _no_room(location: str, key: str) -> str:
    return (
        f"{location}: no room left while writing {key}; free some space and run the same command again; it continues "
        "where it stopped"
    )


def _opened_for_writing(path: Path) -> FileIO:
    """Open a new file, whose folder another process may remove, while it is empty, as soon as it is made."""
    for _ in range(100):
        with suppress(FileNotFoundError, FileExistsError):  # what mkdir raises depends on the moment
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb", buffering=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb", buffering=0)


def _write_all(file: RawIOBase, data: bytes) -> None:
    """Write all of ``data``: one call writes at most 2 GiB, and less if the disk fills up; the next one then raises."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


async def _collected(start: Callable[[], AsyncIterator[T]]) -> list[T]:
    return [item async for item in start()]


def _client_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the object storage client, if it has been imported; not that of a missing object."""
    module = sys.modules.get("obstore.exceptions")
    if module is None:
        return ()
    return (module.GenericError, module.PermissionDeniedError, module.UnauthenticatedError, module.InvalidPathError)


def open_objects(location: str | Path | Store, *, read_only: bool = False) -> Objects:
    """Open a local folder, ``memory://``, ``s3://bucket/prefix`` or an existing Zarr store.

    Raises:
        MissingEntry: ``read_only``, and the folder does not exist.
        FormatError: the URL is of an unsupported kind, the path is a file, obstore is not installed, or a Zarr store
            cannot be opened ``read_only``.
    """
    if isinstance(location, LocalStore):
        return open_objects(location.root, read_only=read_only or location.read_only)
    if isinstance(location, Store):
        return ZarrObjects(_read_only(location) if read_only else location, str(location))
    if str(location) == "memory://":
        return ZarrObjects(MemoryStore(), "memory://")
    if str(location).startswith("s3://"):
        return ZarrObjects(_s3(str(location), read_only), str(location))
    if "://" in str(location):
        raise FormatError(
            f"{location}: expected a folder, s3://bucket/prefix or memory://; pass other storage as a zarr Store"
        )
    folder = Path(location).expanduser()
    if read_only and not folder.is_dir():
        raise MissingEntry(f"{folder}: no such store; `extractor run --dataset ... --store {folder}` makes it")
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"{folder}: is a file, expected a folder")
    return FolderObjects(folder, str(folder), read_only=read_only)


def _read_only(store: Store) -> Store:
    """The same storage, opened for reading only; FormatError if its kind cannot be."""
    if store.read_only:
        return store
    try:
        return store.with_read_only(True)
    except NotImplementedError as error:
        raise FormatError(f"{store}: open it with read_only=True yourself; its kind offers no such view") from error


def _s3(url: str, read_only: bool) -> Store:
    """S3 or a compatible service; endpoint, region and credentials come from the usual environment variables."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise FormatError(f"{url}: object storage needs obstore (the extra `s3`)") from error
    from zarr.storage import ObjectStore

    if not urlsplit(url).netloc:
        raise FormatError(f"{url}: expected s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if (endpoint or "").startswith("http:") else {}
    if endpoint:
        options["endpoint"] = endpoint
    if "AWS_REGION" not in os.environ and "AWS_DEFAULT_REGION" not in os.environ:
        options["region"] = "us-east-1"
    return ObjectStore(S3Store.from_url(url.rstrip("/"), **options), read_only=read_only)
