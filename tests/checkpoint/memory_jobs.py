"""Saves and loads whose memory is measured; module-level, since each runs in a process of its own."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from dcp_cloud import CloudStorageReader, CloudStorageWriter, TransferConfig
from dcp_cloud.checkpoint import encode
from dcp_cloud.config import MIB
from dcp_cloud.transfer import engine
from dcp_cloud.transfer.budget import Account, ByteBudget

TRANSFER = TransferConfig(part_size_bytes=8 * MIB, max_concurrency=8, max_inflight_bytes=64 * MIB)
ROWS = 4096


def tensors() -> dict[str, torch.Tensor]:
    """Make 512 MiB: one long tensor and many of 4 MiB."""
    long = torch.arange(ROWS * ROWS * 4, dtype=torch.float32).view(ROWS * 4, ROWS)
    return {"long": long, **{f"w{n}": torch.full((MIB,), float(n)) for n in range(64)}}


def scattered() -> dict[str, torch.Tensor]:
    """Make the same with gaps between the rows, so that no tensor is one run of memory."""
    long = torch.ones(ROWS * 4, ROWS + 7)
    return {"long": long[:, 3:-4], **{f"w{n}": torch.ones(1024, 1025)[:, :-1] for n in range(64)}}


def blank(saved: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """Make targets, every page of them in memory."""
    if kind == "converted":
        return {name: torch.full(value.shape, 7.0, dtype=torch.float64) for name, value in saved.items()}
    if kind == "turned":
        return {
            name: torch.full(value.shape[::-1], 7.0).permute(*range(value.dim())[::-1]) for name, value in saved.items()
        }
    if kind == "apart":
        return {name: torch.full((*value.shape, 2), 7.0)[..., 1] for name, value in saved.items()}
    return {name: torch.full(value.shape, 7.0) for name, value in saved.items()}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def extra_bytes(work: Callable[[], object]) -> int:
    """Run something; give by how much the resident memory exceeded, at most, what it was before."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc_pid_clear_refs(5))
    work()
    return _status("VmHWM") - before


def _warm_up(uri: str) -> None:
    """Load modules and connect: that is not what is measured."""
    state = {"w": torch.ones(2 * MIB), "v": torch.ones(3, 3)[:, 1:]}
    dcp.save(state, storage_writer=CloudStorageWriter(uri, transfer=TRANSFER))
    dcp.load(state, storage_reader=CloudStorageReader(uri, transfer=TRANSFER))


def memory_of_save(uri: str, kind: str) -> float:
    """Measure a save, MiB."""
    _warm_up(uri)
    state = scattered() if kind == "scattered" else tensors()
    if kind == "copying":
        encode.open_tensor = lambda *args, **kwargs: None  # everything goes through torch.save
    writer = CloudStorageWriter(uri, transfer=TRANSFER)
    return extra_bytes(lambda: dcp.save(state, storage_writer=writer)) / MIB


def memory_of_saves_at_once(uri: str, kind: str) -> float:
    """Measure three saves at the same time, MiB."""
    _warm_up(uri)
    if kind == "apart":
        engine.PROCESS_BUDGET = _BudgetEach()  # type: ignore[assignment]
    states = [{f"w{n}": torch.ones(1024, 1025)[:, :-1] for n in range(24)} for _ in range(3)]
    root, mark, query = uri.partition("?")
    writers = [CloudStorageWriter(f"{root}-{n}{mark}{query}", transfer=TRANSFER) for n in range(3)]

    def work() -> None:
        threads = [
            threading.Thread(target=dcp.save, args=(state,), kwargs={"storage_writer": writer, "no_dist": True})
            for state, writer in zip(states, writers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    used = extra_bytes(work) / MIB
    assert all(writer.last_save is not None and writer.last_save.items == 24 for writer in writers)
    return used


class _BudgetEach:
    """A budget for each transfer: what there was before the process had one."""

    def open(self, limit_bytes: int) -> Account:
        return ByteBudget().open(limit_bytes)


def memory_of_load(uri: str, kind: str) -> float:
    """Measure a load, MiB."""
    saved = tensors()
    dcp.save(saved, storage_writer=CloudStorageWriter(uri, transfer=TRANSFER))
    loaded = blank(saved, kind)
    root, mark, query = uri.partition("?")
    _warm_up(f"{root}-warm{mark}{query}")
    reader = CloudStorageReader(uri, transfer=TRANSFER)
    used = extra_bytes(lambda: _load(loaded, reader, kind)) / MIB
    for name, value in saved.items():
        assert torch.equal(loaded[name].to(torch.float32), value), name
    return used


def _load(loaded: dict[str, torch.Tensor], reader: CloudStorageReader, kind: str) -> None:
    dcp.load(loaded, storage_reader=reader, planner=_Copies() if kind == "copying" else None)


class _Copies(dcp.DefaultLoadPlanner):
    """Fills tensors of its own and copies them over at the end: what a load that lands elsewhere first would do."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[int, torch.Tensor] = {}

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        place = super().resolve_tensor(read_item)
        own = torch.empty_like(place)
        self._places[own.data_ptr()] = place
        return own

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self._places[tensor.data_ptr()].copy_(tensor)
