"""A save or load of 512 MiB takes no more memory of its own than it was allowed, measured by the kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from dcp_cloud.config import MIB
from tests.checkpoint import memory_jobs
from tests.support.ranks import run_ranks

Place = Callable[..., str]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
BOUND_MIB = memory_jobs.TRANSFER.max_inflight_bytes / MIB + 64


@pytest.mark.parametrize(
    ("place", "kind"),
    [("file", "plain"), ("file", "scattered"), ("ceph", "plain"), ("ceph", "scattered")],
    indirect=["place"],
)
def test_a_save_holds_no_second_copy(place: Place, kind: str) -> None:
    """Tensors leave from their own memory; those that have to be gathered first do so within the bound."""
    assert run_ranks(1, memory_jobs.memory_of_save, place(), kind)[0] <= BOUND_MIB


@pytest.mark.parametrize(
    ("place", "kind"),
    [*(("file", kind) for kind in ("plain", "converted", "turned", "apart")), ("ceph", "plain"), ("ceph", "converted")],
    indirect=["place"],
)
def test_a_load_holds_no_second_copy(place: Place, kind: str) -> None:
    """Bytes land where they belong; other dtypes and layouts pass through temporaries within the bound."""
    assert run_ranks(1, memory_jobs.memory_of_load, place(), kind)[0] <= BOUND_MIB


@pytest.mark.parametrize("place", ["file"], indirect=True)
def test_saves_at_once_share_one_bound(place: Place) -> None:
    """Three saves of a process at the same time hold no more than one may; with a bound for each they hold more."""
    assert run_ranks(1, memory_jobs.memory_of_saves_at_once, place(), "shared")[0] <= BOUND_MIB
    assert run_ranks(1, memory_jobs.memory_of_saves_at_once, place(), "apart")[0] > BOUND_MIB


@pytest.mark.parametrize("place", ["file"], indirect=True)
def test_the_measurement_sees_copies(place: Place) -> None:
    """A writer that makes its items in memory, and a load that lands elsewhere first, are far beyond the bound."""
    assert run_ranks(1, memory_jobs.memory_of_save, place(), "copying")[0] > BOUND_MIB + 64
    assert run_ranks(1, memory_jobs.memory_of_load, place(), "copying")[0] > BOUND_MIB + 256
