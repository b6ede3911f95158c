"""``dcp-cloud cp``."""

from __future__ import annotations

import json

from tests.cli.conftest import compare_golden
from tests.cli.damage import data_keys, flip


def test_a_copy_and_its_repetition(bucket, run):
    """The output says what was copied and verified; run again, that it is there."""
    args = ("cp", "memory://bucket/run/step-100", "memory://bucket/copy/step-100")
    ran = run(*args)
    assert ran.code == 0
    again = run(*args)
    assert again.code == 0
    compare_golden("cp.txt", ran.out + again.out)
    assert run("verify", "memory://bucket/copy/step-100").code == 0


def test_the_document_for_scripts(bucket, run):
    """With --json each copy is a record."""
    document = json.loads(run("cp", "-r", "memory://bucket/run", "memory://bucket/copy", "--json").out)
    assert {copy["target"].rpartition("/")[2] for copy in document["copies"]} == {"step-100", "step-200", "local-50"}
    assert all(copy["relayed"] == 2 for copy in document["copies"])


def test_a_damaged_source_ends_with_one(bucket, run):
    """What is wrong is named, and nothing is committed."""
    flip(bucket, data_keys(bucket, "run/step-100")[0], 5_000)
    ran = run("cp", "memory://bucket/run/step-100", "memory://bucket/copy")
    assert (ran.code, ran.out) == (1, "")
    assert "not those that were saved" in ran.err
    (left,) = json.loads(run("ls", "memory://bucket/copy", "--json").out)["checkpoints"]
    assert left["state"] == "incomplete"


def test_another_checkpoint_is_not_replaced_unasked(bucket, run):
    """The error says how to replace it."""
    ran = run("cp", "memory://bucket/run/step-100", "memory://bucket/run/step-200")
    assert ran.code == 1
    assert "--overwrite" in ran.err


def test_where_there_is_no_commit_there_is_nothing_to_copy(bucket, run):
    """Other layouts, and what never committed, end with 3 and the reason; nothing is written."""
    bucket.put("hf/model.safetensors", [memoryview(b"x")])
    ran = run("cp", "memory://bucket/hf", "memory://bucket/copy")
    assert (ran.code, ran.out) == (3, "")
    assert "checkpoint is committed here" in ran.err
    assert not list(bucket.list("copy"))
