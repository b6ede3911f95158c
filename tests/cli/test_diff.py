"""``dcp-cloud diff``."""

from __future__ import annotations

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from tests.cli.conftest import compare_golden


def _save(uri, state):
    dcp.save(state, storage_writer=CloudStorageWriter(uri), no_dist=True)


@pytest.fixture
def two(bucket):
    """A second checkpoint beside step-100: one of each difference."""
    state = {
        "embedding": torch.empty(3000, 1024),
        "model.layers.0.weight": torch.empty(512, 768),
        "model.layers.1.weight": torch.empty(512, 768),
        "model.layers.0.bias": torch.empty(512, dtype=torch.bfloat16),
        "optim.step": torch.empty(()),
        "epoch": 0,
    }
    dcp.load(state, storage_reader=CloudStorageReader("memory://bucket/run/step-100"), no_dist=True)
    state["model.layers.1.weight"][3, 5] += 0.5
    state["model.layers.0.bias"] = state["model.layers.0.bias"].float()
    state["optim.step"] = torch.tensor([100.0])
    state["added"] = torch.ones(2)
    _save("memory://bucket/run/other", state)
    return "memory://bucket/run/step-100", "memory://bucket/run/other"


def test_a_checkpoint_equals_itself(bucket, run):
    """Equal checkpoints end with 0, without a request for data."""
    ran = run("diff", "memory://bucket/run/step-100", "memory://bucket/run/step-100")
    assert (ran.code, ran.out) == (0, "10 names: 10 equal, 0 different\n")


def test_what_checksums_tell(two, run):
    """Names, shapes and dtypes differ by the commits alone; what was sharded differently is not compared."""
    ran = run("diff", *two)
    assert ran.code == 1
    compare_golden("diff.txt", ran.out)


def test_what_the_values_tell(two, run):
    """With --values, differently sharded tensors are compared element by element."""
    ran = run("diff", *two, "--values")
    assert ran.code == 1
    compare_golden("diff-values.txt", ran.out)


def test_the_document_for_scripts(two, run):
    """With --json each difference is an entry, with its numbers."""
    document = json.loads(run("diff", *two, "--values", "--json").out)
    found = {line["fqn"]: line for line in document["differences"]}
    assert found["model.layers.1.weight"]["changed"] == 1
    assert found["model.layers.1.weight"]["max_abs"] == pytest.approx(0.5, rel=1e-6)
    assert found["added"]["difference"] == "only in B"
    assert "embedding" not in found


def test_another_writer_records_no_checksums(bucket, run):
    """A checkpoint of torch's own writer can be compared by its values only."""
    uris = "memory://bucket/run/step-100", "memory://bucket/run/step-200"
    ran = run("diff", *uris)
    assert (ran.code, ran.out.splitlines()[-2]) == (1, "10 names: 0 equal, 0 different, 10 not compared")
    assert run("diff", *uris, "--values").code == 0


def test_values_of_any_dtype(bucket, run):
    """Booleans, complex numbers, 8-bit floats, NaNs and empty tensors are compared bit by bit."""
    state = {
        "bool": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "fp8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
        "nan": torch.tensor([float("nan")]),
        "infinite": torch.tensor([float("nan"), 1.0]),
        "none": torch.empty(0, 3),
        "step": 1,
    }
    _save("memory://bucket/a", state)
    changed = {
        name: value if name in ("nan", "none") else (value + 1 if name == "step" else value.clone())
        for name, value in state.items()
    }
    changed["infinite"][1] = float("inf")
    changed["bool"][0] = False
    changed["complex"][0] = 1 + 3j
    changed["fp8"][1] = 4.0
    _save("memory://bucket/b", changed)
    document = json.loads(run("diff", "memory://bucket/a", "memory://bucket/b", "--values", "--json").out)
    assert document["equal"] == 2
    assert {line["fqn"]: (line["changed"], line["max_abs"]) for line in document["differences"]} == {
        "bool": (1, 1.0),
        "complex": (1, 1.0),
        "fp8": (1, 2.0),
        "infinite": (1, None),
        "step": (None, None),
    }


def test_long_tensors_are_compared_in_pieces(bucket, run, monkeypatch):
    """A difference anywhere in a tensor is counted, whatever the length of the pieces."""
    monkeypatch.setattr("dcp_cloud.tools.diff._STEP_ELEMENTS", 7)
    values = torch.arange(100.0)
    _save("memory://bucket/a", {"w": values})
    changed = values.clone()
    changed[[0, 6, 7, 99]] += torch.tensor([1.0, 2.0, 3.0, 4.0])
    _save("memory://bucket/b", {"w": changed})
    document = json.loads(run("diff", "memory://bucket/a", "memory://bucket/b", "--values", "--json").out)
    assert [(line["changed"], line["max_abs"]) for line in document["differences"]] == [(4, 4.0)]


def test_names_are_no_markup(bucket, run):
    """A name that looks like markup, or that moves the cursor, is shown as what it is."""
    _save("memory://bucket/a", {"w": torch.ones(1)})
    _save("memory://bucket/b", {"w": torch.ones(1), "[/] [red]x\x1b[2J": torch.ones(1)})
    ran = run("diff", "memory://bucket/a", "memory://bucket/b")
    assert ran.code == 1
    assert "[/] [red]x\\x1b[2J" in ran.out
