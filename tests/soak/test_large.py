"""One tensor of 8 GiB, many times longer than all the memory that a save or load may take."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcp_cloud.config import GIB, MIB
from tests.soak import large_jobs
from tests.support.ranks import run_ranks


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["plain", "scattered"])
def test_a_tensor_of_eight_gibibytes_comes_back(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """It is saved and loaded within the bound."""
    if request.config.getoption("--soak-s") < 60:
        pytest.skip("takes minutes, 9 GiB of memory and of disk: --soak-s=60 runs it")
    uri = f"file://{tmp_path}/run"
    save_mib, load_mib = run_ranks(1, large_jobs.round_trip, uri, kind, 8 * GIB, timeout_s=1500)[0]
    bound = large_jobs.TRANSFER.max_inflight_bytes / MIB + 64
    assert save_mib <= bound
    assert load_mib <= bound
