"""The training job of the demo, as it would be without a demo: train, save in the background, resume.

Training gives the same bits on 1, 2 and 4 ranks, because everything whose rounding depends on an order is done in one
order: each of the four sequences of a step is a batch of its own, their gradients are added up in float64, where four
float32 numbers add up exactly for all practical purposes, and the mean loss is summed in the order of the sequences.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dcp_cloud import CloudStorageReader, CloudStorageWriter, open_store
from dcp_cloud.demo.messages import Job, MessageWriter
from dcp_cloud.demo.meter import Meter
from dcp_cloud.demo.model import MICROBATCHES, SIZES, Transformer, sequence
from dcp_cloud.demo.state import TrainState, fingerprints
from dcp_cloud.errors import CheckpointNotFoundError, ConfigError, IncompleteCheckpointError
from dcp_cloud.transfer.events import EventHook, RequestDone, TransferEvent
from dcp_cloud.uri import StoreURI

_TIMEOUT = timedelta(seconds=150)
_LEARNING_RATE = 5e-4
_WARM_UP_STEPS = 3


def build(job: Job) -> TrainState:
    """Make the model, sharded over all ranks, and what goes with it."""
    if not hasattr(torch.cpu.Stream, "record_event"):
        raise ConfigError(
            "the demo needs torch 2.7 or later",
            cause="it trains with FSDP2 on CPUs, which torch 2.6 cannot do",
            hint="update torch; to save and load, 2.6 is enough",
        )
    torch.manual_seed(job.seed)
    model = Transformer(SIZES[job.model])
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float64)
    for block in model.blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP_STEPS))
    return TrainState(model, optimizer, scheduler)


def train_step(state: TrainState) -> float:
    """Train on the next sequences; return their mean loss."""
    # All ranks draw the same numbers, so the state of the generator does not depend on how many they are.
    seeds = torch.randint(2**62, (MICROBATCHES,)).tolist()
    mine = range(dist.get_rank(), MICROBATCHES, dist.get_world_size())
    losses = torch.zeros(MICROBATCHES, dtype=torch.float64)
    for index in mine:
        state.model.set_requires_gradient_sync(index == mine[-1])  # type: ignore[operator]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[index])  # for the dropout
            loss = state.model(*sequence(state.position + index))
            (loss / len(mine)).backward()
        losses[index] = loss.detach()
    dist.all_reduce(losses)  # each is a sum of one number and zeros, so it is exact
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.scheduler.step()
    state.position += MICROBATCHES
    return float(losses.mean())


class Saver:
    """Saves in the background, one save at a time.

    Args:
        job: What to do.
        tell: Takes messages.
    """

    def __init__(self, job: Job, tell: MessageWriter) -> None:
        self._job = job
        self._tell = tell
        # Collectives of the background thread must not mix with those of the training.
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[object] | None = None

    def start(self, step: int, state: TrainState) -> None:
        """Begin to save; training may go on when this returns."""
        self.wait()
        self._tell("saving", step=step, fingerprints=fingerprints(state))
        meter = Meter("save", step, self._tell)
        hook: EventHook = self._held(meter) if step == self._job.hold_at else meter
        writer = CloudStorageWriter(StoreURI.parse(str(self._job.uri)).child(f"step-{step}"), on_event=hook)
        pending = async_save({"train": state}, storage_writer=writer, process_group=self._group)
        assert isinstance(pending, Future)  # noqa: S101 - torch returns another type with a stager of one's own only
        pending.add_done_callback(lambda done: None if done.exception() else meter.tell_done())
        self._pending = pending

    def wait(self) -> None:
        """Wait for the save under way; raise what went wrong in it."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _held(self, meter: Meter) -> EventHook:
        """Keep one part from being counted as stored, so that the save cannot end before the kill comes."""
        is_first = threading.Semaphore(1)

        def hold(event: TransferEvent) -> None:
            meter(event)
            is_part = isinstance(event, RequestDone) and event.verb in ("put", "put_part")
            if is_part and is_first.acquire(blocking=False):
                self._tell("holding")
                threading.Event().wait()

        return hold


def resume(job: Job, state: TrainState, tell: MessageWriter) -> int:
    """Load the newest checkpoint that was committed; return its step."""
    run = StoreURI.parse(str(job.uri))
    chosen = [_find_newest(run, job, tell) if dist.get_rank() == 0 else 0]
    dist.broadcast_object_list(chosen)
    meter = Meter("load", chosen[0], tell)
    load({"train": state}, storage_reader=CloudStorageReader(run.child(f"step-{chosen[0]}"), on_event=meter))
    meter.tell_done(fingerprints=fingerprints(state))
    return chosen[0]


def _find_newest(run: StoreURI, job: Job, tell: MessageWriter) -> int:
    steps = {int(name.rpartition("-")[2]) for name in open_store(run).list_prefixes() if name.startswith("step-")}
    for step in sorted(steps | ({job.try_first} if job.try_first else set()), reverse=True):
        try:
            CloudStorageReader(run.child(f"step-{step}")).read_metadata()
        except (CheckpointNotFoundError, IncompleteCheckpointError) as error:
            tell("refused", step=step, error=type(error).__name__, message=str(error))
        else:
            return step
    raise CheckpointNotFoundError("no checkpoint was committed", key=run.root)


def run(job: Job, tell: MessageWriter) -> None:
    """Do the job in the process group that torchrun has prepared.

    Args:
        job: What to do.
        tell: Takes messages.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        _work(job, tell)
    finally:
        dist.destroy_process_group()


def _work(job: Job, tell: MessageWriter) -> None:
    state = build(job)
    saver = Saver(job, tell) if job.uri else None
    done = resume(job, state, tell) if job.resume else 0
    tell("ready", step=done, parameters=sum(parameter.numel() for parameter in state.model.parameters()))
    for step in range(done + 1, job.stop + 1):
        began_s = time.monotonic()
        loss = train_step(state)
        tell("step", step=step, loss=loss, duration_s=time.monotonic() - began_s)
        if saver is not None and step in job.save_at:
            saver.start(step, state)
    if saver is not None:
        saver.wait()
    tell("finished", fingerprints=fingerprints(state))
