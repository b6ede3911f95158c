"""Two ranks that fail at every step in turn; module-level, since ranks are processes."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.errors import DcpCloudError
from dcp_cloud.testing.wrappers import Fault, FaultyStore

TRANSFER = TransferConfig(retry=RetryConfig(max_attempts=3, base_delay_s=0.001, max_delay_s=0.01))

# What is refused, or fails for ever, at each step of the protocol; coordinator only, where only it takes the step.
SAVE_STEPS = {
    "set_up": ("refuse", "[hg]e[at]*", "*.metadata"),
    "write_data": ("refuse", "put*", "*.distcp"),
    "write_data, transient": ("fail", "put*", "*.distcp"),
    "finish": ("refuse", "put", "*.metadata"),
    "finish, transient": ("fail", "put", "*.metadata"),
}
LOAD_STEPS = {
    "read_metadata": ("refuse", "get", "*.metadata"),
    "read_metadata, transient": ("fail", "get", "*.metadata"),
    "read_data": ("refuse", "get_range", "*"),
    "read_data, transient": ("fail", "get_range", "*"),
}
PLANNER_STEPS = ("set_up_planner", "create_local_plan", "create_global_plan", "finish_plan", "resolve_data")
LOAD_PLANNER_STEPS = ("set_up_planner", "create_local_plan", "create_global_plan", "finish_plan", "resolve_tensor")
COORDINATOR_ONLY = ("set_up", "finish", "finish, transient", "create_global_plan")


class PlannerError(RuntimeError):
    """A planner's own error."""


class TwoArgumentsError(Exception):
    """Pickles, but cannot be read again: pickle calls it with one argument."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class LockedError(Exception):
    """Cannot be pickled at all."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class NamelessError(LockedError):
    """Cannot be pickled, and asking for its text fails."""

    def __str__(self) -> str:
        raise LockedError


class Refusing:
    """A value that cannot be pickled, for a reason of its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def _failing(base: type, step: str) -> Any:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise PlannerError(step)

    return type("Failing", (base,), {step: fail})()


def _told(work: Any) -> tuple[list[str], float]:
    """Give the types of all ranks' errors, as this rank was told, and how long that took."""
    began_s = time.monotonic()
    try:
        work()
    except CheckpointException as error:
        pickle.loads(pickle.dumps([cause for cause, _ in error.failures.values()]))
        told = sorted(
            type(cause).__name__ if isinstance(cause, (DcpCloudError, PlannerError)) else f"untyped {cause!r}"
            for cause, _ in error.failures.values()
        )
        return told, time.monotonic() - began_s
    return [], time.monotonic() - began_s


def fail_at_every_step(uri: str, failing_rank: int, is_async: bool) -> dict[str, tuple[list[str], float]]:
    """Fail at one step after the other, each time on one rank; give what this rank was told."""
    state = {f"w{dist.get_rank()}": torch.arange(100.0), "common": torch.ones(3)}
    is_failing = dist.get_rank() == failing_rank

    def save(store: Any, planner: Any = None) -> None:
        writer = CloudStorageWriter(uri, store=store, transfer=TRANSFER)
        if is_async:
            dcp.async_save(state, storage_writer=writer, planner=planner).result()
        else:
            dcp.save(state, storage_writer=writer, planner=planner)

    def load(store: Any, planner: Any = None) -> None:
        target = {name: torch.zeros_like(value) for name, value in state.items()}
        reader = CloudStorageReader(uri, store=store, transfer=TRANSFER)
        dcp.load(target, storage_reader=reader, planner=planner)
        assert all(torch.equal(target[name], value) for name, value in state.items())

    def store(fault: tuple[Any, str, str]) -> Any:
        kind, verb, key = fault
        faults = [Fault(kind, verb=verb, key=key, times=None)] if is_failing else []
        return FaultyStore(open_store(uri), faults)

    save(open_store(uri))
    found = {}
    for step, fault in SAVE_STEPS.items():
        if failing_rank == 0 or step not in COORDINATOR_ONLY:
            found[f"save: {step}"] = _told(lambda fault=fault: save(store(fault)))
    for step in PLANNER_STEPS:
        if failing_rank == 0 or step not in COORDINATOR_ONLY:
            planner = _failing(dcp.DefaultSavePlanner, step) if is_failing else None
            found[f"save planner: {step}"] = _told(lambda planner=planner: save(open_store(uri), planner))
    for step, fault in LOAD_STEPS.items():
        found[f"load: {step}"] = _told(lambda fault=fault: load(store(fault)))
    for step in LOAD_PLANNER_STEPS:
        if failing_rank == 0 or step not in COORDINATOR_ONLY:
            planner = _failing(dcp.DefaultLoadPlanner, step) if is_failing else None
            found[f"load planner: {step}"] = _told(lambda planner=planner: load(open_store(uri), planner))
    load(open_store(uri))
    return found


def fail_with_foreign_errors(uri: str, failing_rank: int) -> dict[str, tuple[list[str], float]]:
    """Raise on one rank, in code that is not the package's, errors that do not survive pickling."""
    rank = dist.get_rank()
    is_failing = rank == failing_rank

    def save(value: object = "x", planner: Any = None, hook: Any = None) -> None:
        writer = CloudStorageWriter(uri, transfer=TRANSFER, on_event=hook)
        dcp.save({f"v{rank}": value, "w": torch.ones(3)}, storage_writer=writer, planner=planner)

    def load(planner: Any = None, hook: Any = None) -> None:
        reader = CloudStorageReader(uri, transfer=TRANSFER, on_event=hook)
        dcp.load({f"v{rank}": "", "w": torch.zeros(3)}, storage_reader=reader, planner=planner)

    def told(work: Any, *, value: object = None, planner: Any = None, hook: Any = None) -> tuple[list[str], float]:
        arguments = {"value": value, "planner": planner, "hook": hook} if is_failing else {}
        return _told(lambda: work(**{name: given for name, given in arguments.items() if given is not None}))

    def fails(error: Exception) -> Any:
        def fail(*args: Any) -> None:
            raise error

        return fail

    def planner(base: type, step: str, error: Exception) -> Any:
        return type("Failing", (base,), {step: fails(error)})()

    save()
    found = {}
    for error in (TwoArgumentsError("two", 2), LockedError(), NamelessError()):
        name = type(error).__name__
        found[f"{name}: value"] = told(save, value=Refusing(error))
        found[f"{name}: resolve_data"] = told(save, planner=planner(dcp.DefaultSavePlanner, "resolve_data", error))
        found[f"{name}: hook of a save"] = told(save, hook=fails(error))
        found[f"{name}: load_bytes"] = told(load, planner=planner(dcp.DefaultLoadPlanner, "load_bytes", error))
        found[f"{name}: hook of a load"] = told(load, hook=fails(error))
    load()
    return found
