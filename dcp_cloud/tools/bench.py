"""How fast this machine saves to and loads from a place, by part length and concurrency.

Objects are uploaded and downloaded by the same code as a checkpoint's, checksums included. They are called like data
of a save that never committed, in a directory of their own; so if this process is killed, ``dcp-cloud sweep`` deletes
them like those of any crashed save. In all other cases they are deleted here.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import DcpCloudError, InvalidRequestError, PermissionDeniedError, describe
from dcp_cloud.format.layout import data_key
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.tools.bench_plan import SMALL_BYTES, BenchPlan, Measurement, Setting, choose
from dcp_cloud.transfer.download import Check, Downloader, Target
from dcp_cloud.transfer.events import EventHook, Planned, RequestDone, TransferEvent, ignore_event
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader

logger = logging.getLogger(__name__)

# As long as a tensor of a large model's layer.
_TENSOR_BYTES = 16 * MIB
# Whoever pressed Ctrl-C must not wait long for a store that may be gone.
_CLEAN_UP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What was measured.

    Args:
        plan: What was to be measured.
        put_s: Time to write each small object, seconds.
        get_s: Time to read each small object, seconds.
        measurements: Rates of each setting, the configured one first.
        best: The setting to recommend.
        requests: Requests that were sent, repetitions included; those for cleaning up are not.
        failures: Failed tries of requests, by type of error; each was repeated with success.
        duration_s: How long it all took, seconds.
    """

    plan: BenchPlan
    put_s: tuple[float, ...]
    get_s: tuple[float, ...]
    measurements: tuple[Measurement, ...]
    best: Measurement
    requests: int
    failures: dict[str, int]
    duration_s: float


def run_bench(
    store: ObjectStore,
    plan: BenchPlan,
    *,
    hook: EventHook = ignore_event,
    clock: Callable[[], float] = time.perf_counter,
) -> BenchReport:
    """Measure, and delete whatever was written, also when it fails or is interrupted.

    Args:
        store: The place.
        plan: What to measure.
        hook: Told of requests and progress.
        clock: Monotonic time in seconds.

    Returns:
        The rates, and what they mean.

    Raises:
        DcpCloudError: A request failed for good, or what was written could not be deleted.
    """
    began_s = clock()
    run = _Run(store, plan, hook=hook, clock=clock)
    run.tell(Planned(phase="copy", size_bytes=2 * plan.moved_bytes, items=plan.measurements))
    with _cleaned_up(run):
        put_s, get_s = run.measure_latency()
        for setting in plan.settings:
            run.measure(setting)
        best = choose(run.measurements())
        for _ in range(plan.confirmations if best.setting != plan.configured else 0):
            run.measure(plan.configured)
            run.measure(best.setting)
    measurements = run.measurements()
    return BenchReport(
        plan=plan,
        put_s=put_s,
        get_s=get_s,
        measurements=measurements,
        best=choose(measurements),
        requests=len(run.tries),
        failures=dict(Counter(error for error in run.tries if error)),
        duration_s=clock() - began_s,
    )


@dataclass(slots=True, kw_only=True)
class _Rates:
    save: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)


class _Run:
    """One run: its directory, its memory, and what it has measured so far."""

    def __init__(self, store: ObjectStore, plan: BenchPlan, *, hook: EventHook, clock: Callable[[], float]) -> None:
        self.store = store
        self.plan = plan
        self._hook = hook
        self._clock = clock
        self._save_id = uuid.uuid4().hex
        self._rates: dict[Setting, _Rates] = {setting: _Rates() for setting in plan.settings}
        self.directory = f"bench-{self._save_id[:8]}"
        self.keys: list[str] = []
        self.tries: list[str] = []  # the error of each try of a request; worker threads append
        # Bytes that no link compresses; what is uploaded is downloaded to where it came from.
        tensor = os.urandom(min(_TENSOR_BYTES, plan.size_bytes))
        self._memory = memoryview(bytearray(plan.size_bytes))
        self._tensors = [self._memory[i : i + len(tensor)] for i in range(0, plan.size_bytes, len(tensor))]
        for place in self._tensors:
            place[:] = tensor[: place.nbytes]
        self._checks = {place.nbytes: Check(0, place.nbytes, crc32(place)) for place in self._tensors}

    def tell(self, event: TransferEvent) -> None:
        """Pass an event on, counting requests."""
        if isinstance(event, RequestDone):
            self.tries.append(event.error or "")
        self._hook(event)

    def measurements(self) -> tuple[Measurement, ...]:
        """Give all rates so far."""
        return tuple(
            Measurement(setting=setting, save_rates=tuple(rates.save), load_rates=tuple(rates.load))
            for setting, rates in self._rates.items()
        )

    def measure_latency(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Write and read small objects, one request after the other. The first of each, which connects, is left out."""
        retrying = RetryingStore(self.store, Retrier(config=self.plan.transfer.retry, hook=self.tell))
        data, keys = self._memory[:SMALL_BYTES], [self._new_key() for _ in range(self.plan.small_objects)]
        put_s = [self._timed(lambda key=key: retrying.put(key, [data], crc32=crc32(data))) for key in keys]  # type: ignore[misc]
        get_s = [self._timed(lambda key=key: retrying.get(key, max_bytes=SMALL_BYTES)) for key in keys]  # type: ignore[misc]
        return tuple(put_s[1:]), tuple(get_s[1:])

    def measure(self, setting: Setting) -> None:
        """Upload and download an object with a setting."""
        key, config = self._new_key(), setting.apply(self.plan.transfer)
        rates = self._rates[setting]
        rates.save.append(self.plan.size_bytes / self._timed(lambda: self._upload(key, config)))
        for tensor in self._tensors:
            tensor[:] = bytes(tensor.nbytes)  # so that only the download can bring the right content
        rates.load.append(self.plan.size_bytes / self._timed(lambda: self._download(key, config)))
        RetryingStore(self.store, Retrier(config=config.retry)).delete([key])

    def _upload(self, key: str, config: TransferConfig) -> None:
        with Uploader(self.store, config, hook=self.tell, phase="copy") as uploader:
            upload = uploader.begin(key, expected_bytes=self.plan.size_bytes)
            for tensor in self._tensors:
                upload.append(Span.of(tensor))
            upload.end()
            uploader.finish()

    def _download(self, key: str, config: TransferConfig) -> None:
        targets, start = [], 0
        for tensor in self._tensors:
            checks = (self._checks[tensor.nbytes],)
            targets.append(Target(key=key, start=start, nbytes=tensor.nbytes, memory=tensor, checks=checks, label=key))
            start += tensor.nbytes
        Downloader(self.store, config, hook=self.tell, phase="copy").run(targets)

    def _timed(self, action: Callable[[], object]) -> float:
        began_s = self._clock()
        action()
        return max(self._clock() - began_s, 1e-9)

    def _new_key(self) -> str:
        self.keys.append(f"{self.directory}/{data_key(0, len(self.keys), self._save_id)}")
        return self.keys[-1]


@contextmanager
def _cleaned_up(run: _Run) -> Iterator[None]:
    """Delete all that a run has written, however it ends."""
    try:
        yield
    except BaseException:
        try:
            _delete_all(run)
        except (DcpCloudError, KeyboardInterrupt) as error:  # what went wrong before must not be hidden
            place = f"{run.store.uri}/{run.directory}"
            logger.warning("%s could not be deleted; 'dcp-cloud sweep' will: %s", place, describe(error))
        raise
    _delete_all(run)


def _delete_all(run: _Run) -> None:
    retry = run.plan.transfer.retry
    retrier = Retrier(config=replace(retry, total_timeout_s=min(retry.total_timeout_s, _CLEAN_UP_S)))
    retrying = RetryingStore(run.store, retrier)
    retrying.delete(run.keys)
    try:
        for upload in retrying.list_multiparts(run.directory):
            upload.abort()
    except (PermissionDeniedError, InvalidRequestError) as error:
        # Some may write but not list; and the uploader has aborted its own uploads already.
        logger.info("could not look for unfinished uploads: %s", describe(error))
