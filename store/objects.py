"""Whole objects of a Zarr store, read and written synchronously.

The only module that uses zarr's asynchronous store interface. Every ``put`` is atomic: local
files are renamed into place, and object storage replaces objects as a whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

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


class Objects:
    """Keys and bytes below one location.

    Args:
        zarr_store: local folder, memory, object storage or any other Zarr store.
        location: the location, as messages show it.

    Every method raises StoreUnavailable if object storage refuses access or does not answer, after
    its client's own retries.
    """

    def __init__(self, zarr_store: Store, location: str) -> None:
        self.zarr_store = zarr_store
        self.location = location
        self._folder = Path(zarr_store.root) if isinstance(zarr_store, LocalStore) else None

    def get(self, key: str) -> bytes:
        """All bytes of one object; MissingEntry if there is none."""
        if self._folder is not None:  # not through zarr's event loop, which would cost two copies
            try:
                return (self._folder / key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise MissingEntry(f"{self.location}: no object {key}") from error
        buffer = self._wait(self.zarr_store.get(key, default_buffer_prototype()))
        if buffer is None:
            raise MissingEntry(f"{self.location}: no object {key}")
        return buffer.to_bytes()

    def get_range(self, key: str, start: int, length: int) -> NDArray[np.uint8]:
        """``length`` bytes of one object from ``start``, fewer if it ends before; MissingEntry if there is none."""
        if self._folder is not None:
            data = np.empty(length, np.uint8)  # page faults of large ``bytes`` objects slow training down
            try:
                with (self._folder / key).open("rb", buffering=0) as file:
                    file.seek(start)
                    filled = 0  # one call reads at most 2 GiB, and less on some network file systems
                    while filled < length and (count := file.readinto(data[filled:].data)):
                        filled += count
                    return data[:filled]
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                raise MissingEntry(f"{self.location}: no object {key}") from error
        wanted = RangeByteRequest(start, start + length)
        try:
            buffer = self._wait(self.zarr_store.get(key, default_buffer_prototype(), wanted))
        except StoreUnavailable:
            if self.size(key) > start:
                raise
            return np.empty(0, np.uint8)  # object storage refuses a range that starts after the end
        if buffer is None:
            raise MissingEntry(f"{self.location}: no object {key}")
        return np.frombuffer(buffer.to_bytes(), np.uint8)

    def put(self, key: str, *parts: bytes) -> None:
        """Write or replace one object, given in one or more parts; StoreFull if there is no room."""
        with self._room_for(key):
            if self._folder is not None and not self.zarr_store.read_only:
                _replace(self._folder / key, parts)
                return
            self._wait(self.zarr_store.set(key, default_buffer_prototype().buffer.from_bytes(b"".join(parts))))

    def create(self, key: str, data: bytes) -> bool:
        """Write one object unless it exists already; of several concurrent calls, one succeeds.

        Args:
            data: must differ from what others write, so that a lost response can be told from a lost race.

        Returns:
            Whether the stored object is now this one.
        """
        with self._room_for(key):
            try:
                self._wait(self.zarr_store.set_if_not_exists(key, default_buffer_prototype().buffer.from_bytes(data)))
            except OSError as error:
                if self._folder is None or error.errno not in _NO_LINKS:
                    raise
                self._create_without_links(key, data)
        try:
            return self.get(key) == data
        except MissingEntry:  # its owner has just removed it
            return False

    def _create_without_links(self, key: str, data: bytes) -> None:
        """For file systems without hard links, where a reader may see the object before it is filled."""
        assert self._folder is not None
        with contextlib.suppress(FileExistsError), (self._folder / key).open("xb") as file:
            file.write(data)

    def require_writable(self) -> None:
        """Write a small object and remove it again; raises what ``put`` raises."""
        name = f"{HEALTH}/{uuid.uuid4().hex}"
        self.put(name, b"alive")
        self.remove(name)

    def exists(self, key: str) -> bool:
        return self._wait(self.zarr_store.exists(key))

    def size(self, key: str) -> int:
        """Bytes of one object; MissingEntry if there is none."""
        try:
            return self._wait(self.zarr_store.getsize(key))
        except FileNotFoundError as error:
            raise MissingEntry(f"{self.location}: no object {key}") from error

    def names(self, prefix: str) -> list[str]:
        """Names directly below a prefix, sorted."""
        found = self._wait(_collected(lambda: self.zarr_store.list_dir(prefix)))
        return sorted({name.rstrip("/") for name in found} - {""})

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects below a prefix, sorted."""
        return sorted(self._wait(_collected(lambda: self.zarr_store.list_prefix(f"{prefix}/" if prefix else ""))))

    def remove(self, key: str) -> None:
        """Remove one object, if it exists."""
        self._wait(self.zarr_store.delete(key))

    def delete(self, prefix: str) -> None:
        """Remove everything below a prefix."""
        with contextlib.suppress(FileNotFoundError):  # another process is removing the same objects
            self._wait(self.zarr_store.delete_dir(prefix))

    def free_bytes(self) -> int | None:
        """Free bytes on the disk of a local store; None for other storage, where that cannot be known."""
        if self._folder is None:
            return None
        folder = self._folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _wait(self, operation: Coroutine[Any, Any, T]) -> T:
        try:
            return sync(operation)
        except _client_errors() as error:
            reason = str(error).strip().splitlines()[0]
            raise StoreUnavailable(
                f"{self.location}: the object storage refuses access or does not answer ({reason}); check endpoint and "
                "credentials (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) and run the same command again"
            ) from error

    @contextlib.contextmanager
    def _room_for(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and self._folder is None:
                raise StoreUnavailable(f"{self.location}: there is no such bucket; create it first") from error
            if is_disk_full(error):
                raise StoreFull(
                    f"{self.location}: no room left while writing {key}; free some space and run the same command "
                    "again; it continues where it stopped"
                ) from error
            raise


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file under a temporary name, of the form that zarr uses too, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb", buffering=0) as file:
            for part in parts:
                _write_all(file, part)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


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
        FormatError: the URL is of an unsupported kind, the path is a file, or obstore is not installed.
    """
    if isinstance(location, Store):
        return Objects(location, str(location))
    if str(location) == "memory://":
        return Objects(MemoryStore(), "memory://")
    if str(location).startswith("s3://"):
        return Objects(_s3(str(location), read_only), str(location))
    if "://" in str(location):
        raise FormatError(
            f"{location}: expected a folder, s3://bucket/prefix or memory://; pass other storage as a zarr Store"
        )
    folder = Path(location).expanduser()
    if read_only and not folder.is_dir():
        raise MissingEntry(f"{folder}: no such store; `extractor run --dataset ... --store {folder}` makes it")
    if folder.exists() and not folder.is_dir():
        raise FormatError(f"{folder}: is a file, expected a folder")
    return Objects(LocalStore(folder, read_only=read_only), str(folder))


def _s3(url: str, read_only: bool) -> Store:
    """S3 or a compatible service; endpoint, region and credentials come from the usual environment variables."""
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise FormatError(f"{url}: object storage needs obstore (the extra `s3`)") from error
    from zarr.storage import ObjectStore

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if (endpoint or "").startswith("http:") else {}
    if endpoint:
        options["endpoint"] = endpoint
    if "AWS_REGION" not in os.environ and "AWS_DEFAULT_REGION" not in os.environ:
        options["region"] = "us-east-1"
    return ObjectStore(S3Store.from_url(url.rstrip("/"), **options), read_only=read_only)
