"""Faults drawn by a seed: one number decides everything that goes wrong."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Literal, TypeAlias

from dcp_cloud.testing.wrappers.faults import Fault

Trouble: TypeAlias = Literal["passing", "lasting", "flips", "rot", "listings", "end"]
"""Groups of faults.

* ``passing``: delays, lost answers, throttling, broken reads: what a retry mends, if it does not come too thick
* ``lasting``: refusals, and outages that no retry mends
* ``flips``: wrong bits on the way from the store
* ``rot``: wrong bits and missing ends at rest
* ``listings``: listings that are short or old
* ``end``: the process ends at some request (``end=`` says how)
"""

_PASSING: tuple[Trouble, ...] = ("passing",)
_WRITES = ("put", "put_part", "create_multipart", "complete", "delete", "abort")
_VERBS = ("head", "get", "get_range", *_WRITES)
_MAX_DELAY_S = 0.02
# An upload whose creation took effect and was answered with an error has no name that anybody could abort.
_LOSE_ANSWERS = ("put", "put_part", "complete", "delete", "abort")


def draw_faults(
    seed: int | str,
    troubles: Collection[Trouble] = _PASSING,
    *,
    end: Literal["crash", "exit", "kill"] = "crash",
    requests: int = 20,
) -> tuple[Fault, ...]:
    """Draw faults; the same seed gives the same faults, on any machine.

    Args:
        seed: Decides everything. Give it to the :class:`FaultyStore` as well.
        troubles: Which groups of faults to draw from.
        end: What ``end`` does to the process; see :class:`Fault`.
        requests: About how many requests the job makes, so that ``end`` and ``lasting`` strike in the middle of it.

    Returns:
        The faults.
    """
    draw = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    if "end" in troubles:  # first, since of several faults the first one strikes
        faults.append(Fault(end, nth=draw.randint(1, requests), when=draw.choice(("before", "after"))))
    if "lasting" in troubles:
        faults.append(_lasting(draw, requests))
    if "rot" in troubles:
        kind: Literal["rot", "cut"] = draw.choice(("rot", "rot", "cut"))
        faults.append(Fault(kind, key=draw.choice(("*.distcp", "*.distcp", "*.metadata")), nth=draw.randint(1, 3)))
    if "flips" in troubles:
        faults.append(Fault("flip_bit", chance=draw.choice((0.02, 0.2, 1.0)), times=draw.choice((1, 3, None))))
    if "listings" in troubles:
        faults.append(Fault(draw.choice(("short_list", "stale_list")), times=None, chance=0.5))
    if "passing" in troubles:
        faults.extend(_passing(draw))
    return tuple(faults)


def _lasting(draw: random.Random, requests: int) -> Fault:
    nth = draw.randint(1, requests)
    if draw.random() < 0.3:
        return Fault("fail", nth=nth, times=None)  # an outage that has no end
    kind: Literal["refuse", "fail"] = draw.choice(("refuse", "refuse", "fail"))
    verb = draw.choice(("*", "put*", *_VERBS))
    after = draw.random() < 0.3 and verb in _LOSE_ANSWERS
    return Fault(kind, verb=verb, nth=1 + nth // 4, times=None, when="after" if after else "before")


def _passing(draw: random.Random) -> list[Fault]:
    chance = draw.choice((0.01, 0.05, 0.15))
    faults = [
        Fault("fail", chance=chance, times=None),
        *(Fault("fail", verb=verb, when="after", chance=chance, times=None) for verb in _LOSE_ANSWERS),
        Fault("throttle", chance=chance, times=None, retry_after_s=draw.choice((None, 0.0, 0.005))),
        Fault("truncate", chance=chance, times=None),
        Fault("delay", chance=chance, times=8, delay_s=round(draw.uniform(0, _MAX_DELAY_S), 4)),
    ]
    return draw.sample(faults, draw.randint(1, len(faults)))
