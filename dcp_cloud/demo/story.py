"""What happens in the demo: four jobs, one after the other, and what must be true of them.

1. A training job runs to its end on 2 processes, undisturbed and without checkpoints: the truth to compare with.
2. The same job saves as it goes, and all its processes are killed in the middle of its second save.
3. It resumes on 4 processes from the newest checkpoint that was committed, and ends after its next save.
4. It resumes from that one on 1 process, and runs to the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dcp_cloud.checkpoint.catalog import CheckpointEntry, list_checkpoints
from dcp_cloud.demo.messages import Job, Message
from dcp_cloud.demo.place import Place, unfinished_uploads
from dcp_cloud.demo.ranks import run_ranks
from dcp_cloud.stores.registry import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One job of the story.

    Args:
        name: What it is called in the tables.
        processes: Number of ranks.
        job: What they do.
    """

    name: str
    processes: int
    job: Job


@dataclass(slots=True)
class Transfer:
    """One save or load, all ranks together; bytes and requests are added up, the time is that of the slowest.

    Args:
        act: Of which job.
        processes: Number of ranks.
        what: ``save`` or ``load``.
        step: Step of the checkpoint.
        size_bytes: Payload.
        duration_s: From the call to the commit, or to the last byte.
        requests: Requests sent, repeated ones included.
        retries: Requests that were repeated.
        ranks: How many ranks have reported.
    """

    act: str
    processes: int
    what: str
    step: int
    size_bytes: int = 0
    duration_s: float = 0.0
    requests: int = 0
    retries: int = 0
    ranks: int = 0

    def add(self, message: Message) -> None:
        """Add one rank's numbers."""
        self.size_bytes += message["size_bytes"]
        self.duration_s = max(self.duration_s, message["duration_s"])
        self.requests += message["requests"]
        self.retries += message["retries"]
        self.ranks += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that must be true.

    Args:
        claim: What.
        is_true: Whether it is.
        detail: What it was seen by.
    """

    claim: str
    is_true: bool
    detail: str


@dataclass(slots=True)
class Outcome:
    """What has been seen.

    Args:
        losses: By act, then step.
        saved: Fingerprints at the moment of each save, by step. The killed job's save is among them.
        loaded: Fingerprints after each load, by act.
        loaded_step: Step of the checkpoint that was loaded, by act.
        final: Fingerprints at the end, by act.
        transfers: Saves that were committed, and loads.
        refused: Step and error of the attempt to load what was not committed.
        listing: Checkpoints below the run's prefix after the kill.
        unfinished: Unfinished uploads there, if the store can tell.
        parameters: Size of the model.
    """

    losses: dict[str, dict[int, float]] = field(default_factory=dict)
    saved: dict[int, dict[str, str]] = field(default_factory=dict)
    loaded: dict[str, dict[str, str]] = field(default_factory=dict)
    loaded_step: dict[str, int] = field(default_factory=dict)
    final: dict[str, dict[str, str]] = field(default_factory=dict)
    transfers: list[Transfer] = field(default_factory=list)
    refused: tuple[int, str, str] | None = None
    listing: list[CheckpointEntry] = field(default_factory=list)
    unfinished: int | None = None
    parameters: int = 0

    def take(self, act: Act, message: Message) -> None:
        """Take note of a message of an act."""
        kind, is_first = message["kind"], message["rank"] == 0
        if kind in ("save-done", "load-done"):
            self._transfer(act, kind.removesuffix("-done"), message["step"]).add(message)
        if not is_first:
            return
        if kind == "step":
            self.losses.setdefault(act.name, {})[message["step"]] = message["loss"]
        elif kind == "saving":
            self.saved[message["step"]] = message["fingerprints"]
        elif kind == "load-done":
            self.loaded[act.name] = message["fingerprints"]
            self.loaded_step[act.name] = message["step"]
        elif kind == "finished":
            self.final[act.name] = message["fingerprints"]
        elif kind == "refused":
            self.refused = (message["step"], message["error"], message["message"])
        elif kind == "ready":
            self.parameters = message["parameters"]

    def _transfer(self, act: Act, what: str, step: int) -> Transfer:
        for transfer in self.transfers:
            if (transfer.act, transfer.what, transfer.step) == (act.name, what, step):
                return transfer
        self.transfers.append(Transfer(act=act.name, processes=act.processes, what=what, step=step))
        return self.transfers[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The four acts.

    Args:
        uri: Prefix of the run, with options.
        model: Name of the model's size.
        steps: Length of the training, at least 3.
    """

    uri: str
    model: str
    steps: int

    @property
    def committed(self) -> int:
        """Step of the save before the kill."""
        return self.steps // 3

    @property
    def interrupted(self) -> int:
        """Step of the save that the kill interrupts."""
        return 2 * self.committed

    def acts(self) -> list[Act]:
        """List them."""

        def job(stop: int, **fields: object) -> Job:
            return Job(messages="", model=self.model, stop=stop, **fields)  # type: ignore[arg-type]

        saves = {"uri": self.uri, "save_at": (self.committed, self.interrupted)}
        return [
            Act(name="undisturbed", processes=2, job=job(self.steps)),
            Act(name="killed", processes=2, job=job(self.steps, **saves, hold_at=self.interrupted)),
            # Other seeds: whatever is not loaded would be something else.
            Act(
                name="resumed on 4",
                processes=4,
                job=job(self.interrupted, **saves, resume=True, try_first=self.interrupted, seed=1),
            ),
            Act(name="resumed on 1", processes=1, job=job(self.steps, uri=self.uri, resume=True, seed=2)),
        ]


def play(plan: Plan, place: Place, listen: Callable[[Act, Message], None]) -> Outcome:
    """Run the four jobs.

    Args:
        plan: The acts.
        place: Where the checkpoints go.
        listen: Told of every message of every rank.

    Returns:
        What was seen.

    Raises:
        DcpCloudError: A job failed that should not have.
    """
    outcome = Outcome()
    for act in plan.acts():

        def hear(message: Message, act: Act = act) -> None:
            outcome.take(act, message)
            listen(act, message)

        hear({"kind": "begun", "rank": 0})
        run_ranks(act.job, act.processes, hear)
        if act.job.hold_at is not None:
            store = open_store(place.uri)
            outcome.listing = list_checkpoints(store)
            outcome.unfinished = unfinished_uploads(place.uri)
            hear({"kind": "listed", "rank": 0, "entries": outcome.listing, "unfinished": outcome.unfinished})
            store.close()
    return outcome


def check(plan: Plan, outcome: Outcome) -> list[Check]:
    """Compare what was seen with what must be.

    Args:
        plan: The acts.
        outcome: What was seen.

    Returns:
        All claims, true or not.
    """
    truth, checks = outcome.losses["undisturbed"], []
    complete = [entry.step for entry in outcome.listing if entry.state == "complete"]
    checks.append(
        Check(
            claim=f"after the kill, step {plan.committed} is a checkpoint and step {plan.interrupted} is none",
            is_true=complete == [plan.committed] and outcome.refused is not None,
            detail=f"listed: {complete}; loading step {plan.interrupted}: "
            + (outcome.refused[1] if outcome.refused else "worked"),
        )
    )
    for act, step in (("resumed on 4", plan.committed), ("resumed on 1", plan.interrupted)):
        saved, loaded = outcome.saved[step], outcome.loaded[act]
        equal = sum(saved.get(name) == digest for name, digest in loaded.items())
        checks.append(
            Check(
                claim=f"{act}: step {step} was loaded, and every value equals the one that was saved",
                is_true=saved == loaded and outcome.loaded_step[act] == step,
                detail=f"SHA-256 of {equal} of {len(saved)} whole tensors and values",
            )
        )
    for act in ("killed", "resumed on 4", "resumed on 1"):
        losses = outcome.losses.get(act, {})
        equal = sum(truth.get(step) == loss for step, loss in losses.items())
        checks.append(
            Check(
                claim=f"{act}: every loss equals the undisturbed job's, bit for bit",
                is_true=equal == len(losses) > 0,
                detail=f"{equal} of {len(losses)} steps",
            )
        )
    first, last = outcome.final["undisturbed"], outcome.final["resumed on 1"]
    checks.append(
        Check(
            claim="weights, optimizer, schedule, random numbers and data position end the same",
            is_true=first == last,
            detail=f"SHA-256 of {sum(last.get(name) == digest for name, digest in first.items())} of {len(first)}",
        )
    )
    return checks
