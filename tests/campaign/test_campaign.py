"""A part of the fault campaign: the same seeds each time, and fresh ones, which the output names.

The whole of it is ``./scripts/campaign``; what it has found is in docs/reliability.md.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dcp_cloud.checkpoint.commit import Before, commit
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import ObjectUpload
from tests.campaign.__main__ import main
from tests.campaign.places import Places
from tests.campaign.plan import KINDS, STORES, draw_run
from tests.campaign.worker import run_seed

_IN_PROCESS = "alone,race,zombie,readers"


def run_campaign(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a campaign as from a shell; fail with its finds, each of which says how to run it again."""
    code = main(arguments)
    told = capsys.readouterr().out
    print(told)
    assert code == 0, told
    return told


def fresh_range(length: int) -> str:
    """Draw seeds that no run had before."""
    first = random.SystemRandom().randrange(10**6, 10**9)
    return f"{first}:{first + length}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", ["0:150", fresh_range(150)], ids=["fixed", "fresh"])
def test_faults_races_zombies_and_readers(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In memory and on disk, under any faults: what was saved is loaded, what failed is told, nothing is left."""
    told = run_campaign(capsys, "--seeds", seeds, "--stores", "memory,file", "--kinds", _IN_PROCESS, "--workers", "1")
    assert "150 runs, 0 finds" in told


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", ["0:30", fresh_range(30)], ids=["fixed", "fresh"])
def test_processes_that_are_killed(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL at any request, of one process or of some ranks: the old checkpoint or the new one, whole."""
    run_campaign(capsys, "--seeds", seeds, "--stores", "file", "--kinds", "killed,ranks", "--workers", "1")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", ["0:5", fresh_range(3)], ids=["fixed", "fresh"])
def test_the_same_on_servers(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same against real servers, which answer as clouds do."""
    servers = "ceph,moto,fake-gcs,azurite"
    run_campaign(capsys, "--seeds", seeds, "--stores", servers, "--kinds", f"{_IN_PROCESS},killed", "--workers", "1")


def test_a_seed_always_draws_the_same_run() -> None:
    """What a seed decides does not depend on the process, and all kinds and stores are drawn."""
    assert draw_run(4711) == draw_run(4711)
    assert draw_run(4711).faults() == draw_run(4711).faults()
    runs = [draw_run(seed) for seed in range(4000)]
    assert {run.kind for run in runs} == set(KINDS)
    assert {run.store for run in runs} == set(STORES)
    assert all(count >= 5 for count in Counter(run.kind for run in runs).values())


def _commit_at_once(store: Any, data: bytes, before: Before, **_: Any) -> None:
    store.put(before.key, [memoryview(data)])


def _delete_too_early(store: Any, data: bytes, before: Before, **options: Any) -> None:
    store.delete([meta.key for meta in store.list() if before.etag and meta.key.endswith(".distcp")])
    commit(store, data, before, **options)


def _forget_data(upload: ObjectUpload, spans: Sequence[Span]) -> None:
    """Store nothing and say that it was stored."""
    upload._uploader.sent(spans)


@pytest.mark.parametrize(
    ("where", "broken", "kind"),
    [
        ("dcp_cloud.checkpoint.writer.commit", _commit_at_once, "race"),
        ("dcp_cloud.checkpoint.writer.commit", _delete_too_early, "alone"),
        ("dcp_cloud.transfer.upload.ObjectUpload._put", _forget_data, "alone"),
    ],
    ids=["unconditional-commit", "early-deletion", "lost-data"],
)
def test_a_broken_promise_is_found(
    where: str, broken: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The campaign can fail: with a writer that keeps one promise less, some seed says so."""
    monkeypatch.setattr(where, broken)
    verdicts = (run_seed(seed, ["memory"], [kind], Places({})) for seed in range(200))
    assert any(verdict.broken for verdict in verdicts)
