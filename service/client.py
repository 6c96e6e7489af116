"""A client of the service.

    with Client("http://127.0.0.1:8000", api_key="...") as client:
        answer = client.segment(Path("eye.png"))
        mask = client.mask(Path("eye.png"))

A request that is refused because the service is busy is retried a few times, when its Retry-After says.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from service.schemas import FeaturesInfo, JobStatus, ModelInfo, Ready, Reloaded, SegmentResponse

Photograph = Path | bytes
T = TypeVar("T")


class Refused(Exception):
    """The service answered with an error.

    Attributes:
        status: the HTTP status.
        detail: the reason that the service gave.
        retry_after: seconds after which to retry; None if the service did not say.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.retry_after = status, detail, retry_after


class Unreachable(Exception):
    """The service cannot be reached, or went away before it answered."""


class Client:
    """A client of one service.

    Requests raise Refused if the service answers with an error, and Unreachable if it does not answer.

    Args:
        url: base URL of the service.
        api_key: needed if the operator has set keys.
        timeout: seconds that each step of a request may take: to connect, to send, to receive.
        retries: how many times a request is retried while the service is busy; one that only reads, also while it
            cannot be reached, as during a restart.
        transport: transport of httpx; its default if None.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {b"Authorization": f"Bearer {api_key}".encode()}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def segment(self, photograph: Photograph | None = None, **options: Any) -> SegmentResponse:
        """Segment a photograph, or stored features given by ``key=``; options are those of ``POST /v1/segment``."""
        return SegmentResponse.model_validate_json(self._segment(photograph, options | {"output": "json"}))

    def mask(self, photograph: Photograph | None = None, **options: Any) -> NDArray[np.uint8]:
        """Segment as ``segment`` does, but return the label map alone: class ids, uint8 (H, W)."""
        with Image.open(io.BytesIO(self._segment(photograph, options | {"output": "png"}))) as image:
            return np.asarray(image, dtype=np.uint8)

    def segment_as(self, photograph: Photograph | None, output: str, **options: Any) -> bytes:
        """The answer in the format ``output``, such as ``npz`` or ``dicom-seg``, as the bytes that were received."""
        return self._segment(photograph, options | {"output": output})

    def features(self, photograph: Photograph, model: str | None = None, *, mirrored: bool = False) -> FeaturesInfo:
        """Store the features of a photograph, with ``mirrored`` also of its mirror images; the result has their key."""
        options: dict[str, Any] = {"mirrored": mirrored} | ({} if model is None else {"model": model})
        response = self._request("POST", "/v1/features", params=options, files=[_file(photograph)])
        return FeaturesInfo.model_validate_json(response.content)

    def stored_features(self, key: str) -> FeaturesInfo:
        """Describe the features stored under a key; Refused with status 404 if there are none (any more)."""
        return FeaturesInfo.model_validate_json(self._request("GET", f"/v1/features/{key}").content)

    def block(self, key: str, block: str, timestep: int | None = None) -> NDArray[np.float32]:
        """One block of stored features, float32 (t, c, h, w); of a single timestep t = 1."""
        options: dict[str, Any] = {"block": block} | ({} if timestep is None else {"timestep": timestep})
        response = self._request("GET", f"/v1/features/{key}", params=options)
        maps: NDArray[np.float32] = np.load(io.BytesIO(response.content), allow_pickle=False)
        return maps

    def models(self) -> list[ModelInfo]:
        """All models of the service, the default first."""
        return TypeAdapter(list[ModelInfo]).validate_json(self._request("GET", "/v1/models").content)

    def reload(self) -> list[str]:
        """Reload settings, keys and models, and return the models' names; only for keys named in ``admins``."""
        return Reloaded.model_validate_json(self._request("POST", "/v1/reload").content).models

    def ready(self) -> Ready:
        """The readiness of the service; Refused while it is not ready."""
        return Ready.model_validate_json(self._request("GET", "/readyz").content)

    def start_job(self, photographs: Sequence[Photograph] = (), folder: str | None = None, **options: Any) -> JobStatus:
        """Start a job that segments many photographs, or a folder that the operator allowed by name."""
        files: list[tuple[str, Any]] = [_file(one, f"image{i}") for i, one in enumerate(photographs)]
        if folder is not None:
            files.append(("folder", (None, folder)))  # a form field and not X-Folder: headers are limited to ASCII
        response = self._request("POST", "/v1/jobs", params=_given(options), files=files or None)
        return JobStatus.model_validate_json(response.content)

    def job(self, job_id: str) -> JobStatus:
        """The state and progress of a job."""
        return JobStatus.model_validate_json(self._request("GET", f"/v1/jobs/{job_id}").content)

    def jobs(self) -> list[JobStatus]:
        """The jobs of this key that are still kept, oldest first."""
        return TypeAdapter(list[JobStatus]).validate_json(self._request("GET", "/v1/jobs").content)

    def cancel_job(self, job_id: str) -> JobStatus:
        """Cancel a job after the photograph in progress."""
        return JobStatus.model_validate_json(self._request("DELETE", f"/v1/jobs/{job_id}").content)

    def delete_job(self, job_id: str) -> None:
        """Delete a finished job and its results."""
        self._request("DELETE", f"/v1/jobs/{job_id}/results")

    def delete_features(self, key: str) -> None:
        """Delete the features and cached answers of a photograph; only for keys named in ``admins``."""
        self._request("DELETE", f"/v1/features/{key}")

    def wait_for_job(
        self,
        job_id: str,
        poll_seconds: float = 1.0,
        on_progress: Callable[[JobStatus], None] | None = None,
        timeout: float | None = None,
    ) -> JobStatus:
        """Wait until a job is done or cancelled, asking for its state every ``poll_seconds``.

        Args:
            timeout: seconds after which TimeoutError is raised; None waits for ever.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            status = self.job(job_id)
            if on_progress is not None:
                on_progress(status)
            if status.finished is not None:
                return status
            left = poll_seconds if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the job {job_id} is {status.state} after {timeout:g} s")
            time.sleep(min(poll_seconds, left))

    def job_results(self, job_id: str) -> bytes:
        """The ZIP with the results of a finished job."""
        return self._request("GET", f"/v1/jobs/{job_id}/results").content

    def save_job_results(self, job_id: str, path: Path) -> None:
        """Write the ZIP with the results of a finished job to a file, piece by piece; it may be larger than memory."""
        partial = path.with_name(f"{path.name}.partial")

        def download() -> None:
            with self._http.stream("GET", f"/v1/jobs/{job_id}/results") as response, partial.open("wb") as file:
                if not response.is_success:
                    response.read()
                    raise _refused(response)
                for piece in response.iter_bytes():
                    file.write(piece)

        try:
            self._retrying(download, only_reads=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _segment(self, photograph: Photograph | None, options: dict[str, Any]) -> bytes:
        files = None if photograph is None else [_file(photograph)]
        return self._request("POST", "/v1/segment", params=_given(options), files=files).content

    def _request(self, method: str, path: str, **how: Any) -> httpx.Response:
        """Send a request, retrying while the service is busy."""

        def send() -> httpx.Response:
            response = self._http.request(method, path, **how)
            if not response.is_success:
                raise _refused(response)
            return response

        return self._retrying(send, only_reads=method == "GET")

    def _retrying(self, work: Callable[[], T], *, only_reads: bool) -> T:
        """Return the result of work, retried while the service is busy, and if it only reads while it is away."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                return work()
            except httpx.TransportError as error:
                if last or not only_reads:  # it may have begun what it was asked for
                    raise Unreachable(f"{self._http.base_url} does not answer: {error}") from error
                time.sleep(2.0**attempt)
            except Refused as refused:
                if refused.retry_after is None or last:
                    raise
                time.sleep(refused.retry_after)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _file(photograph: Photograph, name: str = "image") -> tuple[str, tuple[str, bytes]]:
    if isinstance(photograph, Path):
        return "image", (photograph.name, photograph.read_bytes())
    if isinstance(photograph, bytes | bytearray | memoryview):
        return "image", (name, bytes(photograph))
    raise TypeError(f"expected a Path or the bytes of a photograph, got {photograph!r}")  # httpx would send a text


def _refused(response: httpx.Response) -> Refused:
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200]
    return Refused(response.status_code, detail, _seconds(response.headers.get("retry-after")))


def _seconds(retry_after: str | None) -> float | None:
    """The seconds to wait by a Retry-After header, a number or a date (RFC 9110, 10.2.3); None if it is neither."""
    if retry_after is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
