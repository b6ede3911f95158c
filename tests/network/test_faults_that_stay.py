"""Faults that no retry mends: a typed error, the previous checkpoint whole, nothing that a sweep does not clear."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import errors
from dcp_cloud.testing import NetworkFault
from tests.network.clouds import fault
from tests.network.conftest import Job, cause_of


def _always(kind: str, job: Job, **settings: object) -> NetworkFault:
    where = {**job.cloud.part, "times": None}
    if kind == "expired":
        return fault("status", {**where, **job.cloud.expired})
    return fault(kind, where, **settings)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("expired", errors.UnauthenticatedError),
        ("reset", errors.RetriesExhaustedError),
        ("drop", errors.RetriesExhaustedError),
        ("status", errors.RetriesExhaustedError),
    ],
)
def test_a_save_that_cannot_store_its_parts_leaves_the_previous_one(
    job: Job, kind: str, expected: type[Exception], nothing_left: Callable[..., None]
) -> None:
    """The error is typed and pickles, and what there was is there, no more and no less."""
    state = job.state(1)
    job.save(state)
    before = job.contents()
    with pytest.raises(CheckpointException) as caught:
        job.save(job.state(2), _always(kind, job))
    error = cause_of(caught.value)
    assert type(error) is expected, error
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert job.contents() == before
    loaded = job.load()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    nothing_left(job.proxy)


def test_a_server_that_goes_away_for_good(job: Job, nothing_left: Callable[..., None]) -> None:
    """The save gives up within its retries; when the server is back, a sweep clears what could not be aborted."""
    state = job.state(1)
    job.save(state)
    before = job.contents()
    with pytest.raises(CheckpointException) as caught:
        job.save(job.state(2), fault("refuse", job.cloud.part))
    assert type(cause_of(caught.value)) is errors.RetriesExhaustedError
    job.proxy.set_faults()
    job.sweep()
    assert job.contents() == before
    loaded = job.load()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    nothing_left(job.proxy)


def test_an_answer_that_was_lost_for_ever(job: Job) -> None:
    """A commit whose answers are all lost fails, but took effect: the new checkpoint is there, whole."""
    job.save(job.state(1))
    after = job.state(2)
    lost = {"kind": "drop", "side": "response", "times": None}
    with pytest.raises(CheckpointException) as caught:
        # The first look at .metadata is the beginning of a save.
        job.save(after, NetworkFault(**lost, **job.cloud.commit), NetworkFault(**lost, **job.cloud.read_commit, nth=2))
    assert isinstance(cause_of(caught.value), errors.StoreError)
    loaded = job.load()
    assert all(torch.equal(loaded[name], after[name]) for name in after)


@pytest.mark.parametrize("kind", ["expired", "reset", "truncate"])
def test_a_load_that_cannot_read(job: Job, kind: str, nothing_left: Callable[..., None]) -> None:
    """A load that never gets its bytes says so; it does not hand out what it got."""
    job.save(job.state(1))
    where = {**job.cloud.read, "times": None, "nth": 2}
    struck = (
        fault("status", {**where, **job.cloud.expired})
        if kind == "expired"
        else fault(kind, {**where, "side": "response"})
    )
    with pytest.raises(CheckpointException) as caught:
        job.load(struck)
    expected = errors.UnauthenticatedError if kind == "expired" else errors.RetriesExhaustedError
    assert type(cause_of(caught.value)) is expected
    nothing_left(job.proxy)
