"""Whether the objects of all ranks are seen, by a listing and one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.storage import WriteResult

from dcp_cloud.checkpoint.presence import check_stored
from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import IncompleteCheckpointError, PermissionDeniedError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing import Fault
from dcp_cloud.testing.wrappers import Request, StoreWrapper
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from tests.unit.checkpoint.place import faulty, new_store


def results(keys: list[str]) -> list[list[WriteResult]]:
    """Make two items of 10 bytes in each object, one object for each rank."""
    return [
        [WriteResult(MetadataIndex(f"{key}{n}"), size_in_bytes=10, storage_data=(key, 10 * n)) for n in (1, 2)]
        for key in keys
    ]


def check(store: ObjectStore, keys: list[str]) -> None:
    check_stored(RetryingStore(store, Retrier(config=RetryConfig())), results(keys), lambda end: end, where="m://run")


def stored(count: int, size_bytes: int = 20) -> tuple[Any, list[str]]:
    store = new_store()
    keys = [f"__{rank}_0.distcp" for rank in range(count)]
    for key in keys:
        store.put(key, [memoryview(bytes(size_bytes))])
    return store, keys


class Lagging(StoreWrapper):
    """Lists nothing yet."""

    def around(self, request: Request, run: Callable[[], Any]) -> Any:
        return iter(()) if request.verb == "list" else run()


@pytest.mark.parametrize("count", [2, 40])
def test_objects_that_are_there_pass(count: int) -> None:
    """Objects of all ranks are seen, also where the listing lags behind or is refused."""
    store, keys = stored(count)
    check(store, keys)
    check(Lagging(store), keys)
    check(faulty(store, Fault("refuse", verb="list")), keys)


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("lags", [False, True])
def test_an_object_that_is_not_there_is_told(count: int, lags: bool) -> None:
    """An object that is gone, or too short, is told with its rank."""
    store, keys = stored(count)
    seen = Lagging(store) if lags else store
    store.put(keys[-1], [memoryview(bytes(19))])
    with pytest.raises(IncompleteCheckpointError, match=f"rank {count - 1} .*has 19 of 20 bytes"):
        check(seen, keys)
    store.delete([keys[-1]])
    with pytest.raises(IncompleteCheckpointError, match=f"rank {count - 1} .*is not here") as caught:
        check(seen, keys)
    assert caught.value.key == "m://run"


def test_a_refusal_is_no_absence() -> None:
    """A store that does not answer the question is heard as it is."""
    store, keys = stored(2)
    with pytest.raises(PermissionDeniedError):
        check(faulty(store, Fault("refuse", verb="head")), keys)
