"""Verification below the command line: what it reads, counts and believes."""

from __future__ import annotations

import pickle
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import ZStandard
from torch.utils.serialization import config as serialization_config

from dcp_cloud import CloudStorageWriter, TransferConfig, open_store
from dcp_cloud.checkpoint.contents import read_contents
from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.config import MIB, RetryConfig
from dcp_cloud.errors import CheckpointNotFoundError, NotFoundError, PermissionDeniedError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.transfer.events import Planned, Progressed, TransferEvent

FAST = TransferConfig(retry=RetryConfig(max_attempts=2, base_delay_s=0.0))


class Watched(MemoryStore):
    """A memory store that lets a test see and change what is read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.before: Callable[[str, int], None] = lambda key, start: None
        self.after: Callable[[str, int, Buffers], None] = lambda key, start, buffers: None

    def get_range(self, key: str, start: int, buffers: Buffers, *, if_match: str | None = None) -> None:
        self.before(key, start)
        super().get_range(key, start, buffers, if_match=if_match)
        self.after(key, start, buffers)


@pytest.fixture
def store() -> Iterator[Watched]:
    watched = Watched(f"verify-{uuid.uuid4().hex}")
    yield watched
    watched.delete([meta.key for meta in watched.list()])


def save(store: MemoryStore, state: dict[str, Any], **options: Any) -> None:
    dcp.save(state, storage_writer=CloudStorageWriter(store.uri, store=store, **options), no_dist=True)


def save_stock(store: MemoryStore, state: dict[str, Any], directory: str, **options: Any) -> None:
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory, **options), no_dist=True)
    source = open_store(directory)
    for meta in source.list():
        store.put(meta.key, [memoryview(source.get(meta.key, max_bytes=1 << 30).data)])


STATE = {
    "long": torch.arange(3_000_000, dtype=torch.float32),
    "channels_last": torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
    "conj": torch.randn(4, dtype=torch.complex64).conj(),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(1.5),
    "value": {"a": 1},
    "flag": torch.tensor(True),
}


def test_every_item_of_ours_is_verified(store):
    """All kinds of items that the writer makes carry checksums that verification checks."""
    save(store, STATE)
    report = verify_checkpoint(store)
    assert report.ok, report.problems
    assert (report.items, report.verified_items, report.unrecorded_items) == (len(STATE), len(STATE), 0)
    assert report.read_bytes == report.data_bytes


def test_every_item_of_torchs_writer_is_verified(store, tmp_path):
    """torch's own archives carry checksums too."""
    save_stock(store, STATE, str(tmp_path / "stock"))
    report = verify_checkpoint(store)
    assert report.ok, report.problems
    assert report.verified_items == report.items
    assert report.read_bytes == report.data_bytes


def test_items_without_checksums_are_told_apart(store, tmp_path):
    """What torch transformed, or saved without checksums, is readable but not verified; ours is verified always."""
    with serialization_config.patch("save.compute_crc32", False):
        save_stock(store, {"long": STATE["long"], "scalar": STATE["scalar"]}, str(tmp_path / "plain"))
    report = verify_checkpoint(store)
    assert (report.ok, report.verified_items, report.unrecorded_items) == (True, 0, 2)

    store.delete([meta.key for meta in store.list()])
    save_stock(store, {"long": STATE["long"]}, str(tmp_path / "packed"), _extensions=[ZStandard()])
    report = verify_checkpoint(store)
    assert (report.ok, report.verified_items, report.unrecorded_items) == (True, 0, 1)

    store.delete([meta.key for meta in store.list()])
    save(store, {"long": STATE["long"]}, extensions=[ZStandard()])
    report = verify_checkpoint(store)
    assert (report.ok, report.verified_items, report.unrecorded_items) == (True, 1, 0)


@pytest.mark.parametrize("part_size_bytes", [100_000, 16 * MIB])
@pytest.mark.parametrize("where", [0.0, 0.4, 0.9999])
def test_a_flipped_byte_is_found_anywhere_in_a_tensor(store, tmp_path, part_size_bytes, where):
    """Whichever block or request the byte falls into, its tensor is named, whoever wrote it."""
    transfer = TransferConfig(part_size_bytes=part_size_bytes)
    for write in (lambda: save(store, STATE), lambda: save_stock(store, STATE, str(tmp_path / "stock"))):
        store.delete([meta.key for meta in store.list()])
        write()
        (tensor,) = (tensor for tensor in read_contents(store).tensors if tensor.fqn == "long")
        stored = tensor.shards[0].stored
        assert stored is not None
        start = stored.offset + 768
        data = bytearray(store.get(stored.key, max_bytes=1 << 30).data)
        data[start + int(where * (tensor.size_bytes - 100))] ^= 1
        store.put(stored.key, [memoryview(data)])
        (problem,) = verify_checkpoint(store, transfer=transfer).problems
        assert (problem.kind, problem.key, problem.tensors) == ("checksum", stored.key, ("long",))
        assert verify_checkpoint(store, deep=False).ok


def test_bytes_that_change_on_the_way_are_read_again(store):
    """A mismatch counts only if a second reading shows it too: a bad connection is no bad checkpoint."""
    save(store, STATE)
    seen: set[int] = set()

    def spoil_once(key: str, start: int, buffers: Buffers) -> None:
        if key.endswith(".distcp") and start not in seen:
            seen.add(start)
            for buffer in buffers:
                if buffer.nbytes:
                    buffer[buffer.nbytes // 2] ^= 1

    store.after = spoil_once
    report = verify_checkpoint(store)
    assert seen
    assert report.ok, report.problems
    assert report.read_bytes > report.data_bytes


def test_an_object_that_vanishes_meanwhile_hides_nothing_else(store):
    """If an object is deleted while it is read, its items are named, and the others are still verified."""
    save(store, {"long": STATE["long"], "other": torch.ones(5)})
    (key,) = (meta.key for meta in store.list() if meta.key.endswith(".distcp"))
    store.put("__1_0.distcp", [memoryview(store.get(key, max_bytes=1 << 30).data)])
    metadata = pickle.loads(store.get(".metadata", max_bytes=1 << 30).data)
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == "other")
    info.relative_path = "__1_0.distcp"
    store.put(".metadata", [memoryview(pickle.dumps(metadata))])

    def vanish(asked: str, start: int) -> None:
        if asked == key:
            raise NotFoundError("no such object", key=f"prefix/{asked}")

    store.before = vanish
    report = verify_checkpoint(store, transfer=FAST)
    assert [(one.kind, one.key, one.tensors) for one in report.problems] == [("missing", key, ("long",))]
    assert report.verified_items == 1


def test_a_refusal_is_raised_not_reported(store):
    """A store that refuses says nothing of the checkpoint, so it ends the verification with its own error."""
    save(store, STATE)

    def refuse(key: str, start: int) -> None:
        raise PermissionDeniedError("no", key=key)

    store.before = refuse
    with pytest.raises(PermissionDeniedError):
        verify_checkpoint(store, transfer=FAST)


def test_nothing_at_all_is_raised_not_reported(store):
    """Where nothing was saved there is nothing to verify."""
    with pytest.raises(CheckpointNotFoundError):
        verify_checkpoint(store)


def test_progress_reaches_what_was_planned(store):
    """Events tell all bytes and items before the first byte, and sum up to them."""
    save(store, STATE)
    events: list[TransferEvent] = []
    report = verify_checkpoint(store, hook=events.append)
    (planned,) = [event for event in events if isinstance(event, Planned)]
    done = [event for event in events if isinstance(event, Progressed)]
    assert (planned.phase, planned.items, planned.size_bytes) == ("verify", report.items, report.data_bytes)
    assert sum(event.size_bytes for event in done) == planned.size_bytes


def test_memory_is_bounded_whatever_the_size_of_the_tensor(store):
    """The bytes of a tensor are never held at once: the budget bounds what is in memory."""
    save(store, {"big": torch.zeros(64 * MIB, dtype=torch.uint8)})
    transfer = TransferConfig(part_size_bytes=1 * MIB, max_inflight_bytes=8 * MIB)
    verify_checkpoint(store, deep=False)  # whatever is loaded once
    tracemalloc.start()
    try:
        assert verify_checkpoint(store, transfer=transfer).ok
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 * MIB
