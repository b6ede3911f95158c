"""The night, in short; the whole of it is ``scripts/night``."""

from __future__ import annotations

import os
import random

import pytest

from tests.manager.night import Night


@pytest.mark.timeout(300)
def test_a_short_night(place, tmp_path):
    """A job on two ranks is killed at random while somebody loads its latest checkpoint; in the end nothing is over."""
    uri = place("run", part_size="5MiB")
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    night = Night(uri, environment=dict(os.environ), directory=tmp_path, ranks=2, pause_s=0.3, seed=seed)
    report = night.run(10, kills=1)
    assert report.kills >= 1
    assert report.starts == report.kills + report.terminations
    assert report.checks >= 1
