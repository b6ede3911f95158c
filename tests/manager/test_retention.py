"""The policy: which checkpoints stay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.errors import ConfigError
from dcp_cloud.manager.names import StepNames
from dcp_cloud.manager.retention import Candidate, KeepBest, RetentionPolicy, judge

counts = st.none() | st.integers(1, 6)
values = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0])
policies = st.builds(
    RetentionPolicy,
    keep_last=counts,
    keep_every=counts,
    best=st.none()
    | st.builds(KeepBest, metric=st.just("loss"), mode=st.sampled_from(["min", "max"]), count=st.integers(1, 4)),
)
runs = st.dictionaries(st.integers(0, 40), values, max_size=20).map(
    lambda found: [
        Candidate(step=step, metrics={} if value is None else {"loss": value}) for step, value in found.items()
    ]
)


def kept(policy, candidates, **options):
    return [verdict.step for verdict in judge(policy, candidates, **options) if verdict.keep]


@given(policies, runs)
def test_something_is_always_kept(policy, run):
    """The newest checkpoint stays under every policy, so the last good one is never deleted."""
    if run:
        assert max(one.step for one in run) in kept(policy, run)


@given(policies, runs)
def test_a_policy_is_idempotent(policy, run):
    """What a policy has kept it keeps: a second run deletes nothing more."""
    first = kept(policy, run)
    assert kept(policy, [one for one in run if one.step in first]) == first


@given(policies, runs, st.integers(1, 5))
def test_a_policy_is_monotone(policy, run, more):
    """A policy that asks for more never keeps less."""
    best = policy.best
    if best is not None:
        best = KeepBest(metric=best.metric, mode=best.mode, count=best.count + more)
    larger = RetentionPolicy(
        keep_last=None if policy.keep_last is None else policy.keep_last + more,
        keep_every=policy.keep_every,
        best=best,
    )
    assert set(kept(policy, run)) <= set(kept(larger, run))


@given(policies, runs, st.randoms())
def test_the_order_of_a_listing_does_not_matter(policy, run, shuffle):
    """The verdict depends on what there is, not on the order in which it was found."""
    other = list(run)
    shuffle.shuffle(other)
    assert judge(policy, run) == judge(policy, other)


@given(policies, runs, st.sets(st.integers(0, 40)))
def test_what_is_in_use_or_unreadable_stays(policy, run, protected):
    """Nobody deletes what somebody works with, nor what nobody can judge."""
    unreadable = [Candidate(step=one.step, metrics=None) if one.step % 3 == 0 else one for one in run]
    stays = set(kept(policy, unreadable, protected=protected))
    assert {one.step for one in unreadable if one.metrics is None or one.step in protected} <= stays


def test_each_rule_keeps_what_it_says_and_tells_why():
    """Last, every, best: a step stays if any of them wants it, and each verdict has its reasons."""
    losses = {10: 5.0, 20: 1.0, 30: 2.0, 40: math.nan, 50: 1.0, 60: 9.0, 70: 8.0}
    run = [Candidate(step=step, metrics={"loss": loss}) for step, loss in losses.items()]
    policy = RetentionPolicy(keep_last=2, keep_every=40, best=KeepBest(metric="loss", count=2))
    verdicts = {verdict.step: verdict for verdict in judge(policy, run)}
    assert [step for step, verdict in verdicts.items() if verdict.keep] == [20, 40, 50, 60, 70]
    assert verdicts[10].reasons == ("not one of the last 2", "no multiple of 40", "not among the best 2 by loss")
    assert verdicts[20].reasons == ("best 2 of 2 by loss",)
    assert verdicts[40].reasons == ("a multiple of 40",)
    assert verdicts[50].reasons == ("best 1 of 2 by loss",)
    assert verdicts[70].reasons == ("the newest",)
    worst = RetentionPolicy(best=KeepBest(metric="loss", mode="max"))
    assert kept(worst, run) == [60, 70]
    assert kept(RetentionPolicy(), run) == sorted(losses)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetentionPolicy(keep_last=0),
        lambda: RetentionPolicy(keep_every=-1),
        lambda: RetentionPolicy(keep_last=True),
        lambda: KeepBest(metric=""),
        lambda: KeepBest(metric="loss", count=0),
        lambda: KeepBest(metric="loss", mode="least"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make):
    """Numbers below one, no metric and an unknown mode are errors at once."""
    with pytest.raises(ConfigError):
        make()


@given(st.integers(0, 10**18 - 1), st.sampled_from(["step-{step}", "{step}", "it_{step:08d}.ckpt", "a{step:03d}b"]))
def test_a_name_gives_its_step_back(step, template):
    """A step can be read out of its own name, and no other spelling of it counts."""
    names = StepNames(template)
    name = names.name_of(step)
    assert names.step_in(name) == step
    assert names.step_in(name.replace(str(step), f"00000000{step}")) is None
    assert names.step_in(name + "0x") is None


@pytest.mark.parametrize("template", ["step", "{step}{step}", "a/{step}", "1{step}", "{step}0", "{step:x}", "{other}"])
def test_a_template_that_names_no_step_is_refused(template):
    """A template has one step in it, stays in its directory, and leaves no doubt where the number ends."""
    with pytest.raises(ConfigError):
        StepNames(template)


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", 10**18])
def test_what_is_no_step_is_refused(step):
    """A step is a whole number, at least 0."""
    with pytest.raises(ConfigError):
        StepNames().name_of(step)
