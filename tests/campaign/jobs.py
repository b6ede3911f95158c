"""What a job of the campaign does: save or load once, and say how it ended."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from dcp_cloud import CloudStorageReader, CloudStorageWriter
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import DcpCloudError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing.wrappers import SimulatedCrash
from dcp_cloud.transfer.budget import PROCESS_BUDGET, ByteBudget
from tests.campaign.states import make_state, sharded_names
from tests.checkpoint.states import equal, zeros_like

# After these a job has committed nothing for certain.
REFUSED = ("CheckpointExistsError", "CommitConflictError", "IncompleteCheckpointError", "UnsupportedFormatError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a save or a load ended.

    Args:
        errors: Type names of what was raised; none for a success.
        text: The first message.
        versions: What a load brought: the versions that it equals.
        duration_s: How long it took.
        complaints: What must not be: untyped errors, errors that do not pickle, budgets exceeded.
    """

    errors: tuple[str, ...] = ()
    text: str = ""
    versions: tuple[int, ...] = ()
    duration_s: float = 0.0
    complaints: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing was raised."""
        return not self.errors

    @property
    def is_refused(self) -> bool:
        """Whether the job says that it committed nothing."""
        return bool(self.errors) and all(name in REFUSED for name in self.errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The state dict of a run.

    Args:
        seed: Decides it.
        is_large: Whether it has a tensor of several parts.
    """

    seed: int
    is_large: bool = False

    def state(self, version: int) -> dict[str, Any]:
        """Make a version."""
        return make_state(self.seed, version, is_large=self.is_large)

    def matching(self, state: dict[str, Any], versions: tuple[int, ...]) -> tuple[int, ...]:
        """Give the versions that a loaded state dict equals, bit by bit."""
        return tuple(version for version in versions if equal(state, self.state(version)))


VERSIONS = (1, 2, 3, 4)
"""All that any job ever saves."""


def save(
    uri: str,
    store: ObjectStore,
    content: Content,
    version: int,
    transfer: TransferConfig,
    *,
    overwrite: bool = True,
    mode: str = "none",
    is_sharded: bool = False,
    **options: Any,
) -> Outcome:
    """Save a version."""
    state = content.state(version)
    if is_sharded:
        state = shard(state)

    def work() -> tuple[int, ...]:
        writer = CloudStorageWriter(uri, store=store, transfer=transfer, overwrite=overwrite)
        if mode == "none":
            dcp.save(state, storage_writer=writer, **options)
            return ()
        future = dcp.async_save(state, storage_writer=writer, **options)
        for value in state.values():  # the job goes on training: what is saved was staged before
            if isinstance(value, torch.Tensor) and not isinstance(value, (torch.nn.Parameter, DTensor)):
                with contextlib.suppress(RuntimeError):  # an expanded tensor cannot be written to
                    value.zero_()
        future.result()
        return ()

    return _run(work)


def load(
    uri: str,
    store: ObjectStore,
    content: Content,
    transfer: TransferConfig,
    *,
    is_sharded: bool = False,
    **options: Any,
) -> Outcome:
    """Load, and tell which version it is."""
    target = zeros_like(content.state(1))
    if is_sharded:
        target = shard(target)

    def work() -> tuple[int, ...]:
        dcp.load(target, storage_reader=CloudStorageReader(uri, store=store, transfer=transfer), **options)
        return content.matching(unshard(target) if is_sharded else target, VERSIONS)

    return _run(work)


def shard(state: dict[str, Any]) -> dict[str, Any]:
    """Spread the rows of all tensors that have some over the ranks."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    names = sharded_names(state)
    return {name: _sharded(value, mesh) if name in names else value for name, value in state.items()}


def _sharded(whole: torch.Tensor, mesh: Any) -> torch.Tensor:
    chunks = whole.detach().contiguous().chunk(mesh.size(), 0)
    local = chunks[dist.get_rank()] if dist.get_rank() < len(chunks) else whole.detach()[:0]
    return DTensor.from_local(
        local.clone(), mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.contiguous().stride()
    )


def unshard(state: dict[str, Any]) -> dict[str, Any]:
    """Give every tensor whole, gathered as bytes since gloo does not know every dtype."""
    return {name: _whole(value) if isinstance(value, DTensor) else value for name, value in state.items()}


def _whole(value: DTensor) -> torch.Tensor:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value.to_local().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    joined = b"".join(parts)
    if not joined:
        return torch.empty(value.shape, dtype=value.dtype)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(value.dtype).view(value.shape)


def _run(work: Callable[[], tuple[int, ...]]) -> Outcome:
    began_s = time.monotonic()
    try:
        versions = work()
    except (Exception, CheckpointException, SimulatedCrash) as error:
        errors, complaints = _judge(error)
        text = " ".join(str(error).split())[-400:]
        return Outcome(errors=errors, text=text, duration_s=time.monotonic() - began_s, complaints=complaints)
    return Outcome(versions=versions, duration_s=time.monotonic() - began_s)


def _judge(error: BaseException) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name the errors of all ranks, and say what is wrong with them."""
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    complaints = []
    for cause in causes:
        if isinstance(cause, SimulatedCrash):
            continue
        if not isinstance(cause, DcpCloudError):
            complaints.append(f"untyped error {type(cause).__name__}: {cause}")
            continue
        again = pickle.loads(pickle.dumps(cause))
        if (type(again), str(again)) != (type(cause), str(cause)):
            complaints.append(f"{type(cause).__name__} does not survive pickling")
    return tuple(type(cause).__name__ for cause in causes), tuple(complaints)


@contextlib.contextmanager
def watched_budget(transfer: TransferConfig, *, min_part_bytes: int) -> Iterator[list[str]]:
    """Collect complaints of a budget that grants more than it has, and of bytes that are never given back.

    More than the limit may be held by pieces that are longer than it: for each transfer one, what was gathered before
    it, and one open part, which is as long as the store demands.
    """
    part_bytes = max(transfer.part_size_bytes, min_part_bytes)
    complaints: list[str] = []
    longest = {"bytes": 0}
    grant = ByteBudget._grant

    def watched(self: ByteBudget, account: Any, nbytes: int) -> None:
        grant(self, account, nbytes)
        longest["bytes"] = max(longest["bytes"], nbytes)
        allowed = transfer.max_inflight_bytes + 2 * (part_bytes + 2 * longest["bytes"])
        if self.held_bytes > allowed:
            complaints.append(f"{self.held_bytes} bytes are held of {transfer.max_inflight_bytes}")

    with mock.patch.object(ByteBudget, "_grant", watched):
        yield complaints
    if PROCESS_BUDGET.held_bytes:
        complaints.append(f"{PROCESS_BUDGET.held_bytes} bytes were never given back")
