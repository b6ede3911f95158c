"""The tools on a server of each provider's protocol, over a real socket."""

from __future__ import annotations

import json
import os

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageWriter, StoreURI
from dcp_cloud.testing.servers import joining_servers

every_cloud = pytest.mark.parametrize("server", ["moto", "fake-gcs", "azurite", *joining_servers(os.environ)])


@every_cloud
def test_ls_inspect_and_verify(bucket_uri, run, server):
    """The tools take the same URI and options as the writer, and find what it saved."""
    uri = StoreURI.parse(bucket_uri(server, "run"))
    place = str(uri.child("step-7"))
    dcp.save({"w": torch.randn(2000, 1000)}, storage_writer=CloudStorageWriter(place), no_dist=True)
    (entry,) = json.loads(run("ls", str(uri), "--json").out)["checkpoints"]
    assert (entry["step"], entry["state"], entry["objects"]) == (7, "complete", 1)
    assert run("inspect", place).code == 0
    report = json.loads(run("verify", place, "--json").out)
    assert (report["ok"], report["verified_items"]) == (True, 1)


@every_cloud
def test_a_missing_bucket_ends_with_three(bucket_uri, run, server):
    """A bucket that is not there is told from an empty prefix, and from a refusal."""
    uri = bucket_uri(server, "run").replace("://", "://no-", 1)
    for command in ("ls", "inspect", "verify"):
        ran = run(command, uri)
        assert (ran.code, ran.out) == (3, "")
        assert StoreURI.parse(uri).bucket in ran.err
        assert "are not created for you" in ran.err
