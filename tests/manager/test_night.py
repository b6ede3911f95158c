"""The night, in short; the whole of it is ``scripts/night``."""

from __future__ import annotations

import os

import pytest

from tests.manager.night import Night


@pytest.mark.timeout(300)
def test_a_short_night(place, tmp_path):
    """A job on two ranks is killed at random while somebody loads its latest checkpoint; in the end nothing is over."""
    uri = place("run", part_size="5MiB")
    night = Night(uri, environment=dict(os.environ), directory=tmp_path, ranks=2, pause_s=0.3, seed=os.getpid())
    report = night.run(10)
    assert report.starts >= 1
    assert report.checks >= 1
