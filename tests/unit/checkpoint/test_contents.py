"""What a commit says, trusted in nothing."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageWriter
from dcp_cloud.checkpoint.contents import read_contents
from dcp_cloud.checkpoint.entries import Total, natural
from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.stores.memory import MemoryStore

STATE = {
    "model.layers.10.w": torch.ones(4, 5),
    "model.layers.9.w": torch.ones(2, dtype=torch.bfloat16),
    "step": torch.tensor(1),
    "note": "text",
}


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore(f"contents-{uuid.uuid4().hex}")
    dcp.save(STATE, storage_writer=CloudStorageWriter(made.uri, store=made), no_dist=True)
    yield made
    made.delete([meta.key for meta in made.list()])


def edit(store, change):
    metadata = pickle.loads(store.get(".metadata", max_bytes=1 << 30).data)
    change(metadata)
    store.put(".metadata", [memoryview(pickle.dumps(metadata))])


def test_tensors_values_and_objects(store):
    """Names come in natural order, each with shape, dtype, length and the place of its shards."""
    store.put("notes.txt", [memoryview(b"abc")])
    contents = read_contents(store)
    assert [(t.fqn, t.shape, t.dtype_name, t.size_bytes) for t in contents.tensors] == [
        ("model.layers.9.w", (2,), "bfloat16", 4),
        ("model.layers.10.w", (4, 5), "float32", 80),
        ("step", (), "int64", 8),
    ]
    assert [value.fqn for value in contents.values] == ["note"]
    (entry,) = contents.objects
    assert entry.items == 4
    assert entry.items_bytes == entry.size_bytes == contents.data_bytes
    assert [(shard.rank, shard.stored is not None) for shard in contents.shards()] == [(0, True)] * 4
    assert contents.save_id in entry.key
    assert [meta.key for meta in contents.unnamed] == ["notes.txt"]
    assert (contents.state, contents.version, contents.damage) == ("complete", "1.0.0", ())


def test_sums_by_dtype_and_module(store):
    """Sums are made over stored bytes: by dtype the largest first, by module in the order of names."""
    contents = read_contents(store)
    assert contents.by_dtype() == [
        Total(name="float32", tensors=1, elements=20, size_bytes=80),
        Total(name="int64", tensors=1, elements=1, size_bytes=8),
        Total(name="bfloat16", tensors=1, elements=2, size_bytes=4),
    ]
    assert [(total.name, total.size_bytes) for total in contents.by_module(1)] == [("model", 84), ("step", 8)]
    assert [total.name for total in contents.by_module(3)] == ["model.layers.9", "model.layers.10", "step"]


@pytest.mark.parametrize(
    ("change", "fqn", "cause"),
    [
        (lambda m: m.storage_data.clear(), "step", "does not say where its data is"),
        (lambda m: setattr(_info(m, "step"), "offset", -1), "step", "offset is out of range"),
        (lambda m: setattr(_info(m, "step"), "length", "long"), "step", "length is a str"),
        (lambda m: setattr(_info(m, "note"), "relative_path", "/etc/passwd"), "note", "leaves the checkpoint's prefix"),
        (lambda m: setattr(m.state_dict_metadata["step"].properties, "dtype", "int"), "step", "dtype"),
        (lambda m: setattr(_chunk(m), "sizes", torch.Size([4])), "model.layers.10.w", "number of dimensions"),
        (lambda m: setattr(_chunk(m), "sizes", (-1, 5)), "model.layers.10.w", "no length"),
        (lambda m: setattr(_chunk(m), "offsets", None), "model.layers.10.w", "NoneType"),
        (lambda m: delattr(_chunk(m), "sizes"), "model.layers.10.w", "sizes"),
    ],
)
def test_records_that_make_no_sense_are_damage(store, change, fqn, cause):
    """A senseless record is listed with its name and reason; the other entries are still there."""
    edit(store, change)
    contents = read_contents(store, unsafe_metadata=True)
    found = {damage.fqn: damage.cause for damage in contents.damage}
    assert cause in found[fqn]
    assert "model.layers.9.w" in [tensor.fqn for tensor in contents.tensors]


def test_a_damaged_commit_is_raised_or_told(store):
    """A commit that cannot be read is an error, unless the caller wants to hear of it and go on."""
    store.put(".metadata", [memoryview(b"junk")])
    with pytest.raises(CorruptCheckpointError):
        read_contents(store)
    told: list[str] = []
    contents = read_contents(store, on_damaged_commit=lambda key, error: told.append(key))
    assert (told, contents.tensors, len(contents.unnamed)) == ([".metadata"], (), 1)


def test_natural_order():
    """Numbers in names are compared as numbers."""
    names = ["b", "a10", "a9", "a", "10", "9", "a9.b", "a09"]
    assert sorted(names, key=natural)[:2] == ["9", "10"]
    assert sorted(["layers.10.w", "layers.9.w"], key=natural) == ["layers.9.w", "layers.10.w"]


def _info(metadata, fqn):
    return next(info for index, info in metadata.storage_data.items() if index.fqn == fqn)


def _chunk(metadata):
    return metadata.state_dict_metadata["model.layers.10.w"].chunks[0]
