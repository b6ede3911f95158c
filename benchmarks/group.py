"""The processes of one way to save and load: one per rank, driven together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import GIB, ROOT, SinkClient, client_environment
from benchmarks.peers import PEERS


class Group:
    """Ranks that wait for commands.

    Args:
        peer: Name in PEERS.
        url: The sink's.
        world: Number of ranks.
        tensors: Tensors of the state dict.
        shape: Global shape of each; float32.
        dim: Along which they are cut between ranks.
        source: Directory with the ``dcp_cloud`` to use instead of this tree's.
        more: Other fields of the worker's task.
    """

    def __init__(
        self,
        peer: str,
        url: str,
        *,
        world: int,
        tensors: int,
        shape: Sequence[int],
        dim: int = 0,
        source: Path | None = None,
        **more: object,
    ) -> None:
        self.peer = peer
        self.world = world
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        environment = {
            **os.environ,
            **client_environment(url),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": os.pathsep.join([*([str(source)] if source else []), str(ROOT)]),
            "PYTHONSAFEPATH": "1",  # or the current directory would come before it
        }
        port = _free_port()
        task = {
            "peer": peer,
            "world": world,
            "port": port,
            "tensors": tensors,
            "shape": list(shape),
            "dim": dim,
            **more,
        }
        self.ranks = [
            subprocess.Popen(
                [str(PEERS[peer].python), "-m", "benchmarks.worker", json.dumps(task | {"rank": rank})],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
            for rank in range(world)
        ]
        self._is_ready = False

    def do(self, command: str, **arguments: object) -> list[dict[str, Any]]:
        """Have every rank do something and wait for all of them."""
        if not self._is_ready:  # groups that are made one after the other start at the same time
            self._answers()
            self._is_ready = True
        line = json.dumps({"do": command, **arguments}) + "\n"
        for rank in self.ranks:
            rank.stdin.write(line)
            rank.stdin.flush()
        return self._answers()

    def measure(self, sink: SinkClient, command: str, nbytes: int, **arguments: object) -> dict[str, Any]:
        """Do something and sum up: the slowest rank's time, everybody's CPU, the requests."""
        before = sink.reset()["cpu_s"]
        ranks = self.do(command, **arguments)
        stats = sink.stats()
        gib = nbytes / GIB
        wall_s = max(rank["wall_s"] for rank in ranks)
        cpu = sum(rank.get("cpu_s", 0) for rank in ranks)
        return {
            "wall_s": wall_s,
            "gib_per_s": gib / wall_s,
            "cpu_s": cpu,
            "cpu_s_per_gib": cpu / gib,
            "rss_growth_mib": max(rank.get("rss_growth_mib", 0) for rank in ranks),
            "requests": sum(stats["requests"].values()),
            "requests_by_verb": stats["requests"],
            "bytes_in": stats["bytes_in"],
            "bytes_out": stats["bytes_out"],
            "connections": stats["connections"],
            "sink_cpu_s": stats["cpu_s"] - before,
        }

    def close(self) -> None:
        for rank in self.ranks:
            rank.stdin.close()
        for rank in self.ranks:
            try:
                rank.wait(timeout=5)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
        self.log.close()

    def __enter__(self) -> Group:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for rank in self.ranks:
            line = rank.stdout.readline()
            answer = json.loads(line) if line else {"error": "the process ended"}
            if "error" in answer:
                self.log.seek(0)
                tail = self.log.read().decode(errors="replace")[-3000:]
                raise RuntimeError(f"{self.peer}: {answer['error']}\n{tail}")
            answers.append(answer)
        return answers


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
