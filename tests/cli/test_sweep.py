"""``dcp-cloud sweep``: what it deletes, what it leaves, what it says."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcp_cloud.errors import PermissionDeniedError
from dcp_cloud.stores.base import MultipartUpload
from dcp_cloud.stores.memory import MemoryStore
from tests.cli.conftest import Ran, compare_golden
from tests.cli.damage import rewrite

RUN = "memory://bucket/run"
ID = "0123456789abcdef" * 2
ORPHAN = f"run/step-300/__0_0.{ID}.distcp"


@pytest.fixture
def crashed(bucket: MemoryStore) -> Iterator[MemoryStore]:
    """The bucket with what a crashed save has left: an object and an unfinished upload."""
    bucket.put(ORPHAN, [memoryview(bytes(5_000))])
    bucket.create_multipart(f"run/step-300/__1_0.{ID}.distcp")
    yield bucket
    for upload in bucket.list_multiparts():
        upload.abort()


def names(store: MemoryStore) -> set[str]:
    return {meta.key for meta in store.list()}


def test_leftovers_are_swept(crashed: MemoryStore, run: Callable[..., Ran]) -> None:
    """What no commit names goes, all checkpoints stay, and the output lists what went."""
    before = names(crashed)
    ran = run("sweep", RUN, "--older-than", "0s")
    assert (ran.code, ran.err) == (0, "")
    assert names(crashed) == before - {ORPHAN}
    assert list(crashed.list_multiparts()) == []
    compare_golden("sweep.txt", ran.out)
    again = run("sweep", RUN, "--older-than", "0s")
    assert (again.code, again.out) == (0, f"{RUN}: nothing to sweep\n")


def test_by_default_nothing_of_today_is_swept(crashed: MemoryStore, run: Callable[..., Ran]) -> None:
    """Without ``--older-than`` a day has to pass; the output says how much is too young."""
    before = names(crashed)
    ran = run("sweep", RUN)
    assert (ran.code, names(crashed)) == (0, before)
    compare_golden("sweep-young.txt", ran.out)


def test_dry_run_deletes_nothing(crashed: MemoryStore, run: Callable[..., Ran]) -> None:
    """``--dry-run`` tells the same in other words."""
    before = names(crashed)
    ran = run("sweep", RUN, "--older-than", "0s", "--dry-run")
    assert (ran.code, names(crashed)) == (0, before)
    assert f"{RUN}: would be swept\n" in ran.out
    assert len(list(crashed.list_multiparts())) == 1


def test_json_tells_everything(crashed: MemoryStore, run: Callable[..., Ran]) -> None:
    """The document has each object and upload, with times in UTC."""
    ran = run("sweep", RUN, "--older-than", "0s", "--json")
    assert json.loads(ran.out)["schema"] == "dcp-cloud/sweep"
    compare_golden("sweep-json.txt", ran.out)


def test_an_unreadable_commit_is_named(crashed: MemoryStore, run: Callable[..., Ran]) -> None:
    """A directory with a damaged commit is left alone and named; the rest is swept, and the exit code is 1."""
    extra = f"run/step-100/__5_0.{ID}.distcp"
    crashed.put(extra, [memoryview(b"x")])
    rewrite(crashed, "run/step-100/.metadata", lambda data: data[:100])
    ran = run("sweep", RUN, "--older-than", "0s")
    assert ran.code == 1
    assert extra in names(crashed)
    assert ORPHAN not in names(crashed)
    assert "left alone: step-100, whose commit step-100/.metadata cannot be read" in ran.err


def test_uploads_that_may_not_be_listed_end_with_four(
    crashed: MemoryStore, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data is swept, and the exit code says that the rights do not suffice for the uploads."""

    def refuse(_store: MemoryStore, prefix: str = "") -> Iterator[MultipartUpload]:
        raise PermissionDeniedError("not allowed", key=prefix)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "list_multiparts", refuse)
        ran = run("sweep", RUN, "--older-than", "0s")
    assert ran.code == 4
    assert "unfinished uploads could not be listed" in ran.err
    assert ORPHAN not in names(crashed)


@pytest.mark.parametrize("age", ["", "yesterday", "-1h", "1 week"])
def test_an_age_that_makes_no_sense_is_wrong_use(bucket: MemoryStore, run: Callable[..., Ran], age: str) -> None:
    """What is no duration is refused before anything is sent."""
    ran = run("sweep", RUN, f"--older-than={age}")
    assert (ran.code, ran.out) == (2, "")
    assert "no duration" in ran.err


def test_old_leftovers_on_a_disk_are_swept_by_default(folder: Path, run: Callable[..., Ran]) -> None:
    """On a local disk the temporary files of crashed writes are found too; age decides."""
    shutil.copytree(folder / "step-100", folder / "step-300")
    (folder / "step-300" / ".metadata").unlink()
    temporary = folder / "step-300" / ".dcp-cloud-put-0123"
    temporary.write_bytes(b"half")
    young = next((folder / "step-300").glob("__1_0.*"))
    two_days_ago_s = time.time() - 2 * 86400
    for path in (*folder.rglob("*.distcp"), temporary):
        os.utime(path, (two_days_ago_s, two_days_ago_s))
    os.utime(young)
    document = json.loads(run("sweep", str(folder), "--json").out)
    assert [one["key"].rpartition("/")[0] for one in document["orphans"]] == ["step-300"]
    assert [one["key"] for one in document["uploads"]] == ["step-300/.dcp-cloud-put-0123"]
    assert (document["young"], document["unreadable"]) == (1, [])
    assert os.listdir(folder / "step-300") == [young.name]
    assert run("verify", str(folder / "step-100")).code == 0
