"""Bytes that change on their way: who notices, and that nobody loads numbers that were not saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import errors
from tests.network.clouds import GCS, fault
from tests.network.conftest import Job, cause_of


def _attempt(work: Callable[[], Any]) -> Any:
    """Give what work returns, or what happened to the rank."""
    try:
        return work()
    except CheckpointException as error:
        return cause_of(error)


def _outcome(job: Job, kind: str, where: Mapping[str, Any], **options: str) -> str:
    """Save with one struck request and load: who noticed."""
    state = job.state(3)
    if isinstance(_attempt(lambda: job.save(state, fault(kind, where), **options)), errors.DcpCloudError):
        return "the save fails"
    (strike,) = job.proxy.strikes[-1:]
    assert strike.fault is not None
    loaded = _attempt(job.load)
    if isinstance(loaded, errors.CorruptCheckpointError):
        return "the load refuses"
    assert all(torch.equal(loaded[name], state[name]) for name in state), "wrong numbers were loaded"
    return "the request is repeated"


# Ceph ignores the CRC-32 that goes with each part, which Amazon's S3 verifies. Google's answers tell the checksum of
# what was stored. Azure verifies nothing unless it is asked to, but the length is signed.
_NOTICED = {
    ("ceph", "flip_bit"): "the load refuses",
    ("ceph", "truncate"): "the save fails, or the request is repeated",
    ("fake-gcs", "flip_bit"): "the request is repeated",
    ("fake-gcs", "truncate"): "the request is repeated",
    ("azurite", "flip_bit"): "the load refuses",
    ("azurite", "truncate"): "the save fails",
}


@pytest.mark.parametrize("kind", ["flip_bit", "truncate"])
def test_a_part_that_changes_on_its_way_there(job: Job, kind: str) -> None:
    """The server, the save or at the latest the load notices, by checksums of its own."""
    assert _outcome(job, kind, job.cloud.part) in _NOTICED[job.cloud.server, kind]


@pytest.mark.parametrize("job", ["azure"], indirect=True)
def test_azure_verifies_a_part_if_it_is_asked_to(job: Job) -> None:
    """With checksums=md5 the service refuses a part that changed. Azurite does so with another code than Azure."""
    assert _outcome(job, "flip_bit", job.cloud.part, checksums="md5") == "the save fails"


def test_a_commit_that_changes_on_its_way_there(job: Job) -> None:
    """A damaged .metadata is not believed: the save sees it in Google's answer, the load by the seal."""
    expected = "the save fails" if job.cloud is GCS else "the load refuses"
    assert _outcome(job, "flip_bit", job.cloud.commit) == expected


@pytest.mark.parametrize("seed", range(2))
def test_answers_that_change_on_their_way_back(job: Job, seed: int) -> None:
    """Whatever bit of whatever answer is wrong: equal data or a typed error, for saves and loads."""
    job.proxy.schedule.seed = seed
    state = job.state(seed)
    everything = fault("flip_bit", {"method": "*"}, side="response", times=None, chance=0.2)
    saved = _attempt(lambda: job.save(state, everything))
    assert saved is None or isinstance(saved, errors.DcpCloudError), job.proxy.replay
    job.save(state)
    loaded = _attempt(lambda: job.load(everything))
    if not isinstance(loaded, errors.DcpCloudError):
        assert all(torch.equal(loaded[name], state[name]) for name in state), job.proxy.replay
