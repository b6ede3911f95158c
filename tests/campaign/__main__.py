"""The fault campaign: thousands of seeded runs, each of which can be run again by its number.

::

    ./scripts/campaign --seeds 0:10000              # these seeds
    ./scripts/campaign --minutes 5                  # fresh seeds for five minutes
    ./scripts/campaign --seed 4711                  # one seed again
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.places import running_servers
from tests.campaign.plan import KINDS, STORES, draw_run

_ROOT = Path(__file__).resolve().parents[2]
_REPORT_EVERY_S = 30.0
# A worker is replaced now and then, so that nothing of one run can live on in thousands of others.
_SEEDS_PER_WORKER = 500


@dataclass(slots=True)
class Totals:
    """What happened so far."""

    runs: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    finds: list[int] = field(default_factory=list)
    first: int | None = None
    last: int | None = None
    began_s: float = field(default_factory=time.monotonic)

    @property
    def number(self) -> int:
        """Runs so far."""
        return sum(self.runs.values())

    def add(self, verdict: dict[str, Any]) -> None:
        """Count a run."""
        self.runs[f"{verdict['kind']} on {verdict['store']}"] += 1
        self.counts.update(verdict["counts"])
        seed = verdict["seed"]
        self.first = seed if self.first is None else min(self.first, seed)
        self.last = seed if self.last is None else max(self.last, seed)

    def as_json(self) -> dict[str, Any]:
        """Give everything, to be kept."""
        return {
            "runs": self.number,
            "finds": sorted(self.finds),
            "seeds": [self.first, self.last],
            "duration_s": round(time.monotonic() - self.began_s),
            "runs_by_kind_and_store": dict(sorted(self.runs.items())),
            "counts": dict(sorted(self.counts.items())),
        }


class Worker:
    """A process that runs seeds."""

    def __init__(self, settings: dict[str, Any]) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(_ROOT),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "TORCH_SHOW_CPP_STACKTRACES": "0",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env=environment,
            text=True,
        )
        self.seed: int | None = None
        self.done = 0

    @property
    def is_spent(self) -> bool:
        """Whether another process should go on."""
        return self.done >= _SEEDS_PER_WORKER or self.process.poll() is not None

    def give(self, seed: int) -> None:
        """Have a seed run."""
        assert self.process.stdin is not None
        self.seed = seed
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()

    def take(self) -> dict[str, Any] | None:
        """Wait for the verdict; None if the process ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.done += 1
        return dict(json.loads(line)) if line else None

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Campaign:
    """Hands seeds to workers until there are no more."""

    def __init__(self, settings: dict[str, Any], seeds: Iterator[int], totals: Totals, *, is_talkative: bool) -> None:
        self._settings = settings
        self._seeds = seeds
        self._totals = totals
        self._is_talkative = is_talkative
        self._workers = selectors.DefaultSelector()

    def run(self, workers: int, *, report: Path | None) -> None:
        """Run everything."""
        for _ in range(workers):
            self._next(None)
        told_s = time.monotonic()
        while self._workers.get_map():
            for key, _ in self._workers.select(1.0):
                worker: Worker = key.data
                self._workers.unregister(key.fileobj)
                self._judge(worker, worker.take())
                self._next(worker)
            if time.monotonic() - told_s > _REPORT_EVERY_S:
                told_s = time.monotonic()
                self._tell()
                if report is not None:
                    report.write_text(json.dumps(self._totals.as_json(), indent=1) + "\n")
        self._tell()
        if report is not None:
            report.write_text(json.dumps(self._totals.as_json(), indent=1) + "\n")

    def _next(self, worker: Worker | None) -> None:
        seed = next(self._seeds, None)
        if worker is not None and (
            seed is None or worker.done >= _SEEDS_PER_WORKER or worker.process.poll() is not None
        ):
            worker.end()
            worker = None
        if seed is None:
            return
        worker = worker or Worker(self._settings)
        worker.give(seed)
        self._workers.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def _judge(self, worker: Worker, verdict: dict[str, Any] | None) -> None:
        if verdict is None:
            run = draw_run(int(worker.seed or 0), self._settings["stores"], self._settings["kinds"])
            worker.process.wait()
            verdict = {
                "seed": run.seed,
                "kind": run.kind,
                "store": run.store,
                "counts": {},
                "broken": f"it hangs, or the process died (exit code {worker.process.returncode}); stacks are above",
                "line": str(run),
                "duration_s": 0.0,
            }
        self._totals.add(verdict)
        if verdict["broken"]:
            self._totals.finds.append(verdict["seed"])
            print(f"FIND {verdict['line']}\n  {verdict['broken']}\n  again: {self._again(verdict['seed'])}", flush=True)
        elif self._is_talkative:
            print(f"{verdict['line']}\n  held in {verdict['duration_s']:.2f} s: {verdict['counts']}", flush=True)

    def _again(self, seed: int) -> str:
        line = f"./scripts/campaign --seed {seed}"
        for option, everything in (("stores", STORES), ("kinds", KINDS)):
            if set(self._settings[option]) != set(everything):
                line += f" --{option} {','.join(self._settings[option])}"
        return line

    def _tell(self) -> None:
        totals = self._totals
        spent_s = time.monotonic() - totals.began_s
        print(f"{totals.number} runs, {len(totals.finds)} finds, {spent_s:.0f} s, last seed {totals.last}", flush=True)


def _list(text: str, allowed: Sequence[str]) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(allowed):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(allowed)}")
    return names


def _range(text: str) -> tuple[int, int]:
    first, _, stop = text.partition(":")
    return int(first), int(stop)


def _until(seeds: Iterator[int], minutes: float) -> Iterator[int]:
    end_s = time.monotonic() + minutes * 60
    return itertools.takewhile(lambda _: time.monotonic() < end_s, seeds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign; give 1 if an invariant was broken."""
    parser = argparse.ArgumentParser(
        prog="campaign", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=_range, metavar="A:B", help="run the seeds from A to B-1")
    parser.add_argument("--seed", type=int, action="append", metavar="N", help="run this seed (again)")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long")
    parser.add_argument("--stores", type=lambda text: _list(text, STORES), default=list(STORES), help=",".join(STORES))
    parser.add_argument("--kinds", type=lambda text: _list(text, KINDS), default=list(KINDS), help=",".join(KINDS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the totals as JSON, now and then")
    options = parser.parse_args(arguments)
    seeds: Iterator[int]
    if options.seed:
        seeds = iter(options.seed)
    elif options.seeds:
        seeds = iter(range(*options.seeds))
    else:
        first = random.SystemRandom().randrange(10**6, 10**9)
        print(f"fresh seeds from {first} on", flush=True)
        seeds = itertools.count(first)
    if options.minutes or not (options.seed or options.seeds):
        seeds = _until(seeds, options.minutes or 1.0)
    totals = Totals()
    needed = options.stores
    if options.seed:
        needed = {draw_run(seed, options.stores, options.kinds).store for seed in options.seed}
    with running_servers(needed) as servers:
        settings = {
            "stores": options.stores,
            "kinds": options.kinds,
            "servers": {name: asdict(server) for name, server in servers.items()},
        }
        campaign = Campaign(settings, seeds, totals, is_talkative=bool(options.seed))
        campaign.run(min(options.workers, len(options.seed or [0] * options.workers)), report=options.report)
    return 1 if totals.finds else 0


if __name__ == "__main__":
    sys.exit(main())
