"""When which request was under way, from recorded events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcp_cloud.progress.recorder import Recorded
from dcp_cloud.transfer.events import PhaseDone, Progressed, RequestDone, Stalled

# More rectangles than this make the page slow; the shortest requests are left out.
_MAX_BARS = 3000
_RATE_STEPS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A request or a phase.

    Args:
        lane: Row, from 0.
        start_s: When it began, seconds from the first event.
        stop_s: When it ended.
        kind: Verb of the request, or phase.
        text: What to say about it.
        is_failed: Whether it failed.
    """

    lane: int
    start_s: float
    stop_s: float
    kind: str
    text: str
    is_failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a recording shows.

    Args:
        title: Where the recording comes from.
        duration_s: From the first event to the last, seconds.
        lanes: Number of threads.
        requests: Bars of requests.
        phases: Bars of phases, in one row.
        stalls: When the transfer said that it was stuck, seconds.
        rates: Bytes per second in steps of equal length.
        left_out: Requests without a bar.
    """

    title: str
    duration_s: float
    lanes: int
    requests: tuple[Bar, ...]
    phases: tuple[Bar, ...]
    stalls: tuple[float, ...]
    rates: tuple[float, ...]
    left_out: int


def make_timeline(title: str, events: Sequence[Recorded]) -> Timeline:
    """Draw up a timeline.

    Args:
        title: Where the recording comes from.
        events: The events in the order in which they were told.

    Returns:
        The timeline; times begin with the first request or phase.
    """
    spans = [
        (one, one.at_s - one.event.duration_s) for one in events if isinstance(one.event, (RequestDone, PhaseDone))
    ]
    began_s = min([start_s for _, start_s in spans] + [one.at_s for one in events], default=0.0)
    ended_s = max((one.at_s for one in events), default=0.0)
    duration_s = max(ended_s - began_s, 1e-9)
    requests: list[Bar] = []
    phases: list[Bar] = []
    used = sorted({one.lane for one, _ in spans if isinstance(one.event, RequestDone)})
    rows = {lane: row for row, lane in enumerate(used)}
    for one, start_s in spans:
        event = one.event
        times = {"start_s": start_s - began_s, "stop_s": one.at_s - began_s}
        if isinstance(event, RequestDone):
            text = f"{event.verb} {event.key}: {event.size_bytes:,} bytes in {event.duration_s * 1000:.1f} ms"
            if event.error:
                text += f", try {event.attempt}: {event.error}"
            # That nothing is there yet is what a save hopes to hear.
            is_failed = event.error not in (None, "NotFoundError")
            requests.append(Bar(lane=rows[one.lane], kind=event.verb, text=text, is_failed=is_failed, **times))
        elif isinstance(event, PhaseDone):
            text = f"{event.phase}: {event.duration_s:.3f} s" + (f", {event.error}" if event.error else "")
            phases.append(Bar(lane=0, kind=event.phase, text=text, is_failed=event.error is not None, **times))
    shown = sorted(requests, key=lambda bar: (not bar.is_failed, bar.start_s - bar.stop_s))[:_MAX_BARS]
    return Timeline(
        title=title,
        duration_s=duration_s,
        lanes=len(rows),
        requests=tuple(sorted(shown, key=lambda bar: (bar.lane, bar.start_s))),
        phases=tuple(phases),
        stalls=tuple(one.at_s - began_s for one in events if isinstance(one.event, Stalled)),
        rates=_rates(events, began_s, duration_s),
        left_out=len(requests) - len(shown),
    )


def _rates(events: Sequence[Recorded], began_s: float, duration_s: float) -> tuple[float, ...]:
    step_s = duration_s / _RATE_STEPS
    sums = [0] * _RATE_STEPS
    for one in events:
        if isinstance(one.event, Progressed):
            sums[min(int((one.at_s - began_s) / step_s), _RATE_STEPS - 1)] += one.event.size_bytes
    return tuple(total / step_s for total in sums)
