"""``dcp-cloud rm``: what it deletes, when it asks, what it says."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dcp_cloud.stores.memory import MemoryStore
from tests.cli.conftest import Ran, compare_golden
from tests.cli.damage import rewrite

_ROOT = Path(__file__).resolve().parents[2]


def names(store: MemoryStore, prefix: str = "run") -> set[str]:
    return {meta.key for meta in store.list(prefix)}


def put(store: MemoryStore, *keys: str) -> None:
    for key in keys:
        store.put(key, [memoryview(b"x")])


def commit_again(store: MemoryStore, checkpoint: str) -> None:
    """Store the commit after the data, as a save does."""
    rewrite(store, f"run/{checkpoint}/.metadata", lambda data: data)


def rm_on_terminal(folder: Path, answer: bytes, *options: str) -> Ran:
    """Run ``rm`` in a process whose standard input is a terminal on which somebody types an answer."""
    terminal, end = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "dcp_cloud.cli", "rm", str(folder), *options],
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=os.environ | {"COLUMNS": "100"},
        ) as process:
            os.write(terminal, answer)
            out, err = process.communicate(timeout=60)
        return Ran(process.returncode, out, err)
    finally:
        os.close(terminal)
        os.close(end)


def test_a_checkpoint_is_removed(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """The named checkpoint goes, the others and other files stay, and the output says what was done."""
    put(bucket, "run/step-100/notes.txt")
    commit_again(bucket, "step-100")
    others = {key for key in names(bucket) if "step-100/" not in key}
    ran = run("rm", "memory://bucket/run/step-100", "--yes")
    assert (ran.code, ran.err) == (0, "")
    assert names(bucket) == {*others, "run/step-100/notes.txt"}
    compare_golden("rm.txt", ran.out)
    assert run("rm", "memory://bucket/run/step-100", "--yes").code == 3


def test_dry_run_deletes_nothing(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """``--dry-run`` says what would be deleted; it needs no confirmation."""
    before = names(bucket)
    ran = run("rm", "memory://bucket/run", "--recursive", "--dry-run")
    assert (ran.code, names(bucket)) == (0, before)
    compare_golden("rm-dry-run.txt", ran.out)


def test_recursive_removes_all_checkpoints_below(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """``--recursive`` removes every checkpoint below and leaves files of other kinds."""
    put(bucket, "run/train.log")
    assert run("rm", "-r", "-y", "memory://bucket/run").code == 0
    assert names(bucket) == {"run/train.log"}


def test_json_tells_everything(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """The document lists each object and upload that was deleted, and what was left."""
    bucket.create_multipart("run/step-200/__1_0.distcp")
    put(bucket, "run/step-200/notes.txt", "run/step-200/old/.metadata")
    data = [key for key in names(bucket, "run/step-200") if key.endswith(".distcp")]
    document = json.loads(run("rm", "memory://bucket/run/step-200", "--yes", "--json").out)
    assert document["schema"] == "dcp-cloud/rm"
    assert (document["dry_run"], document["recursive"]) == (False, False)
    assert document["checkpoints"] == [""]
    assert document["commits"] == [".metadata"]
    assert [f"run/step-200/{one['key']}" for one in document["data"]] == sorted(data)
    assert [one["key"] for one in document["uploads"]] == ["__1_0.distcp"]
    assert (document["others"], document["checkpoints_below"]) == (2, ["old"])
    assert list(bucket.list_multiparts()) == []


def test_without_a_terminal_it_needs_yes(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """A script has to say ``--yes``; without it nothing is sent and the exit code is 2."""
    before = names(bucket)
    ran = run("rm", "memory://bucket/run/step-100")
    assert (ran.code, ran.out) == (2, "")
    assert "--yes" in ran.err
    assert names(bucket) == before


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"\x04"])
def test_a_terminal_is_asked_and_no_means_no(folder: Path, answer: bytes) -> None:
    """On a terminal the user sees what would go; anything but a yes deletes nothing and ends with 130."""
    before = sorted(os.listdir(folder / "step-100"))
    ran = rm_on_terminal(folder / "step-100", answer)
    assert (ran.code, ran.out) == (130, "")
    assert "Remove it? [y/N]" in ran.err
    assert "2 objects" in ran.err
    assert "nothing was deleted" in ran.err
    assert sorted(os.listdir(folder / "step-100")) == before


def test_a_no_has_a_document_too(folder: Path) -> None:
    """With --json, standard output says that nothing was deleted."""
    ran = rm_on_terminal(folder / "step-100", b"n\n", "--json")
    document = json.loads(ran.out)
    assert (ran.code, document["schema"]) == (130, "dcp-cloud/error")
    assert (document["error"]["type"], document["error"]["exit_code"]) == ("NotConfirmed", 130)


def test_a_terminal_is_asked_and_yes_means_yes(folder: Path) -> None:
    """After a yes it is removed; the question does not mix with the JSON document."""
    ran = rm_on_terminal(folder / "step-100", b"y\n", "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["commits"] == [".metadata"]
    assert os.listdir(folder / "step-100") == []


def test_an_unfinished_save_is_pointed_out(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """Whoever removes data of a save that may still be running is told so."""
    bucket.delete(["run/step-100/.metadata"])
    ran = run("rm", "memory://bucket/run/step-100", "--dry-run")
    assert ran.err.startswith("warning: a save without a commit wrote here at ")
    commit_again(bucket, "step-200")
    assert run("rm", "memory://bucket/run/step-200", "--dry-run").err == ""


def test_the_parent_of_checkpoints_is_not_removed_by_mistake(bucket: MemoryStore, run: Callable[..., Ran]) -> None:
    """Without ``--recursive`` the directory above checkpoints is no checkpoint: exit code 3, and what to do."""
    before = names(bucket)
    ran = run("rm", "memory://bucket/run", "--yes")
    assert (ran.code, ran.out) == (3, "")
    assert "--recursive" in ran.err
    assert names(bucket) == before


def test_ctrl_c_says_how_to_go_on(
    bucket: MemoryStore, run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the commit was deleted ends with 130 and the advice to run it again, which finishes it."""
    delete = MemoryStore.delete

    def delete_commits_only(store: MemoryStore, keys: Sequence[str], *, if_match: str | None = None) -> None:
        if any(key.endswith(".distcp") for key in keys):
            raise KeyboardInterrupt
        delete(store, keys, if_match=if_match)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "delete", delete_commits_only)
        ran = run("rm", "memory://bucket/run/step-100", "--yes")
    assert ran.code == 130
    assert "run the same command again" in ran.err
    assert len(names(bucket, "run/step-100")) == 2
    assert run("rm", "memory://bucket/run/step-100", "--yes").code == 0
    assert names(bucket, "run/step-100") == set()


def test_it_does_without_torch(folder: Path) -> None:
    """Removing reads nothing, so nobody waits seconds for torch to be imported."""
    script = (
        "import sys\n"
        "from dcp_cloud.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    sys.stderr.write(f'torch: {\"torch\" in sys.modules}')\n"
    )
    args = ["rm", str(folder / "step-100"), "--yes"]
    result = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=_ROOT, timeout=60, check=False
    )
    assert ": removed\n" in result.stdout
    assert result.stderr.endswith("torch: False")
