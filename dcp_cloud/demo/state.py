"""All that a training job needs to go on as if nothing had happened, and how to tell whether it is all there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor


@dataclass(slots=True)
class TrainState:
    """The state of a training job, in the form that torch's checkpoint functions take.

    Args:
        model: The model, sharded.
        optimizer: Its optimizer.
        scheduler: The schedule of the learning rate.
        position: The next sequence of the data set.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    position: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Collect everything; the tensors are this rank's shards."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "position": self.position,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take everything back."""
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state_dict["model"],
            optim_state_dict=state_dict["optimizer"],
        )
        self.scheduler.load_state_dict(state_dict["scheduler"])
        torch.set_rng_state(state_dict["random"])
        self.position = state_dict["position"]


def fingerprints(state: TrainState) -> dict[str, str]:
    """Hash every whole tensor and every other value, however they are sharded. All ranks have to call it.

    Args:
        state: What to hash.

    Returns:
        Name to SHA-256 on rank 0; empty on the others.
    """
    flat, _ = flatten_state_dict(state.state_dict())
    hashes: dict[str, str] = {}
    for name, value in sorted(flat.items()):
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if dist.get_rank() != 0:
            continue
        if isinstance(whole, torch.Tensor):
            digest = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)}".encode())
            digest.update(whole.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest = hashlib.sha256(repr(whole).encode())
        hashes[name] = digest.hexdigest()
    return hashes
