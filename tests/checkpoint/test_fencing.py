"""Jobs that meet at one prefix, on every store: sleepers that wake up late, and loads during an overwrite."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.errors import DcpCloudError
from dcp_cloud.testing.wrappers import Request, StoreWrapper
from tests.checkpoint.conftest import every_store

Place = Callable[..., str]
NUMEL = 20_000


class SleepsBefore(StoreWrapper):
    """Lets somebody else work before a certain request is sent."""

    def __init__(self, uri: str, verb: str, key: str, meanwhile: Callable[[], object]) -> None:
        super().__init__(open_store(uri))
        self._verb, self._key, self._meanwhile = verb, key, meanwhile
        self._lock = threading.Lock()
        self._has_slept = False

    def around(self, request: Request, run: Callable[[], object]) -> object:
        """Sleep once, or pass."""
        with self._lock:
            sleeps = not self._has_slept and request.verb == self._verb and request.key.endswith(self._key)
            self._has_slept |= sleeps
        if sleeps:
            self._meanwhile()
        return run()


def save(uri: str, value: float, **options: object) -> list[str]:
    """Save; give the types of what was raised."""
    try:
        dcp.save({"w": torch.full((NUMEL,), value)}, storage_writer=CloudStorageWriter(uri, **options))  # type: ignore[arg-type]
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        assert all(isinstance(cause, DcpCloudError) for cause in causes)
        return [type(cause).__name__ for cause in causes]
    return []


def load(uri: str, **options: object) -> float | str:
    """Load; give the value, or the type of what was raised."""
    state = {"w": torch.full((NUMEL,), -1.0)}
    try:
        dcp.load(state, storage_reader=CloudStorageReader(uri, **options))  # type: ignore[arg-type]
    except CheckpointException as error:
        return type(next(iter(error.failures.values()))[0]).__name__
    assert state["w"].eq(state["w"][0]).all(), "a mixture"
    return float(state["w"][0])


def assert_whole_and_alone(uri: str, value: float) -> None:
    """One checkpoint, and nothing besides."""
    assert load(uri) == value
    store = open_store(uri)
    named = {info.relative_path for info in CloudStorageReader(uri).read_metadata().storage_data.values()}
    assert {meta.key for meta in store.list()} == named | {".metadata"}
    assert not list(store.list_multiparts())


@every_store
@pytest.mark.parametrize(("overwrite", "expected"), [(True, "CommitConflictError"), (False, "CheckpointExistsError")])
def test_a_zombie_that_wakes_up_at_its_commit_changes_nothing(place: Place, overwrite: bool, expected: str) -> None:
    """A job that sleeps before its commit, while two others save: it is refused, and its data is gone."""
    uri = place()
    if overwrite:
        assert save(uri, 1.0) == []
    sleeper = SleepsBefore(uri, "put", ".metadata", lambda: (save(uri, 2.0), save(uri, 3.0)))
    assert save(uri, 9.0, store=sleeper, overwrite=overwrite) == [expected]
    assert_whole_and_alone(uri, 3.0)


@every_store
def test_a_zombie_that_wakes_up_at_its_clean_up_deletes_only_what_it_replaced(place: Place) -> None:
    """A job that has committed and sleeps before it deletes the old data, while another one replaces it."""
    uri = place()
    assert save(uri, 1.0) == []
    sleeper = SleepsBefore(uri, "delete", ".distcp", lambda: save(uri, 3.0))
    assert save(uri, 2.0, store=sleeper) == []
    assert_whole_and_alone(uri, 3.0)


@every_store
@pytest.mark.parametrize("verb", ["get", "get_range"])
def test_a_load_during_an_overwrite_is_old_or_new_or_says_so(place: Place, verb: str) -> None:
    """A reader that sleeps before it reads the commit gets the new checkpoint; one before the data, a clear error."""
    uri = place()
    assert save(uri, 1.0) == []
    key = ".metadata" if verb == "get" else ".distcp"
    sleeper = SleepsBefore(uri, verb, key, lambda: save(uri, 2.0))
    assert load(uri, store=sleeper) == (2.0 if verb == "get" else "IncompleteCheckpointError")
    assert load(uri) == 2.0
