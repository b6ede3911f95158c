"""The demo as a stranger runs it, and whether its verdict can be trusted."""

from __future__ import annotations

import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from dcp_cloud.checkpoint.catalog import CheckpointEntry
from dcp_cloud.demo.messages import MessageReader, MessageWriter
from dcp_cloud.demo.place import embedded, given
from dcp_cloud.demo.report import show
from dcp_cloud.demo.story import Outcome, Plan, Transfer, check
from dcp_cloud.stores.registry import open_store
from tests.cli.conftest import Ran, _quiet_logger, compare_golden, run

__all__ = ["_quiet_logger", "run"]

_ROOT = Path(__file__).resolve().parents[2]
_LONGEST_S = 170


@contextmanager
def demo(tmp_path: Path, *args: str, stderr: int = subprocess.STDOUT) -> Iterator[subprocess.Popen[str]]:
    """Run the demo with temporary files of its own; kill it at the end if it is still there."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    popen = subprocess.Popen(
        [sys.executable, "-m", "dcp_cloud.cli", "demo", "--model", "small", *args],
        cwd=_ROOT,
        env=os.environ | {"TMPDIR": str(scratch), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        yield popen
    finally:
        popen.kill()
        popen.wait()


@pytest.mark.timeout(2 * _LONGEST_S + 10)
@pytest.mark.parametrize(
    "store", ["s3", pytest.param("gcs", marks=pytest.mark.slow), pytest.param("azure", marks=pytest.mark.slow)]
)
def test_passes_on_a_server_of_its_own(tmp_path: Path, store: str) -> None:
    """The demo needs nothing but itself, says that all checks hold, ends with 0 and leaves no file."""
    with demo(tmp_path, "--store", store) as popen:
        out, _ = popen.communicate(timeout=2 * _LONGEST_S)
    assert popen.returncode == 0, out
    assert "PASSED: 7 of 7 checks hold" in out
    assert "SIGKILL to all 2 ranks in mid-save" in out
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.timeout(_LONGEST_S + 10)
def test_passes_in_a_place_of_the_users_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    """With --uri the demo works below a prefix of its own and removes that, unfinished uploads included."""
    place = tmp_path / "place"
    (place / "step-1").mkdir(parents=True)
    (place / "step-1" / ".metadata").write_bytes(b"precious")
    with demo(
        tmp_path, "--uri", f"file://{place}?part_size=5MiB", "--steps", "3", "--json", stderr=subprocess.PIPE
    ) as popen:
        out, err = popen.communicate(timeout=_LONGEST_S)
    assert popen.returncode == 0, err
    assert "PASSED" in err
    told = json.loads(out)
    assert (told["schema"], told["ok"], len(told["checks"])) == ("dcp-cloud/demo", True, 7)
    assert told["losses"]["undisturbed"]["3"] == told["losses"]["resumed on 1"]["3"]
    assert {(one["what"], one["processes"]) for one in told["transfers"]} >= {("save", 2), ("load", 4), ("load", 1)}
    assert [path.read_bytes() for path in place.rglob("*") if path.is_file()] == [b"precious"]


@pytest.mark.timeout(_LONGEST_S + 10)
def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    """Ctrl-C while ranks are training ends the server, torchrun and all ranks, and removes the files."""
    with demo(tmp_path, "--store", "s3", "--steps", "10000") as popen:
        assert popen.stdout is not None
        for line in popen.stdout:
            if "step 1/" in line:
                break
        children = psutil.Process(popen.pid).children(recursive=True)
        popen.send_signal(signal.SIGINT)
        popen.communicate(timeout=_LONGEST_S)
    assert len(children) >= 5  # the server, torchrun, their guards, and the ranks
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert popen.returncode == 130
    assert list((tmp_path / "scratch").iterdir()) == []


PLAN = Plan(uri="memory://x", model="small", steps=3)


@pytest.fixture
def truthful() -> Outcome:
    """What is seen when all goes well."""
    entry = CheckpointEntry(
        path="step-1",
        uri="memory://x/step-1",
        name="step-1",
        step=1,
        state="complete",
        committed_at=None,
        modified_at=None,
        size_bytes=1,
        objects=1,
        ranks=0,
    )
    return Outcome(
        losses={"undisturbed": {1: 3.0, 2: 2.0, 3: 1.0}, "killed": {1: 3.0, 2: 2.0}, "resumed on 4": {2: 2.0}}
        | {"resumed on 1": {3: 1.0}},
        saved={1: {"a": "1", "b": "2"}, 2: {"a": "3", "b": "4"}},
        loaded={"resumed on 4": {"a": "1", "b": "2"}, "resumed on 1": {"a": "3", "b": "4"}},
        loaded_step={"resumed on 4": 1, "resumed on 1": 2},
        final={"undisturbed": {"a": "5"}, "resumed on 1": {"a": "5"}},
        refused=(2, "CheckpointNotFoundError", "no"),
        listing=[entry],
    )


def test_what_people_read(truthful: Outcome, run: Callable[..., Ran]) -> None:
    """The tables at the end, as they were judged readable, of a demo that holds and of one that does not; the help."""
    truthful.transfers = [
        Transfer(act="killed", processes=2, what="save", step=1, size_bytes=20 * 2**20, duration_s=0.5, requests=9),
        Transfer(
            act="resumed on 4", processes=4, what="load", step=1, size_bytes=40 * 2**20, duration_s=0.25, retries=1
        ),
    ]
    text = io.StringIO()
    console = Console(file=text, width=100)
    assert show(console, truthful, check(PLAN, truthful), store="files", duration_s=12.3)
    spoil_loss(truthful)
    assert not show(console, truthful, check(PLAN, truthful), store="files", duration_s=12.3)
    compare_golden("demo.txt", text.getvalue())
    compare_golden("demo-help.txt", run("demo", "--help").out)


def spoil_loss(outcome: Outcome) -> None:
    outcome.losses["resumed on 1"][3] += 1e-15


def spoil_all_losses(outcome: Outcome) -> None:
    outcome.losses["resumed on 4"] = {}


def spoil_tensor(outcome: Outcome) -> None:
    outcome.loaded["resumed on 4"]["b"] = "other"


def spoil_names(outcome: Outcome) -> None:
    del outcome.loaded["resumed on 1"]["b"]


def spoil_step(outcome: Outcome) -> None:
    outcome.loaded_step["resumed on 4"] = 2


def spoil_end(outcome: Outcome) -> None:
    outcome.final["resumed on 1"]["a"] = "other"


def spoil_refusal(outcome: Outcome) -> None:
    outcome.refused = None


def spoil_listing(outcome: Outcome) -> None:
    outcome.listing = []


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_loss,
        spoil_all_losses,
        spoil_tensor,
        spoil_names,
        spoil_step,
        spoil_end,
        spoil_refusal,
        spoil_listing,
    ],
)
def test_one_difference_fails_the_demo(truthful: Outcome, spoil: Callable[[Outcome], None]) -> None:
    """The verdict is yes when everything is equal, and no as soon as anything at all is not."""
    spoiled = copy.deepcopy(truthful)
    spoil(spoiled)
    assert all(one.is_true for one in check(PLAN, truthful))
    assert not all(one.is_true for one in check(PLAN, spoiled))


def test_kept_checkpoints_stay(tmp_path: Path) -> None:
    """A place of the user's is emptied at the end, unless the user wants to keep the checkpoints."""
    for keep in (True, False):
        with given(f"file://{tmp_path}/{keep}", keep=keep) as place:
            open_store(place.uri).put("step-1/.metadata", [memoryview(b"x")])
        assert len(list(open_store(f"file://{tmp_path}/{keep}").list())) == int(keep)


def test_embedded_files_are_gone_afterwards() -> None:
    """The store that the demo brings along ends with it."""
    with embedded("file", part_size="5MiB") as place:
        open_store(place.uri).put("x", [memoryview(b"x")])
        directory = Path(place.uri.prefix)
        assert directory.is_dir()
    assert not directory.exists()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    """A message is read once it is whole: a rank may be writing it just now, or may have been killed over it."""
    tell, reader = MessageWriter(str(tmp_path), rank=0), MessageReader(str(tmp_path))
    tell("step", step=1)
    with (tmp_path / "rank-1.jsonl").open("w") as other:
        other.write('{"kind": "step", "ra')
        other.flush()
        first = reader.read()
        other.write(f'nk": 1, "time_s": {time.monotonic()}}}\n')
    assert [message["rank"] for message in first] == [0]
    assert [message["rank"] for message in reader.read()] == [1]
    assert reader.read() == []
