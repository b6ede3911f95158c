"""``rm`` and ``sweep`` on servers, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, CloudStorageWriter, StoreURI, open_store
from tests.cli.conftest import Ran

ID = "0123456789abcdef" * 2


# Not on moto, which says of every unfinished upload that it was begun in 2010.
@pytest.mark.parametrize("server", ["ceph", "azurite", "fake-gcs"])
def test_rm_and_sweep_on_a_server(bucket_uri: Callable[..., str], run: Callable[..., Ran], server: str) -> None:
    """A sweep removes what a crash left and nothing else; rm removes one checkpoint, its uploads included."""
    uri = StoreURI.parse(bucket_uri(server, "run"))
    kept, removed = str(uri.child("step-1")), str(uri.child("step-2"))
    for place in (kept, removed):
        dcp.save({"w": torch.arange(1000.0)}, storage_writer=CloudStorageWriter(place), no_dist=True)
    store = open_store(uri)
    before = {meta.key for meta in store.list()}
    for place in ("step-1", "step-2", "step-3"):
        store.put(f"{place}/__7_0.{ID}.distcp", [memoryview(b"orphan")])
        store.create_multipart(f"{place}/__8_0.{ID}.distcp").put_part(0, [memoryview(b"part")])

    assert json.loads(run("sweep", str(uri), "--json").out)["young"] == 8
    gone = json.loads(run("rm", removed, "--yes", "--json").out)
    assert [len(gone[name]) for name in ("commits", "data", "uploads")] == [1, 2, 1]
    swept = json.loads(run("sweep", str(uri), "--older-than", "0s", "--json").out)
    assert [len(swept[name]) for name in ("orphans", "uploads")] == [2, 2]

    assert {meta.key for meta in store.list()} == {key for key in before if not key.startswith("step-2/")}
    assert list(store.list_multiparts()) == []
    loaded = {"w": torch.empty(1000)}
    dcp.load(loaded, storage_reader=CloudStorageReader(kept), no_dist=True)
    assert torch.equal(loaded["w"], torch.arange(1000.0))
