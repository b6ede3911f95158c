"""Saves and loads of one long tensor; module-level, since each runs in a process of its own."""

from __future__ import annotations

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, CloudStorageWriter, TransferConfig
from dcp_cloud.config import MIB
from tests.checkpoint.memory_jobs import extra_bytes

TRANSFER = TransferConfig(max_inflight_bytes=128 * MIB)


def round_trip(uri: str, kind: str, nbytes: int) -> tuple[float, float]:
    """Save and load; give the memory that each took, MiB. The same tensor is the target, since two would be 16 GiB."""
    columns = 4096
    rows = nbytes // 4 // columns
    tensor = torch.empty(rows, columns + 8)[:, 4:-4] if kind == "scattered" else torch.empty(rows, columns)
    ramp = torch.arange(rows, dtype=torch.float32)
    tensor.copy_(ramp[:, None])
    state = {"w": tensor}
    saved = extra_bytes(lambda: dcp.save(state, storage_writer=CloudStorageWriter(uri, transfer=TRANSFER)))
    tensor.fill_(-1)
    loaded = extra_bytes(lambda: dcp.load(state, storage_reader=CloudStorageReader(uri, transfer=TRANSFER)))
    for start in range(0, rows, 4096):  # piece by piece: a comparison makes a tensor of its own
        assert (tensor[start : start + 4096] == ramp[start : start + 4096, None]).all()
    return saved / MIB, loaded / MIB
