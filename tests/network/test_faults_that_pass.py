"""One fault of a kind that may pass, at every step of a save and of a load: equal data, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from tests.network.clouds import AZURE, fault
from tests.network.conftest import Job

PASSING: Mapping[str, Mapping[str, Any]] = {
    "reset of the request": {"kind": "reset"},
    "reset of the answer": {"kind": "reset", "side": "response"},
    "half-close in the request": {"kind": "half_close"},
    "half-close in the answer": {"kind": "half_close", "side": "response"},
    "no answer, no effect": {"kind": "drop"},
    "no answer, but effect": {"kind": "drop", "side": "response"},
    "stalled request": {"kind": "stall"},
    "stalled answer": {"kind": "stall", "side": "response"},
    "500": {"kind": "status", "status": 500, "code": "InternalError"},
    "500 after the effect": {"kind": "status", "status": 500, "code": "InternalError", "side": "response"},
    "503 with Retry-After": {"kind": "status", "status": 503, "code": "SlowDown", "retry_after_s": 0},
    "429": {"kind": "status", "status": 429, "code": "TooManyRequests"},
    "answer cut short": {"kind": "truncate", "side": "response"},
    "sent twice": {"kind": "duplicate"},
    "dripping request": {"kind": "drip", "bytes_per_s": 64 * 1024**2},
    "dripping answer": {"kind": "drip", "side": "response", "bytes_per_s": 16 * 1024**2},
    "server down for a moment": {"kind": "refuse", "duration_s": 0.02},
}


@pytest.mark.parametrize("what", list(PASSING))
def test_a_fault_that_passes_changes_nothing(job: Job, what: str, nothing_left: Callable[..., None]) -> None:
    """A part, a completion, a commit and the reads are struck once each; what is loaded is what was saved."""
    settings = dict(PASSING[what])
    kind = settings.pop("kind")
    options = {"read_timeout": "200ms"} if kind == "stall" else {}
    after, steps = job.state(2), [job.cloud.part, job.cloud.commit]
    if not (kind == "duplicate" and job.cloud is AZURE):
        steps.append(job.cloud.complete)
    job.save(after, *(fault(kind, where, **settings) for where in steps), **options)
    assert {exchange.place for exchange in job.proxy.strikes} == set(range(len(steps))), job.proxy.exchanges
    loaded = job.load(
        fault(kind, job.cloud.read, **settings), fault(kind, job.cloud.read_commit, **settings), **options
    )
    assert all(torch.equal(loaded[name], after[name]) for name in after), job.proxy.replay
    assert len(job.proxy.strikes) >= len(steps) + 2, job.proxy.exchanges
    left = job.contents()
    assert len(left) == 2, left
    nothing_left(job.proxy)
