"""The answers of a job as a ZIP that is sent while it is made."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable

from service.job_record import JobRecord, as_report, as_table


async def archived(record: JobRecord, result: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    """Yield a ZIP of a job's answers, ``images.csv`` and ``job.json`` in pieces.

    Args:
        result: reads the answer to the photograph of this number.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # answers are compressed already
        for number in range(len(record.items)):
            if (file := record.file_of(number)) is not None:
                archive.writestr(file, await result(number))
                yield sink.taken()
        archive.writestr("images.csv", as_table(record))
        archive.writestr("job.json", json.dumps(as_report(record), indent=1))
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A write-only stream for a ZIP, whose content is taken away in pieces; it cannot seek."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]  # any buffer
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """Return what was written since the last call."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
