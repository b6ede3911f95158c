"""One rank of one way to save and load, in a process of its own: told what to do on its standard input.

Runs under each peer's interpreter. Keeps its state dict between commands, so that processes start once and the measured
saves and loads of all peers can take turns.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from benchmarks.peers import PEERS

# 4 MiB with 1024 columns.
_BLOCK_ROWS = 1024

warnings.filterwarnings("ignore")


@dataclass(frozen=True)
class Task:
    """What the process was started for."""

    peer: str
    rank: int
    world: int
    port: int
    tensors: int
    shape: tuple[int, ...]
    dim: int  # along which tensors are cut between ranks
    kind: str = "plain"  # or transposed (no contiguous memory), or bfloat16 (for loading: another dtype than stored)
    process_group: bool = False  # even for a single rank, as async_save demands


class Worker:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.peer = PEERS[task.peer]
        torch.set_num_threads(1)
        self.mesh = None
        if task.world > 1 or task.process_group:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(task.port), GLOO_SOCKET_IFNAME="lo")
            dist.init_process_group("gloo", rank=task.rank, world_size=task.world)
        if task.world > 1:
            self.mesh = dist.device_mesh.init_device_mesh("cpu", (task.world,))
        # What each tensor holds, but for a number that differs from tensor to tensor. A single tensor may be as long as
        # memory allows: what it holds is made again where it is needed.
        self.base = self._cut(_pattern(task.shape)) if task.tensors > 1 else None
        self.state = self._make(task.tensors, self.base) if task.tensors > 1 else {"weight": _pattern(task.shape)}

    def _cut(self, full: torch.Tensor) -> torch.Tensor:
        if self.mesh is None:
            return full
        return full.chunk(self.task.world, self.task.dim)[self.task.rank].contiguous()

    def _make(self, count: int, base: torch.Tensor) -> dict[str, Any]:
        return {f"layer{i:06d}.weight": self._wrap(self._as_kind(base + _mark(i))) for i in range(count)}

    def _as_kind(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.task.kind == "bfloat16":
            return tensor.to(torch.bfloat16)
        return tensor.t() if self.task.kind == "transposed" else tensor

    def _wrap(self, local: torch.Tensor) -> Any:
        if self.mesh is None:
            return local
        from torch.distributed.tensor import DTensor, Shard

        return DTensor.from_local(local, self.mesh, [Shard(self.task.dim)], run_check=False)

    def warm_up(self, path: str) -> None:
        """Import, connect, allocate: what a training job has long done by its second save."""
        state = self._make(4, self._cut(torch.zeros(64, 64)))
        dcp.save(state, storage_writer=self.peer.writer(path, self.peer.threads))
        dcp.load(state, storage_reader=self.peer.reader(path, self.peer.threads))

    def save(self, path: str) -> dict[str, float]:
        return self._measured(lambda: dcp.save(self.state, storage_writer=self.peer.writer(path, self.peer.threads)))

    def load(self, path: str) -> dict[str, float]:
        for value in self.state.values():
            _local(value).fill_(-1)
        result = self._measured(lambda: dcp.load(self.state, storage_reader=self.peer.reader(path, self.peer.threads)))
        for i, value in enumerate(self.state.values()):
            self._compare(i, _local(value))
        return result

    def _compare(self, number: int, found: torch.Tensor) -> None:
        """Compare what was loaded with what was saved, block by block so as to take little memory."""
        saved = self.base.t() if self.base is not None and self.task.kind == "transposed" else self.base
        for row in range(0, found.shape[0], _BLOCK_ROWS):
            block = found[row : row + _BLOCK_ROWS]
            if saved is None:
                wanted = _pattern(block.shape, first_row=row)
            else:
                wanted = (saved[row : row + _BLOCK_ROWS] + _mark(number)).to(block.dtype)
            assert torch.equal(block, wanted), f"tensor {number} is not what was saved"

    def repeat(self, verb: str, path: str, seconds: float) -> None:
        """Save or load again and again, without looking at the result: for a profiler."""
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            if verb == "save":
                dcp.save(self.state, storage_writer=self.peer.writer(path, self.peer.threads))
            else:
                dcp.load(self.state, storage_reader=self.peer.reader(path, self.peer.threads))

    def save_async(self, path: str, kind: str) -> dict[str, float]:
        """Measure how long the training loop is held up, and how fast it steps until the upload ends."""
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        alone = self._steps_per_s(lambda began_s: time.perf_counter() - began_s > 0.5)
        began_s = time.perf_counter()
        answer: Any = dcp.async_save(
            self.state,
            storage_writer=self.peer.writer(path, self.peer.threads),
            async_checkpointer_type=AsyncCheckpointerType.THREAD if kind == "thread" else AsyncCheckpointerType.PROCESS,
        )
        blocked_s = time.perf_counter() - began_s
        future = getattr(answer, "upload_completion", answer)
        during = self._steps_per_s(lambda _: future.done())
        future.result()
        return {"blocked_s": blocked_s, "wall_s": time.perf_counter() - began_s, "pace": during / alone}

    def _steps_per_s(self, is_over: Any) -> float:
        weight = torch.ones(256, 256)
        steps, began_s = 0, time.perf_counter()
        while not is_over(began_s) or not steps:
            torch.mm(weight, weight)
            steps += 1
        return steps / (time.perf_counter() - began_s)

    def copy(self) -> dict[str, float]:
        """Copy the state to memory that is there already: staging cannot take less."""
        if not hasattr(self, "staged"):
            self.staged = [_local(value).clone() for value in self.state.values()]
        began_s = time.perf_counter()
        for target, value in zip(self.staged, self.state.values(), strict=True):
            target.copy_(_local(value))
        return {"wall_s": time.perf_counter() - began_s}

    def _measured(self, action: Any) -> dict[str, float]:
        gc.collect()
        if self.mesh is not None:
            dist.barrier()
        _reset_peak()
        rss, began_cpu_s, began_s = _status("VmRSS"), _cpu_s(), time.perf_counter()
        action()
        wall_s, used_s = time.perf_counter() - began_s, _cpu_s() - began_cpu_s
        return {
            "wall_s": wall_s,
            "cpu_s": used_s,
            "rss_growth_mib": max(0, _status("VmHWM") - rss) / 1024,
            "threads": threading.active_count(),
        }


def _pattern(shape: tuple[int, ...], *, first_row: int = 0) -> torch.Tensor:
    """Make rows of which no block of a few MiB is like another. All numbers are whole and exact in float32."""
    rows, columns = shape
    result = torch.empty(rows, columns)
    block = torch.arange(_BLOCK_ROWS * columns, dtype=torch.float32).reshape(_BLOCK_ROWS, columns)
    for row in range(0, rows, _BLOCK_ROWS):
        part = result[row : row + _BLOCK_ROWS]
        torch.add(block[: len(part)], (first_row + row) // _BLOCK_ROWS, out=part)
    return result


def _mark(number: int) -> int:
    """Give what is added to the tensor of this number, so that blocks differ between tensors too."""
    return 4096 * (number % 2048)


def _local(value: Any) -> torch.Tensor:
    return value.to_local() if hasattr(value, "to_local") else value


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not get between the answers
    task = json.loads(sys.argv[1])
    worker = Worker(Task(**task | {"shape": tuple(task["shape"])}))
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command) or {}
        except BaseException as error:  # the measurer reports it
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
