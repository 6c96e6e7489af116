"""An audit that could not ask does not say that nothing was found."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import verdict

FINE: dict[str, Any] = {"name": "numpy", "version": "2.0", "vulns": []}
TORCH: dict[str, Any] = {"name": "torch", "skip_reason": "not on PyPI"}
UNKNOWN: dict[str, Any] = {"name": "zarr", "skip_reason": "not on PyPI"}
BAD: dict[str, Any] = {"name": "pillow", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}


@pytest.mark.parametrize(
    ("dependencies", "code", "said"),
    [
        ([FINE, TORCH], 0, "2 packages audited, 0 with"),
        ([FINE, BAD], 1, "pillow 1: CVE-1, mended in 2"),
        ([UNKNOWN, TORCH], 2, "1 of 2 packages could NOT be audited"),
        (None, 2, "NOTHING was audited"),
    ],
)
def test_the_verdict(dependencies: list[dict[str, Any]] | None, code: int, said: str) -> None:
    found, lines = verdict(None if dependencies is None else {"dependencies": dependencies})
    assert found == code
    assert said in "\n".join(lines)
