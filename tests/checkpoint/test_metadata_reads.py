"""How often .metadata is read, and what the reader learns on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, TransferConfig, open_store
from dcp_cloud.testing import LatencyStore, RecordingStore
from tests.checkpoint.test_round_trip import save

Place = Callable[..., str]


@pytest.mark.parametrize("place", ["memory", "ceph"], indirect=True)
def test_metadata_is_fetched_once_for_a_load_that_reads_it_twice(place: Place) -> None:
    """A second read_metadata before the data is read asks only whether the object is still the same."""
    uri = place()
    save({"w": torch.ones(10)}, uri)
    store = RecordingStore(open_store(uri))
    reader = CloudStorageReader(uri, store=store)
    first, second = reader.read_metadata(), reader.read_metadata()
    assert first is not second
    assert first.storage_data == second.storage_data
    assert [call.verb for call in store.calls if call.key == ".metadata"] == ["get", "head"]
    loaded = {"w": torch.zeros(10)}
    dcp.load(loaded, storage_reader=reader)
    assert loaded["w"].all()


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_replaced_metadata_is_read_anew(place: Place) -> None:
    """What was kept is used only as long as the object is that version."""
    uri = place()
    save({"w": torch.ones(10)}, uri)
    reader = CloudStorageReader(uri)
    before = reader.read_metadata()
    save({"w": torch.ones(10)}, uri)
    assert reader.read_metadata().storage_meta.save_id != before.storage_meta.save_id


@pytest.mark.parametrize("place", ["memory"], indirect=True)
@pytest.mark.parametrize(("max_gap_bytes", "requests"), [(None, 1), (0, 4), (2**20, 1)])
def test_gaps_are_read_where_requests_cost_more(place: Place, max_gap_bytes: int | None, requests: int) -> None:
    """Four small tensors with gaps of 200 kB: where a first byte takes 30 ms they are one request."""
    uri = place()
    save({f"{kind}{i}": torch.ones(50_000 if kind == "gap" else 100) for i in range(4) for kind in ("a", "gap")}, uri)
    store = RecordingStore(LatencyStore(open_store(uri), first_byte_s=0.03))
    loaded = {f"a{i}": torch.zeros(100) for i in range(4)}
    reader = CloudStorageReader(uri, store=store, transfer=TransferConfig(max_gap_bytes=max_gap_bytes))
    dcp.load(loaded, storage_reader=reader)
    assert all(value.all() for value in loaded.values())
    assert store.count("get_range") == requests
