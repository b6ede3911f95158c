"""What ranks do in the tests of bare checkpoint ids; module-level functions, since ranks are spawned."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.checkpoint as dcp

import dcp_cloud
from tests.checkpoint import rank_jobs
from tests.checkpoint.rank_jobs import SIZES, distributed, full_tensors
from tests.checkpoint.states import equal


def save(uri: str, seed: int) -> None:
    """Save with nothing but a checkpoint id."""
    dcp_cloud.install()
    dcp.save(distributed(full_tensors(seed)), checkpoint_id=uri)


def load(uri: str, seed: int) -> list[str]:
    """Load with nothing but a checkpoint id; return what differs."""
    dcp_cloud.install()
    state = distributed({name: torch.zeros(size) for name, size in SIZES.items()})
    dcp.load(state, checkpoint_id=uri)
    expected = full_tensors(seed)
    return [name for name in SIZES if not equal(state[name].full_tensor(), expected[name])]


def background(uris: list[str], kind: str) -> list[str]:
    """Save in the background with nothing but a checkpoint id; report each outcome."""
    dcp_cloud.install()
    options: dict[str, Any] = {}
    if kind == "process":
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        options = {"async_checkpointer_type": AsyncCheckpointerType.PROCESS}
    outcomes = []
    for uri in uris:
        try:
            dcp.async_save(distributed(full_tensors(1)), checkpoint_id=uri, **options).result()
            outcomes.append("ok")
        except BaseException as error:
            outcomes.append(rank_jobs.outcome(error))
    return outcomes
