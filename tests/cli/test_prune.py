"""``dcp-cloud prune``: what it deletes, when it asks, what it says."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dcp_cloud import CheckpointManager
from dcp_cloud.stores.memory import MemoryStore
from tests.cli.conftest import Ran, compare_golden

_ROOT = Path(__file__).resolve().parents[2]
RUN = "memory://pruned/run"


def save_run(uri: str) -> None:
    with CheckpointManager(uri) as manager:
        for step in range(100, 600, 100):
            manager.save(step, {"w": torch.zeros(5000)}, {"loss": abs(step - 190) / 100})


@pytest.fixture
def run_of_five() -> Iterator[MemoryStore]:
    """A bucket with five steps below ``run``."""
    save_run(RUN)
    store = MemoryStore("pruned")
    yield store
    store.delete([meta.key for meta in store.list()])


def steps(store: MemoryStore) -> list[str]:
    return sorted({meta.key.split("/")[1] for meta in store.list()})


RULES = ("--keep-last", "1", "--keep-every", "400", "--keep-best", "loss:min:2")


def test_the_policy_is_applied(run_of_five: MemoryStore, run: Callable[..., Ran]) -> None:
    """What no rule keeps goes, and the output says of each step why it went or stayed."""
    ran = run("prune", RUN, *RULES, "--yes")
    assert (ran.code, ran.err) == (0, "")
    assert steps(run_of_five) == ["step-100", "step-200", "step-400", "step-500"]
    compare_golden("prune.txt", ran.out)
    again = run("prune", RUN, *RULES, "--yes")
    assert "4 kept, 0 deleted" in again.out


def test_dry_run_deletes_nothing(run_of_five: MemoryStore, run: Callable[..., Ran]) -> None:
    """``--dry-run`` needs no confirmation and shows what would go."""
    ran = run("prune", RUN, "--keep-last", "2", "--dry-run")
    assert (ran.code, len(steps(run_of_five))) == (0, 5)
    compare_golden("prune-dry-run.txt", ran.out)


def test_json_tells_everything(run_of_five: MemoryStore, run: Callable[..., Ran]) -> None:
    """The document has every step with its metrics, the verdict and its reasons."""
    document = json.loads(run("prune", RUN, *RULES, "--yes", "--json").out)
    assert document["schema"] == "dcp-cloud/prune"
    assert [one["step"] for one in document["checkpoints"] if one["deleted"]] == [300]
    first = document["checkpoints"][0]
    assert first["metrics"] == {"loss": 0.9}
    assert (first["keep"], first["reasons"]) == (True, ["best 2 of 2 by loss"])
    assert (document["dry_run"], document["skipped"], document["error"]) == (False, [], None)


@pytest.mark.parametrize(
    "args",
    [
        ("--yes",),
        ("--keep-last", "0", "--yes"),
        ("--keep-best", "loss", "--yes"),
        ("--keep-best", "loss:least", "--yes"),
        ("--keep-best", "loss:min:x", "--yes"),
        ("--keep-last", "1", "--name", "step", "--yes"),
        ("--keep-last", "1"),
    ],
)
def test_wrong_use_deletes_nothing(run_of_five: MemoryStore, run: Callable[..., Ran], args: tuple[str, ...]) -> None:
    """Without a rule, with one that makes no sense, or without a terminal or --yes, the exit code is 2."""
    ran = run("prune", RUN, *args)
    assert (ran.code, ran.out) == (2, "")
    assert len(steps(run_of_five)) == 5


def test_no_steps_end_with_three(run: Callable[..., Ran]) -> None:
    """Where no step is committed there is nothing to judge."""
    ran = run("prune", "memory://pruned-empty/run", "--keep-last", "1", "--yes")
    assert (ran.code, ran.out) == (3, "")


def test_a_damaged_newest_checkpoint_ends_with_one(run_of_five: MemoryStore, run: Callable[..., Ran]) -> None:
    """If the newest is damaged nothing is deleted, and the message says what to do."""
    run_of_five.delete([meta.key for meta in run_of_five.list("run/step-500") if meta.key.endswith(".distcp")])
    ran = run("prune", RUN, "--keep-last", "1", "--yes")
    assert ran.code == 1
    assert "dcp-cloud verify" in ran.err
    assert len(steps(run_of_five)) == 5


def test_a_step_that_another_save_works_on_is_named(run_of_five: MemoryStore, run: Callable[..., Ran]) -> None:
    """It is left, the rest goes, and the exit code is 1; once its traces are old it goes as well."""
    run_of_five.put(f"run/step-100/__0_0.{'ab' * 16}.distcp", [memoryview(b"x")])
    ran = run("prune", RUN, "--keep-last", "1", "--yes")
    assert (ran.code, steps(run_of_five)) == (1, ["step-100", "step-500"])
    assert "not deleted: step 100" in ran.err
    assert run("prune", RUN, "--keep-last", "1", "--yes", "--older-than", "0s").code == 0


@pytest.mark.parametrize(("answer", "code", "left"), [(b"y\n", 0, 1), (b"n\n", 130, 5), (b"\n", 130, 5)])
def test_a_terminal_is_asked(tmp_path: Path, answer: bytes, code: int, left: int) -> None:
    """On a terminal the table is shown first, and only a yes deletes."""
    save_run(str(tmp_path))
    terminal, end = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "dcp_cloud.cli", "prune", str(tmp_path), "--keep-last", "1"],
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=os.environ | {"COLUMNS": "100"},
        ) as process:
            os.write(terminal, answer)
            _, err = process.communicate(timeout=60)
    finally:
        os.close(terminal)
        os.close(end)
    assert process.returncode == code
    assert "Delete them? [y/N]" in err
    with CheckpointManager(tmp_path) as manager:
        assert len(manager.list()) == left
