"""Doing a few things at once that each wait for one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from dcp_cloud.transfer.workers import WorkerPool

ResultT = TypeVar("ResultT")


def together(calls: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
    """Run calls at once, each on a thread of its own.

    Args:
        calls: What to run.

    Returns:
        What they returned, in the same order.

    Raises:
        BaseException: The first error of one of them; the others are broken off.
    """
    results: dict[int, ResultT] = {}

    def run(index: int) -> None:
        results[index] = calls[index]()

    with WorkerPool(len(calls), queue_limit=0, name="dcp_cloud-together") as pool:
        for index in range(len(calls)):
            pool.submit(lambda index=index: run(index))  # type: ignore[misc]
        pool.join()
    return [results[index] for index in range(len(calls))]
