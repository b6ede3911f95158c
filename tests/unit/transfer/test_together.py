"""A few things done at once."""

from __future__ import annotations

import threading

import pytest

from dcp_cloud.transfer.together import together
from tests.unit.transfer.tools import transfer_threads


def test_all_run_at_once_and_answer_in_order() -> None:
    """Each waits for the others, so none could end alone; the results stand where the calls stood."""
    meeting = threading.Barrier(3, timeout=20)

    def call(number: int) -> int:
        meeting.wait()
        return number

    assert together([lambda number=number: call(number) for number in range(3)]) == [0, 1, 2]


def test_the_first_error_is_raised_when_all_have_ended() -> None:
    """An error is raised as it is, and no thread is left."""
    ended = threading.Event()

    def fail() -> None:
        raise KeyError("first")

    def slow() -> None:
        ended.wait(0.05)
        ended.set()

    with pytest.raises(KeyError, match="first"):
        together([fail, slow])
    assert transfer_threads() == []
