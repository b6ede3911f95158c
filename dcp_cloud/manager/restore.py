"""Loading a step, the same one on every rank, and never another one than was asked for without saying so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from dcp_cloud.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
)
from dcp_cloud.manager.ranks import Ranks
from dcp_cloud.manager.steps import Steps

logger = logging.getLogger(__name__)


def restore(steps: Steps, ranks: Ranks, load: Callable[[int], None], *, step: int | None, fall_back: bool) -> int:
    """Find a step and load it.

    Args:
        steps: The steps of the run.
        ranks: The ranks.
        load: Loads a step; what it raises, it raises on every rank.
        step: Which; None for the latest.
        fall_back: Whether to load an earlier one if this is damaged.

    Returns:
        The step that was loaded.

    Raises:
        CheckpointNotFoundError: There is no checkpoint, or none of that step.
        DcpCloudError: Why it cannot be loaded.
    """
    found = ranks.decide(partial(_find, steps, step))
    tried: set[int] = set()
    while True:
        tried.add(found)
        try:
            load(found)
            return found
        except (CheckpointNotFoundError, IncompleteCheckpointError, CorruptCheckpointError) as error:
            newest, earlier = ranks.decide(partial(_alternatives, steps, found))
            if step is None and newest is not None and newest > max(tried):
                found = newest  # this one was deleted by another job, which has saved a newer one
            elif earlier is not None and fall_back:
                logger.error("step %d cannot be loaded, going back to step %d: %s", found, earlier, error)
                found = earlier
            else:
                error.hint = _advice(earlier)
                raise


def not_found(steps: Steps, step: int) -> CheckpointNotFoundError:
    """Say that there is no checkpoint of a step.

    Args:
        steps: The steps of the run.
        step: The missing one.

    Returns:
        The error to raise.
    """
    return CheckpointNotFoundError(
        f"there is no checkpoint of step {step}",
        key=f"{steps.uri}/{steps.names.name_of(step)}",
        hint="see which steps are there with list() of the manager, or with dcp-cloud ls",
    )


def _find(steps: Steps, step: int | None) -> int:
    if step is not None:
        if steps.head(step) is None:
            raise not_found(steps, step)
        return step
    latest = steps.latest()
    if latest is None:
        raise CheckpointNotFoundError(
            "no checkpoint is committed here",
            key=steps.uri,
            hint="latest() is None before the first save of a run; check the URI and name= if there should be one",
        )
    return latest


def _alternatives(steps: Steps, step: int) -> tuple[int | None, int | None]:
    return steps.latest(), steps.latest(below=step)


def _advice(earlier: int | None) -> str:
    if earlier is None:
        return "there is no earlier checkpoint; 'dcp-cloud verify' lists everything that is damaged"
    return f"the one before is step {earlier}: restore(state_dict, step={earlier}), or pass fall_back=True"
