"""A client of the service.

    with Client("http://127.0.0.1:8000", api_key="...") as client:
        answer = client.segment(Path("eye.png"))
        mask = client.mask(Path("eye.png"))

What is refused because the service is busy is asked again when the service says, a few times.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from service.schemas import FeaturesInfo, JobStatus, ModelInfo, Ready, Reloaded, SegmentResponse

Photograph = Path | bytes


class Refused(Exception):
    """The service did not answer what was asked.

    Attributes:
        status: the HTTP status.
        detail: why.
        retry_after: seconds, where the service says when to ask again.
    """

    def __init__(self, status: int, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail, self.retry_after = status, detail, retry_after


class Client:
    """Talks to one service.

    Args:
        url: of the service.
        api_key: where the operator has set some.
        timeout: seconds for each request.
        patience: how often a busy service is asked again.
        transport: how requests travel; httpx's own if None.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 300.0,
        patience: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._patience = patience

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def segment(self, photograph: Photograph | None = None, **options: Any) -> SegmentResponse:
        """Segment a photograph, or the features of ``key=``; options are those of ``POST /v1/segment``."""
        return SegmentResponse.model_validate_json(self._segment(photograph, options | {"output": "json"}))

    def mask(self, photograph: Photograph | None = None, **options: Any) -> NDArray[np.uint8]:
        """Class ids, uint8 (H, W)."""
        with Image.open(io.BytesIO(self._segment(photograph, options | {"output": "png"}))) as image:
            return np.asarray(image, dtype=np.uint8)

    def written(self, photograph: Photograph | None, output: str, **options: Any) -> bytes:
        """An answer in any of the service's outputs, as it is."""
        return self._segment(photograph, options | {"output": output})

    def features(self, photograph: Photograph, model: str | None = None, *, mirrored: bool = False) -> FeaturesInfo:
        """Have features of a photograph, and of its flips, in the store; ``key`` of the result names them."""
        options: dict[str, Any] = {"mirrored": mirrored} | ({} if model is None else {"model": model})
        response = self._request("POST", "/v1/features", params=options, files=[_file(photograph)])
        return FeaturesInfo.model_validate_json(response.content)

    def stored_features(self, key: str) -> FeaturesInfo:
        """What is kept under a key; Refused where there is nothing (any more)."""
        return FeaturesInfo.model_validate_json(self._request("GET", f"/v1/features/{key}").content)

    def block(self, key: str, block: str, timestep: int | None = None) -> NDArray[np.float32]:
        """One block of stored features, float32 (t, c, h, w)."""
        options: dict[str, Any] = {"block": block} | ({} if timestep is None else {"timestep": timestep})
        response = self._request("GET", f"/v1/features/{key}", params=options)
        maps: NDArray[np.float32] = np.load(io.BytesIO(response.content), allow_pickle=False)
        return maps

    def models(self) -> list[ModelInfo]:
        """Every model, the default first."""
        return TypeAdapter(list[ModelInfo]).validate_json(self._request("GET", "/v1/models").content)

    def reload(self) -> list[str]:
        """Have settings, keys and models read anew; the names of the models. For keys that the operator named."""
        return Reloaded.model_validate_json(self._request("POST", "/v1/reload").content).models

    def ready(self) -> Ready:
        """Whether the service is ready; Refused while it is not."""
        return Ready.model_validate_json(self._request("GET", "/readyz").content)

    def start_job(self, photographs: Sequence[Photograph] = (), folder: str | None = None, **options: Any) -> JobStatus:
        """Segment many photographs, or a folder that the operator allowed by name."""
        files: list[tuple[str, Any]] = [_file(one, f"image{i}") for i, one in enumerate(photographs)]
        if folder is not None:
            files.append(("folder", (None, folder)))  # a header takes ASCII alone
        response = self._request("POST", "/v1/jobs", params=_given(options), files=files or None)
        return JobStatus.model_validate_json(response.content)

    def job(self, job_id: str) -> JobStatus:
        """How far a job is."""
        return JobStatus.model_validate_json(self._request("GET", f"/v1/jobs/{job_id}").content)

    def jobs(self) -> list[JobStatus]:
        """The jobs of this key that are still kept, the oldest first."""
        return TypeAdapter(list[JobStatus]).validate_json(self._request("GET", "/v1/jobs").content)

    def cancel_job(self, job_id: str) -> JobStatus:
        """Stop a job."""
        return JobStatus.model_validate_json(self._request("DELETE", f"/v1/jobs/{job_id}").content)

    def delete_job(self, job_id: str) -> None:
        """Delete a finished job and its answers."""
        self._request("DELETE", f"/v1/jobs/{job_id}/results")

    def delete_features(self, key: str) -> None:
        """Delete a photograph's features and finished answers; for keys of admins."""
        self._request("DELETE", f"/v1/features/{key}")

    def finished_job(
        self, job_id: str, every: float = 1.0, on_progress: Callable[[JobStatus], None] | None = None
    ) -> JobStatus:
        """Wait until a job is done or cancelled."""
        while True:
            status = self.job(job_id)
            if on_progress is not None:
                on_progress(status)
            if status.finished is not None:
                return status
            time.sleep(every)

    def job_results(self, job_id: str) -> bytes:
        """The ZIP of a finished job."""
        return self._request("GET", f"/v1/jobs/{job_id}/results").content

    def _segment(self, photograph: Photograph | None, options: dict[str, Any]) -> bytes:
        files = None if photograph is None else [_file(photograph)]
        return self._request("POST", "/v1/segment", params=_given(options), files=files).content

    def _request(self, method: str, path: str, **how: Any) -> httpx.Response:
        """The answer; a busy service is asked again."""
        for attempt in range(self._patience + 1):
            response = self._http.request(method, path, **how)
            if response.is_success:
                return response
            refused = _refused(response)
            if refused.retry_after is None or attempt == self._patience:
                break
            time.sleep(refused.retry_after)
        raise refused


def _file(photograph: Photograph, name: str = "image") -> tuple[str, tuple[str, bytes]]:
    if isinstance(photograph, Path):
        return "image", (photograph.name, photograph.read_bytes())
    return "image", (name, photograph)


def _refused(response: httpx.Response) -> Refused:
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200]
    return Refused(response.status_code, detail, _seconds(response.headers.get("retry-after")))


def _seconds(retry_after: str | None) -> float | None:
    """Seconds to wait: a number of them, or a date (RFC 9110, 10.2.3); None of anything else."""
    if retry_after is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that are None."""
    return {name: value for name, value in options.items() if value is not None}
