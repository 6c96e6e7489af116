"""Files that are replaced as a whole, and disks that are full."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from store import StoreFull
from store.files import raising_store_full, replaced


def test_what_goes_wrong_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("former")
    with pytest.raises(RuntimeError, match="of another kind"), replaced(path) as partial:
        partial.write_text("half")
        raise RuntimeError("of another kind")
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]
    with replaced(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9),  # a quota of inodes, say
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 313280 vs 313168"), 0),  # torch's
    ],
)
def test_a_full_disk_is_called_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(StoreFull, match=r"state: there is no room left on its disk"), replaced(tmp_path / "state"):
        raise error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreFull, match="the store's own words"), raising_store_full(tmp_path / "state"):
        raise StoreFull("the store's own words")
