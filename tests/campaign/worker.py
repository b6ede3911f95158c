"""Runs one seed after the other in one process, and says how each ended."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from tests.campaign.checks import BrokenInvariantError, Scene
from tests.campaign.jobs import watched_budget
from tests.campaign.places import Places, Server
from tests.campaign.plan import draw_run
from tests.campaign.stories import tell

# A run that takes longer hangs; the stacks of all threads are written to stderr, and the process ends.
HANG_S = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a run ended.

    Args:
        seed: Its seed.
        kind: Its kind.
        store: Its store.
        duration_s: How long it took.
        counts: What happened in it.
        broken: The invariant that was broken, or nothing.
        line: The run in one line.
    """

    seed: int
    kind: str
    store: str
    duration_s: float
    counts: dict[str, int] = field(default_factory=dict)
    broken: str = ""
    line: str = ""


def run_seed(seed: int, stores: Collection[str], kinds: Collection[str], places: Places) -> Verdict:
    """Run one seed."""
    run = draw_run(seed, stores, kinds)
    began_s = time.monotonic()
    counts: dict[str, int] = {}
    broken = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with places.fresh(run.store) as (place, store):
                scene = Scene(run=run, place=place, store=store, counts=counts)
                with watched_budget(run.transfer, min_part_bytes=store.limits.min_part_bytes) as exceeded:
                    tell(scene)
                scene.require(not exceeded, "memory", *exceeded[:3])
        except BrokenInvariantError as error:
            broken = str(error)
        except Exception:
            broken = "the run broke: " + traceback.format_exc()
    return Verdict(
        seed=seed,
        kind=run.kind,
        store=run.store,
        duration_s=time.monotonic() - began_s,
        counts=counts,
        broken=broken,
        line=str(run),
    )


def quiet() -> None:
    """Keep logs of expected failures out of the way, and leave the cores to others."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)


def main() -> None:
    """Serve: seeds on stdin, verdicts on stdout, one a line."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    quiet()
    places = Places({name: Server(**server) for name, server in settings["servers"].items()})
    for line in sys.stdin:
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        verdict = run_seed(int(line), settings["stores"], settings["kinds"], places)
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(asdict(verdict)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
