"""The kinds of runs: who does what, and what may be there in the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.testing.wrappers import FaultyStore, Request, StoreWrapper, draw_faults
from tests.campaign import jobs
from tests.campaign.checks import (
    DEADLINE_S,
    Scene,
    check_damaged,
    check_next_save,
    check_no_threads,
    check_one_of,
    check_swept,
    commit_etag,
)
from tests.campaign.children import HUNG, KILLED, run_children
from tests.campaign.jobs import Content, Outcome
from tests.campaign.places import Place
from tests.campaign.plan import Run

ResultT = TypeVar("ResultT")


class Gate(StoreWrapper):
    """Stops a job at a request until it is let go: from then on all its requests wait."""

    def __init__(self, store: ObjectStore, moment: int) -> None:
        super().__init__(store)
        self._left = moment
        self._lock = threading.Lock()
        self.is_reached = threading.Event()
        self.is_open = threading.Event()

    def around(self, request: Request, run: Callable[[], ResultT]) -> ResultT:
        """Wait at the gate, or pass."""
        with self._lock:
            self._left -= 1
            is_stopped = self._left <= 0
        if is_stopped:
            self.is_reached.set()
            if not self.is_open.wait(DEADLINE_S):
                raise AssertionError("nobody opened the gate")
        return run()


class Job(threading.Thread):
    """A job on a thread of this process; its outcome is kept."""

    def __init__(self, work: Callable[[], Outcome]) -> None:
        super().__init__(name="campaign-job", daemon=True)
        self._work = work
        self.outcome = Outcome(errors=("nothing",), complaints=("the job's thread broke",))

    def run(self) -> None:
        """Do the work."""
        self.outcome = self._work()

    def result(self) -> Outcome:
        """Wait for the end."""
        self.join(2 * DEADLINE_S)
        return self.outcome


def tell(scene: Scene) -> None:
    """Run a run, and check everything that has to hold."""
    run = scene.run
    if run.had:
        outcome = _save(scene, scene.store, 1)
        scene.saw("save before", outcome)
        scene.require(outcome.ok, "a save without faults fails", outcome)
    _STORIES[run.kind](scene)
    check_no_threads(scene)


def _alone(scene: Scene) -> None:
    """One save under faults, then loads under faults."""
    run, before = scene.run, commit_etag(scene.store)
    faulty = FaultyStore(scene.store, run.faults(), seed=run.seed)
    outcome = _save(scene, faulty, 2, overwrite=run.overwrite, mode=run.mode)
    scene.saw("save", outcome)
    _note_strikes(scene, faulty)
    after = commit_etag(scene.store)
    may = _may_be(run, outcome, is_committed=after != before)
    if "rot" in run.troubles:
        check_damaged(scene, may)
        check_swept(scene, is_readable=False)
        check_next_save(scene)
        check_swept(scene)
        return
    check_one_of(scene, may)
    _load_under_faults(scene, may)
    check_swept(scene)
    check_one_of(scene, may)
    check_next_save(scene)


def _may_be(run: Run, outcome: Outcome, *, is_committed: bool) -> list[int | None]:
    """Say which version may be loaded after a save of version 2."""
    old = 1 if run.had else None
    if outcome.ok:
        return [2]
    if outcome.is_refused or not is_committed:
        return [old]
    return [2]


def _load_under_faults(scene: Scene, may: list[int | None]) -> None:
    run = scene.run
    for number, troubles in enumerate((("passing",), ("flips",), ("flips", "passing"), ("lasting",))):
        if (run.seed + number) % 2:
            continue
        seed = f"{run.seed} load {number}"
        faulty = FaultyStore(scene.store, draw_faults(seed, troubles), seed=run.seed)  # type: ignore[arg-type]
        outcome = jobs.load(scene.place.uri, faulty, scene.content, run.transfer, no_dist=True)
        scene.saw("load under faults", outcome)
        if outcome.ok:
            scene.require(bool(set(outcome.versions) & set(may)), "a load brings another version", outcome)


def _killed(scene: Scene) -> None:
    """A save in a process that is killed at some request."""
    run, before = scene.run, commit_etag(scene.store)
    (found,) = run_children(
        [(save_faulty, (scene.place, run, 0, 2))], scene.place.environment, timeout_s=2 * DEADLINE_S
    )
    outcome = _child_outcome(scene, found)
    after = commit_etag(scene.store)
    if outcome is None:
        may: list[int | None] = [2] if after != before else [1 if run.had else None]
    else:
        may = _may_be(run, outcome, is_committed=after != before)
    check_one_of(scene, may)
    check_swept(scene)
    check_one_of(scene, may)
    check_next_save(scene)


def _race(scene: Scene) -> None:
    """Two jobs save to one prefix at once; in processes on disk, half of the time."""
    run = scene.run
    if run.store == "file" and run.seed % 4 == 0:
        tasks = [(save_faulty, (scene.place, run, who, 2 + who)) for who in (0, 1)]
        found = run_children(tasks, scene.place.environment, timeout_s=2 * DEADLINE_S)
        outcomes = [_child_outcome(scene, one) for one in found]
    else:
        started = [
            Job(
                lambda who=who: _save(  # type: ignore[misc]
                    scene,
                    FaultyStore(scene.store, run.faults(who), seed=run.seed + who),
                    2 + who,
                    overwrite=run.overwrite,
                )
            )
            for who in (0, 1)
        ]
        for job in started:
            job.start()
        outcomes = [job.result() for job in started]
        for outcome in outcomes:
            scene.saw("save in a race", outcome)
    _check_several(scene, outcomes)


def _zombie(scene: Scene) -> None:
    """A job sleeps at some request while another one saves, and wakes up."""
    run = scene.run
    gate = Gate(FaultyStore(scene.store, run.faults(0), seed=run.seed), run.moment)
    zombie = Job(lambda: _save(scene, gate, 2, overwrite=run.overwrite))
    zombie.start()
    while zombie.is_alive() and not gate.is_reached.wait(0.01):
        pass
    scene.count("zombies that slept", int(gate.is_reached.is_set()))
    faulty = FaultyStore(scene.store, run.faults(1), seed=run.seed + 1)
    other = _save(scene, faulty, 3, overwrite=run.overwrite or run.seed % 2 == 0)
    scene.saw("save beside a zombie", other)
    gate.is_open.set()
    late = zombie.result()
    scene.saw("save of a zombie", late)
    _check_several(scene, [late, other])


def _readers(scene: Scene) -> None:
    """A load that sleeps at some request while the checkpoint is overwritten; and one that runs beside another save."""
    run = scene.run
    gate = Gate(FaultyStore(scene.store, run.faults(0), seed=run.seed), 1 + run.moment % 6)
    reader = Job(lambda: jobs.load(scene.place.uri, gate, scene.content, run.transfer, no_dist=True))
    reader.start()
    while reader.is_alive() and not gate.is_reached.wait(0.01):
        pass
    scene.count("readers that slept", int(gate.is_reached.is_set()))
    first = _save(scene, FaultyStore(scene.store, run.faults(1), seed=run.seed), 2)
    scene.saw("save beside a reader", first)
    gate.is_open.set()
    scene.saw("load that slept", reader.result())
    beside = Job(lambda: _save(scene, scene.store, 3))
    beside.start()
    while beside.is_alive():
        scene.saw("load beside a save", _load(scene))
    last = beside.result()
    scene.saw("save beside readers", last)
    scene.require(last.ok, "a save without faults fails", last)
    check_swept(scene)
    check_one_of(scene, [3])


def _ranks(scene: Scene) -> None:
    """Several ranks save; some meet faults or are killed."""
    run, before = scene.run, commit_etag(scene.store)
    tasks = [(save_as_rank, (scene.place, run, rank)) for rank in range(run.world_size)]
    found = run_children(tasks, scene.place.environment, timeout_s=DEADLINE_S, is_group=True)
    after = commit_etag(scene.store)
    scene.require(all(one[0] != HUNG for one in found), "a rank hangs", *(one[1] for one in found if one[0] == HUNG))
    is_killed = any(one[0] == KILLED for one in found)
    saves = []
    for one in found:
        if one[0] == KILLED:
            scene.count("ranks killed")
            continue
        scene.require(one[0] == "told", "a rank broke", one[1])
        saves.append(one[1][0])
        for name, outcome in zip(("save of a rank", "load of a rank"), one[1], strict=False):
            # What gloo says of a lost rank is not this package's. Without collectives torch tells nobody of a failure.
            is_alone = not run.use_collectives and set(outcome.errors) == {"RuntimeError"}
            if (is_killed and not outcome.ok) or is_alone:
                scene.count(f"{name}: a peer was lost")
            else:
                scene.saw(name, outcome)
    old = 1 if run.had else None
    if not run.use_collectives:
        _check_rank_local(scene, saves, before)
        return
    if saves and not is_killed:
        scene.require(len({outcome.ok for outcome in saves}) == 1, "ranks disagree on whether they saved", *saves)
    if saves and all(outcome.ok for outcome in saves):
        may: list[int | None] = [2]
    else:
        scene.require(not any(outcome.ok for outcome in saves) or is_killed, "one rank was told of a success", *saves)
        may = [2] if after != before else [old]
    check_one_of(scene, may)
    check_swept(scene)
    check_one_of(scene, may)
    check_next_save(scene)


def _check_rank_local(scene: Scene, saves: list[Outcome], before: str | None) -> None:
    """Commits of ranks alone: a checkpoint of all ranks is never touched by them, and the next save cleans up."""
    if scene.run.had:
        scene.require(all(not outcome.ok for outcome in saves), "a rank-local save replaced a whole one", *saves)
        scene.require(commit_etag(scene.store) == before, "a rank-local save changed .metadata")
        check_one_of(scene, [1])
    check_swept(scene)
    check_next_save(scene)
    check_swept(scene)


def _background(scene: Scene) -> None:
    """A save in torch's checkpoint process."""
    run, before = scene.run, commit_etag(scene.store)
    found = run_children(
        [(save_in_background, (scene.place, run))], scene.place.environment, timeout_s=4 * DEADLINE_S, is_group=True
    )
    outcome = _child_outcome(scene, found[0], is_typed="end" not in run.troubles)
    after = commit_etag(scene.store)
    scene.require(outcome is not None, "the job itself died", found)
    assert outcome is not None
    may = _may_be(run, outcome, is_committed=after != before)
    check_one_of(scene, may)
    check_swept(scene)
    check_one_of(scene, may)
    check_next_save(scene)


def _check_several(scene: Scene, outcomes: list[Outcome | None]) -> None:
    """Two jobs, the first of version 2 and the second of version 3: one of theirs is whole, no mixture."""
    run = scene.run
    winners = [2 + who for who, outcome in enumerate(outcomes) if outcome is not None and outcome.ok]
    unknown = [
        2 + who for who, outcome in enumerate(outcomes) if outcome is None or not (outcome.ok or outcome.is_refused)
    ]
    may: list[int | None] = [*winners, *unknown]
    if not winners:
        may.append(1 if run.had else None)
    if not run.overwrite and run.kind == "race":
        scene.require(len(winners) <= 1, "overwrite=False and two jobs were told of a success", *outcomes)
        scene.require(not (run.had and winners), "overwrite=False and a checkpoint was replaced", *outcomes)
        if run.had:
            may = [1]
    check_one_of(scene, may)
    check_swept(scene)
    check_one_of(scene, may)
    check_next_save(scene)


def _child_outcome(scene: Scene, found: tuple[str, Any], *, is_typed: bool = True) -> Outcome | None:
    """Judge what a process left behind; None if it was killed."""
    kind, value = found
    scene.require(kind != HUNG, "a process hangs", value)
    scene.require(kind != "broken", "a process broke", value)
    if kind == KILLED:
        scene.count("processes killed")
        return None
    (outcome,) = value
    if is_typed or outcome.ok:
        scene.saw("save in a process", outcome)
    assert isinstance(outcome, Outcome)
    return outcome


def _save(scene: Scene, store: ObjectStore, version: int, *, overwrite: bool = True, mode: str = "none") -> Outcome:
    return jobs.save(
        scene.place.uri,
        store,
        scene.content,
        version,
        scene.run.transfer,
        overwrite=overwrite,
        mode=mode,
        no_dist=True,
    )


def _load(scene: Scene) -> Outcome:
    return jobs.load(scene.place.uri, scene.store, scene.content, scene.run.transfer, no_dist=True)


def _note_strikes(scene: Scene, faulty: FaultyStore) -> None:
    for strike in faulty.strikes:
        scene.count(f"strike: {strike.fault.kind}{' after' if strike.fault.when == 'after' else ''}")


# What follows runs in processes of its own.


def save_faulty(place: Place, run: Run, who: int, version: int) -> tuple[str, tuple[Outcome, ...]]:
    """Save alone, under faults."""
    store = FaultyStore(place.open(), run.faults(who), seed=run.seed + who)
    content = Content(seed=run.seed, is_large=run.is_large)
    outcome = jobs.save(place.uri, store, content, version, run.transfer, overwrite=run.overwrite, no_dist=True)
    return "told", (outcome,)


def save_as_rank(place: Place, run: Run, rank: int) -> tuple[str, tuple[Outcome, ...]]:
    """Save as one of several ranks, and load again."""
    store = FaultyStore(place.open(), run.faults(rank), seed=run.seed + rank)
    content = Content(seed=run.seed, is_large=run.is_large)
    outcome = jobs.save(
        place.uri,
        store,
        content,
        2,
        run.transfer,
        overwrite=run.overwrite,
        mode=run.mode,
        is_sharded=True,
        use_collectives=run.use_collectives,
    )
    if not outcome.ok:
        return "told", (outcome,)
    loaded = jobs.load(place.uri, place.open(), content, run.transfer, is_sharded=True)
    return "told", (outcome, loaded)


def save_in_background(place: Place, run: Run) -> tuple[str, tuple[Outcome, ...]]:
    """Save in a process that torch starts."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    store = FaultyStore(place.open(), run.faults(), seed=run.seed)
    content = Content(seed=run.seed, is_large=run.is_large)
    outcome = jobs.save(
        place.uri,
        store,
        content,
        2,
        run.transfer,
        overwrite=run.overwrite,
        mode="process",
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    )
    return "told", (outcome,)


_STORIES: dict[str, Callable[[Scene], None]] = {
    "alone": _alone,
    "killed": _killed,
    "race": _race,
    "zombie": _zombie,
    "readers": _readers,
    "ranks": _ranks,
    "background": _background,
}
