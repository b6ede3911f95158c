"""What verify and inspect say of damaged checkpoints."""

from __future__ import annotations

import json
import os
import pickle

import pytest

from tests.cli.damage import content, data_keys, edit_metadata, flip, rewrite

URI = "memory://bucket/run"


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("/nonexistent/made-by-a-pickle",)


def problems(run, uri):
    ran = run("verify", uri, "--json")
    assert ran.code == 1, ran
    return [(one["kind"], one["object"], one["tensors"], one["cause"]) for one in json.loads(ran.out)["problems"]]


@pytest.mark.parametrize("checkpoint", ["step-100", "step-200", "local-50"])
def test_a_flipped_byte_names_its_tensor(bucket, run, checkpoint):
    """Whoever wrote the checkpoint, a flipped byte of a tensor is found and its tensor named; nothing else is."""
    key = data_keys(bucket, f"run/{checkpoint}")[0]
    flip(bucket, key, 7_000_000)
    ((kind, name, tensors, cause),) = problems(run, f"{URI}/{checkpoint}")
    assert (kind, tensors) == ("checksum", ["embedding"])
    assert key.endswith(name)
    assert "CRC-32" in cause


@pytest.mark.parametrize("checkpoint", ["step-100", "step-200"])
def test_a_flipped_byte_of_a_value_names_it(bucket, run, checkpoint):
    """Values that are no tensors are verified too."""
    inspected = json.loads(run("inspect", f"{URI}/{checkpoint}", "--json").out)
    (value,) = (value for value in inspected["values"] if value["fqn"] == "epoch")
    # In torch's archives the first record's data begin at byte 64.
    flip(bucket, f"run/{checkpoint}/{value['object']}", value["offset"] + 66)
    ((kind, name, tensors, _),) = problems(run, f"{URI}/{checkpoint}")
    assert (kind, name, tensors) == ("checksum", value["object"], ["epoch"])


@pytest.mark.parametrize("checkpoint", ["step-100", "step-200"])
def test_a_truncated_object_names_all_that_is_cut_off(bucket, run, checkpoint):
    """Items behind the end of an object are named without reading them; the others are still verified."""
    key = data_keys(bucket, f"run/{checkpoint}")[0]
    rewrite(bucket, key, lambda data: data[:-1])
    ((kind, name, tensors, cause),) = problems(run, f"{URI}/{checkpoint}")
    assert (kind, name) == ("short", key.rpartition("/")[2])
    assert len(tensors) == 1
    assert f"{len(content(bucket, key))} bytes long" in cause


def test_a_missing_object_is_found_without_reading(bucket, run):
    """The shallow check finds a missing object and names all of its tensors."""
    key = data_keys(bucket, "run/step-100")[0]
    bucket.delete([key])
    ran = run("verify", f"{URI}/step-100", "--shallow", "--json")
    report = json.loads(ran.out)
    assert (ran.code, report["read_bytes"]) == (1, 0)
    ((kind, name, tensors),) = [(one["kind"], one["object"], one["tensors"]) for one in report["problems"]]
    assert (kind, name) == ("missing", key.rpartition("/")[2])
    assert "embedding" in tensors
    assert "missing" in run("inspect", f"{URI}/step-100", "--objects").out


def test_all_problems_are_reported_at_once(bucket, run):
    """The first problem does not hide the others."""
    first, second = data_keys(bucket, "run/step-100")
    flip(bucket, first, 5_000)
    flip(bucket, first, 7_000_000)
    bucket.delete([second])
    assert sorted(problem[0] for problem in problems(run, f"{URI}/step-100")) == ["checksum", "checksum", "missing"]


@pytest.mark.parametrize("checkpoint", ["step-100", "step-200"])
def test_a_hole_in_a_tensor_is_found(bucket, run, checkpoint):
    """A commit that lists too few chunks of a tensor is incomplete, though every object is there."""
    edit_metadata(
        bucket, f"run/{checkpoint}/.metadata", lambda found: found.state_dict_metadata["embedding"].chunks.pop()
    )
    ((kind, name, tensors, cause),) = problems(run, f"{URI}/{checkpoint}")
    assert (kind, name, tensors) == ("coverage", ".metadata", ["embedding"])
    assert cause == "its chunks hold 1536000 of 3072000 elements"


def test_records_that_make_no_sense_are_found(bucket, run):
    """A record that leaves the prefix, and one that is not there, are listed; what remains is verified."""

    def change(found):
        by_name = {index.fqn: index for index in found.storage_data}
        found.storage_data[by_name["epoch"]].relative_path = "../../elsewhere"
        del found.storage_data[by_name["optim.step"]]

    edit_metadata(bucket, "run/step-100/.metadata", change)
    found = problems(run, f"{URI}/step-100")
    assert sorted((kind, *tensors) for kind, _, tensors, _ in found) == [("record", "epoch"), ("record", "optim.step")]
    assert "leaves the checkpoint's prefix" in str(found)
    ran = run("inspect", f"{URI}/step-100")
    assert ran.code == 0
    assert "It is damaged" in ran.out


def test_items_that_share_bytes_are_found(bucket, run):
    """Two items that overlap cannot both be right."""

    def change(found):
        records = sorted(found.storage_data.items(), key=lambda entry: (entry[1].relative_path, entry[1].offset))
        records[1][1].offset -= 100
        del records[1][1].dcp_cloud

    edit_metadata(bucket, "run/step-100/.metadata", change)
    assert "overlap" in [problem[0] for problem in problems(run, f"{URI}/step-100")]


def test_a_swapped_tensor_is_found(bucket, run):
    """An intact item that holds a tensor of another shape than the commit says is not what was saved."""

    def change(found):
        weight = next(index for index in found.storage_data if index.fqn == "model.layers.0.weight")
        bias = next(index for index in found.storage_data if index.fqn == "model.layers.0.bias")
        found.storage_data[bias] = found.storage_data[weight]

    edit_metadata(bucket, "run/step-200/.metadata", change)
    assert ("shape", ["model.layers.0.bias"]) in [
        (kind, tensors) for kind, _, tensors, _ in problems(run, f"{URI}/step-200")
    ]


@pytest.mark.parametrize("name", [".metadata", "__1.metadata"])
def test_a_damaged_commit_is_a_problem_of_verify_and_an_error_of_inspect(bucket, run, name):
    """A commit that cannot be read is damage: exit code 1 of both, with the name of the commit."""
    place = "step-100" if name == ".metadata" else "local-50"
    rewrite(bucket, f"run/{place}/{name}", lambda data: data[:200])
    ((kind, key, _, cause),) = problems(run, f"{URI}/{place}")
    assert (kind, key) == ("commit", name)
    assert "damaged" in cause
    ran = run("inspect", f"{URI}/{place}")
    assert (ran.code, ran.out) == (1, "")
    assert f"{URI}/{place}/{name}" in ran.err


def test_a_hostile_commit_is_refused(bucket, run):
    """A pickle that wants to run something is refused by name, and runs nothing."""
    bucket.put("run/step-100/.metadata", [memoryview(pickle.dumps(Hostile()))])
    ((kind, _, _, cause),) = problems(run, f"{URI}/step-100")
    assert kind == "commit"
    assert "mkdir" in cause
    ran = run("inspect", f"{URI}/step-100", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["error"]["type"] == "UnsafeCheckpointError"


def test_an_unfinished_save_is_incomplete(bucket, run):
    """Data without a commit: verify ends with 1 and says that the save did not finish."""
    bucket.delete(["run/step-100/.metadata"])
    ((kind, key, _, cause),) = problems(run, f"{URI}/step-100")
    assert (kind, key) == ("commit", ".metadata")
    assert "did not finish" in cause
    assert run("inspect", f"{URI}/step-100").code == 1


def test_no_checkpoint_is_not_damage(bucket, run):
    """Where there is nothing, verify and inspect end with 3, and ls too; with --json the list is empty."""
    for command in ("verify", "inspect", "ls"):
        assert run(command, "memory://bucket/nothing").code == 3
    ran = run("ls", "memory://bucket/nothing", "--json")
    assert json.loads(ran.out)["checkpoints"] == []
    error = json.loads(run("verify", "memory://bucket/nothing", "--json").out)["error"]
    assert (error["type"], error["exit_code"]) == ("CheckpointNotFoundError", 3)


def test_names_cannot_drive_the_terminal(bucket, run):
    """Whoever can write to the bucket cannot send escape sequences to the terminal of whoever lists it."""
    name = "run/step-\x1b[31m7\u202e"
    bucket.put(f"{name}/.metadata", [memoryview(b"")])
    out = run("ls", URI).out
    assert "step-\\x1b[31m7\\u202e" in out
    assert "\x1b" not in out
