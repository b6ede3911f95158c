"""What crashes leave on a local disk, and how it is found."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from dcp_cloud.errors import NotFoundError
from dcp_cloud.stores.base import MultipartUpload, Part
from dcp_cloud.stores.local import LocalStore
from dcp_cloud.stores.local_leftover import LocalLeftover, find_leftover


@pytest.fixture(params=["file", "upload"])
def leftover(request: pytest.FixtureRequest, tmp_path: Path) -> LocalLeftover:
    """The temporary file of a write, or an upload whose abort broke off after its name was removed."""
    store = LocalStore(str(tmp_path))
    if request.param == "file":
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / ".dcp-cloud-put-0123").write_bytes(b"half")
    else:
        upload = store.create_multipart("a/b")
        upload.put_part(0, [memoryview(b"part")])
        os.unlink(os.path.join(upload.directory, "name"))
    [found] = store.list_multiparts("a")
    assert isinstance(found, LocalLeftover)
    return found


def test_a_leftover_is_found_with_its_age_and_is_no_object(leftover: LocalLeftover, tmp_path: Path) -> None:
    """It is listed with the unfinished uploads, with the time of its last change, but not among the objects."""
    assert isinstance(leftover, MultipartUpload)
    assert leftover.key.startswith("a/.dcp-cloud-")
    assert leftover.started_at is not None
    assert abs(datetime.now(timezone.utc) - leftover.started_at) < timedelta(minutes=5)
    assert list(LocalStore(str(tmp_path)).list()) == []


def test_a_leftover_can_only_be_dropped(leftover: LocalLeftover, tmp_path: Path) -> None:
    """Nobody can carry it on; dropping it twice does nothing."""
    with pytest.raises(NotFoundError):
        leftover.put_part(0, [memoryview(b"x")])
    with pytest.raises(NotFoundError):
        leftover.complete([Part(index=0, token="t", size_bytes=1)])
    leftover.abort()
    leftover.abort()
    assert os.listdir(tmp_path / "a") == []


def test_what_is_gone_is_no_leftover(tmp_path: Path) -> None:
    """A write that ends while the directory is listed leaves nothing to report."""
    assert find_leftover(str(tmp_path / ".dcp-cloud-put-0123"), ".dcp-cloud-put-0123") is None


def test_foreign_names_are_no_leftovers(tmp_path: Path) -> None:
    """Only the names that this store makes are its leftovers, not everything that resembles them."""
    (tmp_path / ".dcp-cloud-uploads").mkdir()  # pieces of another store, copied here
    (tmp_path / ".dcp-cloud-put").write_bytes(b"")
    assert list(LocalStore(str(tmp_path)).list_multiparts()) == []
