"""Which checkpoints to keep: a policy, and its verdict on a list of steps. Nothing here touches a store.

Whatever the policy says, the newest checkpoint is kept, so a verdict never leaves nothing. Applying a policy to what
it has kept deletes nothing more, and a policy that asks for more never keeps less.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from dcp_cloud.errors import ConfigError

BestMode: TypeAlias = Literal["min", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepBest:
    """Keep the checkpoints with the best values of a metric.

    Args:
        metric: Its name among the metrics of a save.
        mode: ``min``: less is better; ``max``: more is better.
        count: How many.

    Raises:
        ConfigError: One of these makes no sense.
    """

    metric: str
    mode: BestMode = "min"
    count: int = 1

    def __post_init__(self) -> None:
        if not self.metric:
            raise ConfigError(f"best_metric={self.metric!r} is no name of a metric")
        if self.mode not in get_args(BestMode):
            raise ConfigError(f"best_mode={self.mode!r} is unknown", hint="use 'min' or 'max'")
        _require_count("keep_best", self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """What to keep. A checkpoint stays if any rule wants it; without any rule all of them stay.

    Args:
        keep_last: So many of the highest steps.
        keep_every: Every step that is a multiple of this.
        best: The best ones by a metric.

    Raises:
        ConfigError: A number is less than 1.
    """

    keep_last: int | None = None
    keep_every: int | None = None
    best: KeepBest | None = None

    def __post_init__(self) -> None:
        for name, value in (("keep_last", self.keep_last), ("keep_every", self.keep_every)):
            if value is not None:
                _require_count(name, value)

    @property
    def keeps_all(self) -> bool:
        """Whether there is no rule, so that nothing is ever deleted."""
        return self.keep_last is None and self.keep_every is None and self.best is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One committed checkpoint to judge.

    Args:
        step: Its step.
        metrics: Its metrics; None if its commit cannot be read, and then it is left alone.
    """

    step: int
    metrics: Mapping[str, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What happens to one checkpoint.

    Args:
        step: Its step.
        keep: Whether it stays.
        reasons: Why: the rules that want it, or what it lacks.
    """

    step: int
    keep: bool
    reasons: tuple[str, ...]


def judge(
    policy: RetentionPolicy, candidates: Sequence[Candidate], *, protected: Collection[int] = ()
) -> tuple[Verdict, ...]:
    """Say which checkpoints stay.

    Args:
        policy: The policy.
        candidates: All committed checkpoints, in any order, each step once.
        protected: Steps that stay whatever the policy says, because somebody works with them.

    Returns:
        A verdict for each, by step.
    """
    steps = sorted(one.step for one in candidates)
    last = set(steps[-policy.keep_last :]) if policy.keep_last is not None else set()
    ranking = _ranking(policy.best, candidates)
    verdicts = []
    for one in sorted(candidates, key=lambda candidate: candidate.step):
        reasons = []
        if policy.keeps_all:
            reasons.append("no rule deletes anything")
        if one.step == steps[-1]:
            reasons.append("the newest")
        if one.step in last and one.step != steps[-1]:
            reasons.append(f"one of the last {policy.keep_last}")
        if policy.keep_every is not None and one.step % policy.keep_every == 0:
            reasons.append(f"a multiple of {policy.keep_every}")
        if policy.best is not None and one.step in ranking[: policy.best.count]:
            place = f"{ranking.index(one.step) + 1} of {policy.best.count}" if policy.best.count > 1 else ""
            reasons.append(" ".join(filter(None, ("best", place, "by", policy.best.metric))))
        if one.step in protected and not reasons:
            reasons.append("in use")
        if one.metrics is None:
            reasons.append("its commit cannot be read")
        keep = bool(reasons)
        verdicts.append(Verdict(step=one.step, keep=keep, reasons=tuple(reasons or _lacks(policy))))
    return tuple(verdicts)


def _ranking(best: KeepBest | None, candidates: Sequence[Candidate]) -> list[int]:
    """Order the steps that have a value by how good it is; of equals the later one is better."""
    if best is None:
        return []
    sign = 1.0 if best.mode == "min" else -1.0
    values = [(one.step, (one.metrics or {}).get(best.metric, math.nan)) for one in candidates]
    ranked = sorted((sign * value, -step) for step, value in values if not math.isnan(value))
    return [-step for _, step in ranked]


def _lacks(policy: RetentionPolicy) -> tuple[str, ...]:
    reasons = []
    if policy.keep_last is not None:
        reasons.append(f"not one of the last {policy.keep_last}")
    if policy.keep_every is not None:
        reasons.append(f"no multiple of {policy.keep_every}")
    if policy.best is not None:
        reasons.append(f"not among the best {policy.best.count} by {policy.best.metric}")
    return tuple(reasons)


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value!r} is out of range", hint="it must be a whole number, at least 1")
