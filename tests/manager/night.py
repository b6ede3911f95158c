"""A night of a training job: it saves without pause under a manager with retention, and is killed at random.

All the while somebody else looks: at every moment there is a latest checkpoint, it loads, and it holds exactly what
was saved. In the end the bucket holds what the policy says and nothing else. ``python -m tests.manager.night --help``
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from dcp_cloud import CheckpointManager, CloudStorageReader, open_store
from dcp_cloud.checkpoint.commit import object_keys
from dcp_cloud.checkpoint.sweep import sweep
from dcp_cloud.checkpoint.verify import verify_checkpoint
from dcp_cloud.manager.retention import Candidate, KeepBest, RetentionPolicy, judge
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.testing.servers.guard import die_with_parent
from tests.support.ranks import start_fork_server

KEEP_LAST, KEEP_EVERY, KEEP_BEST = 3, 10, 2
# What a killed save has left counts as left after so long.
STALE_AFTER_S = 3.0
# 2 ranks of 6 MB each: a multipart upload of two parts.
_ROWS, _COLUMNS = 3000, 1000
_PART_BYTES = "5MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class NightReport:
    """What a night came to.

    Args:
        duration_s: How long it took, seconds.
        saves: Saves that were begun and told to be committed.
        last_step: The last step; every one before it was committed at some time.
        starts: How often the job was started.
        kills: How often it was killed with SIGKILL, all ranks or one.
        terminations: How often it got SIGTERM.
        checks: How often the latest checkpoint was loaded and compared.
        verified: How often every byte of the latest checkpoint was compared with its checksums.
        kept: The steps in the bucket at the end.
        swept: Objects and uploads of killed saves that the sweep at the end deleted.
    """

    duration_s: float
    saves: int
    last_step: int
    starts: int
    kills: int
    terminations: int
    checks: int
    verified: int
    kept: list[int]
    swept: int


def loss_of(step: int) -> float:
    """Give a step a metric, without any order."""
    return random.Random(step).random()


def manager_of(uri: str, *, no_dist: bool = False) -> CheckpointManager:
    """Make the manager that all processes of the night use."""
    return CheckpointManager(
        uri,
        keep_last=KEEP_LAST,
        keep_every=KEEP_EVERY,
        best_metric="loss",
        keep_best=KEEP_BEST,
        max_in_flight=2,
        stale_after_s=STALE_AFTER_S,
        no_dist=no_dist,
    )


def weights_of(step: int) -> torch.Tensor:
    """Give the weights that belong to a step; whole numbers, so that no arithmetic rounds them."""
    return torch.arange(_ROWS * _COLUMNS, dtype=torch.float32).remainder_(8191).add_(step).view(_ROWS, _COLUMNS)


def train(
    environment: Mapping[str, str], directory: str, run: int, rank: int, world_size: int, uri: str, pause_s: float
) -> None:
    """Be one rank of the job: resume from the latest step, then save step after step until somebody ends it."""
    _enter(environment, Path(directory) / f"job-{run}-{rank}.log")
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    rendezvous = f"file://{directory}/rendezvous-{run}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))

    def state_of(step: int) -> dict[str, object]:
        return {"weights": distribute_tensor(weights_of(step), mesh, [Shard(0)]), "step": step}

    manager = manager_of(uri)
    manager.on_preemption(deadline_s=10)
    step = 0
    if manager.latest() is not None:
        state = state_of(-1)
        step = manager.restore(state)
        assert state["step"] == step, (state["step"], step)
        assert torch.equal(state["weights"].to_local(), state_of(step)["weights"].to_local()), step
    saved = 0
    while True:
        step += 1
        if step % 4 == 0:
            manager.save(step, state_of(step), {"loss": loss_of(step)})
        else:
            manager.async_save(step, state_of(step), {"loss": loss_of(step)})
        saved += 1
        if rank == 0:
            (Path(directory) / f"saves-{run}").write_text(str(saved), encoding="utf-8")
        time.sleep(pause_s)


def watch(environment: Mapping[str, str], directory: str, uri: str, pause_s: float) -> None:
    """Load the latest checkpoint again and again until told to stop; an exception ends the night."""
    _enter(environment, Path(directory) / "watch.log")
    checks = verified = newest = 0
    with manager_of(uri, no_dist=True) as manager:
        while not (Path(directory) / "stop").exists():
            latest = manager.latest()
            if latest is None:
                assert newest == 0, f"step {newest} was there, and now nothing is"
                time.sleep(0.05)
                continue
            assert latest >= newest, f"the latest was {newest}, and now is {latest}"
            state = {"weights": torch.zeros(_ROWS, _COLUMNS), "step": -1}
            step = manager.restore(state)
            assert step >= latest
            assert state["step"] == step
            assert torch.equal(state["weights"], weights_of(step)), f"step {step} holds something else"
            newest = step
            checks += 1
            if checks % 5 == 0:
                verified += _verify_latest(manager, uri)
            (Path(directory) / "watched").write_text(json.dumps([checks, verified]), encoding="utf-8")
            time.sleep(pause_s)


def _verify_latest(manager: CheckpointManager, uri: str) -> int:
    """Compare every byte with its checksum; one that was replaced meanwhile does not count."""
    step = manager.latest()
    report = verify_checkpoint(PrefixStore(open_store(uri), f"step-{step}"))
    if report.problems and manager.latest() != step:
        return 0
    assert not report.problems, report
    return 1


def _enter(environment: Mapping[str, str], log: Path) -> None:
    die_with_parent()
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    torch.set_num_threads(1)


class Night:
    """One night.

    Args:
        uri: Where the job saves; nothing else lies there.
        environment: What the store is opened with.
        directory: For logs and what the processes tell each other.
        ranks: How many the job has.
        pause_s: Between two saves, seconds.
        seed: Decides when the job is killed, and how.
        tell: Told what happens.
    """

    def __init__(
        self,
        uri: str,
        *,
        environment: Mapping[str, str],
        directory: Path,
        ranks: int,
        pause_s: float,
        seed: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._uri = uri
        self._environment = {**environment, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        self._directory = directory
        self._ranks = ranks
        self._pause_s = pause_s
        self._random = random.Random(seed)
        self._tell = tell
        self._context = start_fork_server()
        self._starts = self._kills = self._terminations = 0

    def run(self, duration_s: float, *, kills: int = 0) -> NightReport:
        """Let the job run and be killed; then see what is left.

        Args:
            duration_s: How long, seconds; longer if it takes longer to see a checkpoint, or to kill as often.
            kills: How often it has to be killed with SIGKILL at least.

        Returns:
            The counts.

        Raises:
            AssertionError: Anything was wrong.
        """
        began_s = time.monotonic()
        watcher = self._context.Process(
            target=watch, args=(self._environment, str(self._directory), self._uri, self._pause_s / 4)
        )
        watcher.start()
        try:
            # On a slow machine the first lives may end before anything is committed.
            while (
                time.monotonic() < began_s + duration_s
                or not (self._directory / "watched").exists()
                or self._kills < kills
            ):
                self._one_life(watcher)
            (self._directory / "stop").touch()
            watcher.join(60)
            assert watcher.exitcode == 0, self._log("watch.log")
        finally:
            watcher.kill()
            watcher.join()
        return self._settle(time.monotonic() - began_s)

    def _one_life(self, watcher: ForkServerProcess) -> None:
        """Start the job and end it after a random time, at least one save after it came up."""
        run = self._starts
        self._starts += 1
        job = [
            self._context.Process(
                target=train,
                args=(self._environment, str(self._directory), run, rank, self._ranks, self._uri, self._pause_s),
            )
            for rank in range(self._ranks)
        ]
        for process in job:
            process.start()
        try:
            self._wait(job, watcher, (self._directory / f"saves-{run}").exists, within_s=120)
            life_s = self._random.uniform(0, 12 * self._pause_s)
            until_s = time.monotonic() + life_s
            self._wait(job, watcher, lambda: time.monotonic() >= until_s, within_s=life_s + 10)
            how = self._random.choice(("kill", "kill", "kill", "kill one", "terminate"))
            self._tell(f"life {run} ends after {life_s:.1f} s: {how}")
            self._end(job, how)
        finally:
            for process in job:
                process.kill()
                process.join()

    def _wait(
        self,
        job: list[ForkServerProcess],
        watcher: ForkServerProcess,
        is_over: Callable[[], bool],
        *,
        within_s: float,
    ) -> None:
        deadline_s = time.monotonic() + within_s
        while not is_over():
            assert watcher.exitcode is None, self._log("watch.log")
            for rank, process in enumerate(job):
                assert process.exitcode is None, self._log(f"job-{self._starts - 1}-{rank}.log")
            assert time.monotonic() < deadline_s, "the job does not come up"
            time.sleep(0.02)

    def _end(self, job: list[ForkServerProcess], how: str) -> None:
        if how == "terminate":
            self._terminations += 1
            for process in job:
                process.terminate()
            for rank, process in enumerate(job):
                process.join(15)
                # By the signal itself, after the saves under way: the former handler was none.
                assert process.exitcode == -signal.SIGTERM, self._log(f"job-{self._starts - 1}-{rank}.log")
            return
        self._kills += 1
        if how == "kill one":
            self._random.choice(job).kill()
            time.sleep(self._random.uniform(0, self._pause_s))

    def _settle(self, duration_s: float) -> NightReport:
        """Prune and sweep, and compare the bucket with what the policy says of all steps there ever were."""
        os.environ.update(self._environment)
        store = open_store(self._uri)
        with manager_of(self._uri, no_dist=True) as manager:
            last = manager.latest()
            assert last is not None
            time.sleep(STALE_AFTER_S)
            report = manager.prune()
            assert not report.skipped, report
            assert report.error is None, report
            swept = sweep(store, older_than_s=0)
            kept = [info.step for info in manager.list()]
        policy = RetentionPolicy(
            keep_last=KEEP_LAST, keep_every=KEEP_EVERY, best=KeepBest(metric="loss", count=KEEP_BEST)
        )
        every = [Candidate(step=step, metrics={"loss": loss_of(step)}) for step in range(1, last + 1)]
        wanted = [verdict.step for verdict in judge(policy, every) if verdict.keep]
        assert kept == wanted, f"{kept} are there, the policy wants {wanted}"
        expected = set()
        for step in kept:
            at = PrefixStore(store, f"step-{step}")
            assert not verify_checkpoint(at).problems
            metadata = CloudStorageReader(f"{self._uri.partition('?')[0]}/step-{step}", store=at).read_metadata()
            expected |= {f"step-{step}/.metadata", *(f"step-{step}/{key}" for key in object_keys(metadata))}
        assert {meta.key for meta in store.list()} == expected
        assert list(store.list_multiparts()) == []
        store.close()
        checks, verified = json.loads((self._directory / "watched").read_text(encoding="utf-8"))
        return NightReport(
            duration_s=duration_s,
            saves=sum(int(path.read_text(encoding="utf-8")) for path in self._directory.glob("saves-*")),
            last_step=last,
            starts=self._starts,
            kills=self._kills,
            terminations=self._terminations,
            checks=checks,
            verified=verified,
            kept=kept,
            swept=len(swept.orphans) + len(swept.uploads),
        )

    def _log(self, name: str) -> str:
        path = self._directory / name
        text = path.read_text(encoding="utf-8", errors="replace")[-6000:] if path.exists() else "no log"
        return f"{name}:\n{text}"


def main() -> None:
    """Run a night on a store of one's own, or on a server that is started for it."""
    parser = argparse.ArgumentParser(description="A night of saves and random kills under a CheckpointManager.")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long (15)")
    parser.add_argument("--uri", help="an empty prefix, instead of a server that is started here")
    parser.add_argument("--server", default="ceph", help="moto, ceph, fake-gcs or azurite (ceph)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the job (2)")
    parser.add_argument("--pause", type=float, default=1.5, help="seconds between two saves (1.5)")
    parser.add_argument("--seed", type=int, default=None, help="when the job is killed, and how")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with ExitStack() as stack:
        environment: Mapping[str, str] = {}
        uri = options.uri
        if uri is None:
            from dcp_cloud.testing.servers import LOCAL_SERVERS

            server = stack.enter_context(LOCAL_SERVERS[options.server]())
            environment = server.environment
            os.environ.update(environment)
            server.create_bucket("night")
            uri = server.uri("night", "run", part_size=_PART_BYTES)
        directory = Path(tempfile.mkdtemp(prefix="night-"))
        print(f"{uri}, logs in {directory}", flush=True)
        night = Night(
            uri,
            environment=environment,
            directory=directory,
            ranks=options.ranks,
            pause_s=options.pause,
            seed=seed,
            tell=lambda text: print(text, flush=True),
        )
        report = night.run(options.minutes * 60)
    print(json.dumps(asdict(report), indent=2))


if __name__ == "__main__":
    sys.exit(main())
