"""A failure on any rank, at any step, is heard on all ranks: typed, at once, and without harm to what was there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dcp_cloud import open_store
from tests.checkpoint import failure_jobs
from tests.support.ranks import run_ranks

Place = Callable[..., str]

# Far less than the minutes after which a process group gives up on a rank, far more than any step takes.
_QUICK_S = 20.0


@pytest.mark.parametrize("is_async", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("failing_rank", [0, 1])
@pytest.mark.parametrize("place", ["file"], indirect=True)
def test_every_rank_hears_of_a_failure_at_any_step(place: Place, failing_rank: int, is_async: bool) -> None:
    """Store and planner fail at each step of a save and a load on one rank: both are told, and the same."""
    uri = place()
    first, second = run_ranks(2, failure_jobs.fail_at_every_step, uri, failing_rank, is_async)
    assert first.keys() == second.keys()
    assert len(first) >= (14 if failing_rank else 19)
    for step, (told, duration_s) in first.items():
        expected = "PlannerError" if "planner" in step else "PermissionDeniedError"
        expected = "RetriesExhaustedError" if "transient" in step else expected
        assert told == [expected], step
        assert second[step][0] == told, step
        assert max(duration_s, second[step][1]) < _QUICK_S, step
    store = open_store(uri)
    assert not list(store.list_multiparts())


@pytest.mark.parametrize("failing_rank", [0, 1])
@pytest.mark.parametrize("place", ["file"], indirect=True)
def test_errors_that_do_not_pickle_are_heard_too(place: Place, failing_rank: int) -> None:
    """What values, planners and hooks raise reaches all ranks at once, also if it cannot be pickled or read again."""
    first, second = run_ranks(2, failure_jobs.fail_with_foreign_errors, place(), failing_rank)
    assert len(first) == 15
    for step, (told, duration_s) in first.items():
        assert told == second[step][0] == ["CheckpointError"], step
        assert max(duration_s, second[step][1]) < _QUICK_S, step
