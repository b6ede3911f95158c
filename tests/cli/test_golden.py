"""The outputs at 100 columns, as they were judged readable."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import compare_golden
from tests.cli.damage import data_keys, flip, rewrite


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("ls.txt", ("ls", "memory://bucket/run")),
        ("ls-json.txt", ("ls", "memory://bucket/run", "--json")),
        ("inspect.txt", ("inspect", "memory://bucket/run/step-100", "--module", "2")),
        ("inspect-all.txt", ("inspect", "memory://bucket/run/step-200", "--tensors", "--objects")),
        ("inspect-local.txt", ("inspect", "memory://bucket/run/local-50", "--tensors")),
        ("inspect-json.txt", ("inspect", "memory://bucket/run/step-100", "--json")),
        ("verify.txt", ("verify", "memory://bucket/run/step-100")),
        ("verify-shallow.txt", ("verify", "memory://bucket/run/step-200", "--shallow")),
        ("verify-json.txt", ("verify", "memory://bucket/run/step-100", "--json")),
    ],
)
def test_output_of_intact_checkpoints(bucket, run, name, args):
    """Commands on intact checkpoints end with 0 and write what was judged readable."""
    ran = run(*args)
    assert ran.code == 0, ran
    if name.endswith("-json.txt"):
        assert json.loads(ran.out)["schema"] == f"dcp-cloud/{args[0]}"
    compare_golden(name, ran.out)


def test_output_of_a_listing_with_an_unfinished_save(bucket, run):
    """Data without a commit is listed as incomplete, with no time of a commit."""
    bucket.delete(["run/step-200/.metadata"])
    ran = run("ls", "memory://bucket/run")
    assert ran.code == 0
    compare_golden("ls-incomplete.txt", ran.out)


def test_output_of_a_damaged_checkpoint(bucket, run):
    """Each problem names its kind, object and tensors; the last lines say what to do."""
    first, second = data_keys(bucket, "run/step-100")
    flip(bucket, first, 5_000)
    flip(bucket, first, 5_000_000)
    rewrite(bucket, second, lambda data: data[: len(data) // 2])
    ran = run("verify", "memory://bucket/run/step-100")
    assert ran.code == 1
    compare_golden("verify-damaged.txt", ran.out)


def test_output_of_errors(bucket, run):
    """Errors say what failed, where, why and what to do next, on standard error only."""
    commands = [
        ("inspect", "memory://bucket/run"),
        ("ls", "memory://bucket/elsewhere"),
        ("ls", "memory://bucket/run?regoin=eu"),
        ("verify", "s3:/bucket/run"),
    ]
    text = ""
    for command in commands:
        ran = run(*command)
        assert ran.code in (2, 3)
        assert ran.out == ""
        text += f"$ dcp-cloud {' '.join(command)}\n{ran.err}[exit code {ran.code}]\n\n"
    compare_golden("errors.txt", text)


def test_output_of_a_conversion(bucket, run):
    """What became of what, and how much of it."""
    ran = run("convert", "memory://bucket/run/step-100", "memory://bucket/model.pt")
    assert ran.code == 0, ran
    compare_golden("convert.txt", ran.out)


def test_output_of_a_copied_tree(bucket, run):
    """A line for each checkpoint, in the order of steps."""
    ran = run("cp", "-r", "memory://bucket/run", "memory://bucket/copy")
    assert ran.code == 0, ran
    compare_golden("cp-tree.txt", ran.out)
