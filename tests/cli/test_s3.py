"""The tools on an S3 server, over a real socket."""

from __future__ import annotations

import json

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageWriter, StoreURI


def test_ls_inspect_and_verify_on_s3(bucket_uri, run):
    """The tools take the same URI and options as the writer, and find what it saved."""
    uri = StoreURI.parse(bucket_uri("moto", "run"))
    place = str(uri.child("step-7"))
    dcp.save({"w": torch.randn(2000, 1000)}, storage_writer=CloudStorageWriter(place), no_dist=True)
    (entry,) = json.loads(run("ls", str(uri), "--json").out)["checkpoints"]
    assert (entry["step"], entry["state"], entry["objects"]) == (7, "complete", 1)
    assert run("inspect", place).code == 0
    report = json.loads(run("verify", place, "--json").out)
    assert (report["ok"], report["verified_items"]) == (True, 1)


def test_a_missing_bucket_ends_with_three(bucket_uri, run):
    """A bucket that is not there is told from an empty prefix, and from a refusal."""
    uri = bucket_uri("moto", "run").replace("s3://", "s3://no-")
    for command in ("ls", "inspect", "verify"):
        ran = run(command, uri)
        assert (ran.code, ran.out) == (3, "")
        assert "NoSuchBucket" in ran.err
