"""Downloading: all wanted bytes at once, in parallel ranged reads, straight to where they belong.

A :class:`Target` says which bytes it wants and where they land: in memory that the caller owns, or in a temporary that
is converted when it is complete. Reads run out of order; a target is handed back to the calling thread when its last
byte is in and its checksums hold.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dcp_cloud.config import TransferConfig
from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import ConfigError, CorruptCheckpointError, TransferCancelledError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.engine import Engine
from dcp_cloud.transfer.events import EventHook, Phase, Progressed, ignore_event
from dcp_cloud.transfer.ranges import Extent, Fetch, Slice, plan_fetches
from dcp_cloud.transfer.waiting import take

logger = logging.getLogger(__name__)

# A shorter range takes less time than its request's first byte: 4 MiB are 47 ms of a connection of 90 MB/s. A longer
# one than the share of a connection leaves others idle.
_MIN_FETCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Check:
    """The checksum that a stretch of a target must have.

    Args:
        start: First byte, from the start of the target.
        stop: After the last byte.
        crc32: CRC-32 (zlib) of the bytes.
    """

    start: int
    stop: int
    crc32: int


@dataclass(slots=True, kw_only=True)
class Target:
    """Wanted bytes and where they land.

    Args:
        key: Key of the object.
        start: Offset of the first byte.
        nbytes: How many, at least 1.
        memory: Where they land: writable, ``nbytes`` long; None for a temporary that lives until ``done`` returns.
        checks: Checksums to verify.
        convert: Run on a worker thread with the complete memory; may be slow, must not touch shared state.
        done: Run on the calling thread after ``convert``, with the complete memory.
        label: What the bytes are (a tensor's name), for messages.
        items: How many items of the checkpoint this target completes, for progress.
    """

    key: str
    start: int
    nbytes: int
    memory: memoryview | None = None
    checks: tuple[Check, ...] = ()
    convert: Callable[[memoryview], None] | None = None
    done: Callable[[memoryview], None] | None = None
    label: str = ""
    items: int = 0

    def __post_init__(self) -> None:
        # Memory of another length would shift all that is read after it by the same request.
        if self.nbytes < 1 or (self.memory is not None and self.memory.nbytes != self.nbytes):
            room = "none" if self.memory is None else self.memory.nbytes
            raise ConfigError(
                f"a target of {self.nbytes} bytes cannot be read", key=self.key, cause=f"its memory has {room}"
            )


@dataclass(slots=True)
class _Progress:
    """What has arrived of a target so far."""

    memory: memoryview | None = None
    missing_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Downloader:
    """Fetches targets in parallel.

    Args:
        store: Where from; tries once, this class repeats.
        config: Range length, gaps, concurrency, memory, retries.
        hook: Told of requests and progress.
        phase: What the progress events say they belong to.
    """

    def __init__(
        self,
        store: ObjectStore,
        config: TransferConfig,
        *,
        hook: EventHook = ignore_event,
        phase: Phase = "load",
    ) -> None:
        self._store = store
        self._config = config
        self._hook = hook
        self._phase: Phase = phase

    def run(self, targets: Sequence[Target], *, if_match: str | None = None) -> None:
        """Fetch all targets; returns when every one is complete, verified, converted and done.

        Args:
            targets: What to fetch, from any number of objects.
            if_match: Version token that the objects must have (for reading one object only).

        Raises:
            BaseException: The first thing that went wrong; memory of the targets is then undefined.
        """
        if targets:
            _Run(self._store, self._config, targets, hook=self._hook, phase=self._phase, if_match=if_match).work()


class _Run:
    """One call of :meth:`Downloader.run`."""

    def __init__(
        self,
        store: ObjectStore,
        config: TransferConfig,
        targets: Sequence[Target],
        *,
        hook: EventHook,
        phase: Phase,
        if_match: str | None,
    ) -> None:
        self._config = config
        self._targets = targets
        self._hook = hook
        self._phase: Phase = phase
        self._if_match = if_match
        self._engine = Engine(
            store, config, name="dcp_cloud-download", hook=hook, phase=phase, queue_limit=2 * config.max_concurrency
        )
        self._pool = self._engine.pool
        self._budget = self._engine.budget
        self._store = self._engine.store
        self._progress = [_Progress(target.memory, target.nbytes) for target in targets]
        self._finished: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        # Unwanted bytes between wanted ones land here; nobody reads it, so all threads may write it at once.
        self._scratch = memoryview(bytearray(config.gap_bytes))

    def work(self) -> None:
        fetches = plan_fetches(
            [Extent(target.key, target.start, target.start + target.nbytes) for target in self._targets],
            max_gap_bytes=self._config.gap_bytes,
            max_fetch_bytes=self._fetch_bytes(),
        )
        feeder = threading.Thread(target=self._feed, args=(fetches,), name="dcp_cloud-download-feed", daemon=True)
        with self._engine:
            try:
                feeder.start()
                for _ in self._targets:
                    index = take(self._finished)
                    if index is None:
                        break
                    self._hand_back(index)
                self._pool.join()
            except BaseException:
                self._pool.cancel()  # the feeder may wait for a place, or for memory
                raise
            finally:
                if feeder.ident is not None:  # None: it could not be started, and that is the error
                    feeder.join()

    def _fetch_bytes(self) -> int:
        """Let every connection have its share of a small load, and no request be longer than a part."""
        total = sum(target.nbytes for target in self._targets)
        share = -(-total // self._config.max_concurrency)
        return min(self._config.part_size_bytes, max(_MIN_FETCH_BYTES, share))

    def _feed(self, fetches: Iterable[Fetch]) -> None:
        """Hand out fetches in order, each with its memory; on a thread of its own so that the caller can consume."""
        try:
            self._engine.watch_stalls()
            for fetch in fetches:
                self._open(fetch.slices)
                self._pool.submit(lambda fetch=fetch: self._guard(fetch))  # type: ignore[misc]
        except BaseException as error:  # whatever it is, the caller has to hear of it
            self._pool.fail(error)
            self._finished.put(None)

    def _open(self, slices: Sequence[Slice]) -> None:
        """Allocate the temporaries that a fetch begins, within the budget."""
        fresh = [index for index in _distinct(slices) if self._progress[index].memory is None]
        nbytes = sum(self._targets[index].nbytes for index in fresh)
        if nbytes:
            # What earlier fetches have opened for targets that this fetch carries on cannot be released without it.
            own = sum(self._targets[i].nbytes for i in _distinct(slices) if self._is_open_temporary(i))
            self._budget.acquire(nbytes, own_bytes=own)
        for index in fresh:
            self._progress[index].memory = memoryview(bytearray(self._targets[index].nbytes))

    def _is_open_temporary(self, index: int) -> bool:
        return self._targets[index].memory is None and self._progress[index].memory is not None

    def _guard(self, fetch: Fetch) -> None:
        try:
            self._fetch(fetch)
        except BaseException:
            self._finished.put(None)
            raise

    def _fetch(self, fetch: Fetch) -> None:
        buffers, copies = self._buffers(fetch)
        self._read(fetch, buffers)
        for source, destination in copies:
            destination[:] = source
        for piece in fetch.slices:
            progress = self._progress[piece.index]
            with progress.lock:
                progress.missing_bytes -= piece.stop - piece.start
                is_complete = progress.missing_bytes == 0
            if is_complete:
                self._complete(piece.index)

    def _read(self, fetch: Fetch, buffers: Sequence[memoryview]) -> None:
        """Fill buffers; a second run, if it comes to that, reads into memory of its own until the first is gone."""
        nbytes = fetch.stop - fetch.start

        def request(turn: int) -> memoryview | None:
            if turn == 0:
                self._store.get_range(fetch.key, fetch.start, buffers, if_match=self._if_match)
                return None
            if not self._budget.try_acquire(nbytes):
                raise TransferCancelledError("no second request", key=fetch.key, cause="there is no memory for it")
            spares.append(memoryview(bytearray(nbytes)))
            self._store.get_range(fetch.key, fetch.start, spares, if_match=self._if_match)
            return spares[0]

        spares: list[memoryview] = []
        try:
            spare = self._engine.hedger.run(request, nbytes, awaits_loser=True)
            if spare is not None:
                for buffer in buffers:
                    buffer[:] = spare[: buffer.nbytes]
                    spare = spare[buffer.nbytes :]
        finally:
            if spares:
                self._budget.release(nbytes)

    def _buffers(self, fetch: Fetch) -> tuple[list[memoryview], list[tuple[memoryview, memoryview]]]:
        """Lay the slices' memory end to end; what two slices share is read into one and copied to the other."""
        buffers: list[memoryview] = []
        copies: list[tuple[memoryview, memoryview]] = []
        landed: list[tuple[int, int, memoryview]] = []
        cursor = fetch.start
        for piece in fetch.slices:
            view = self._view(piece)
            if piece.start > cursor:
                buffers.append(self._scratch[: piece.start - cursor])
                cursor = piece.start
            if piece.start < cursor:
                copies.extend(_overlaps(landed, piece, view))
            if piece.stop > cursor:
                fresh = view[cursor - piece.start :]
                buffers.append(fresh)
                landed.append((cursor, piece.stop, fresh))
                cursor = piece.stop
        return buffers, copies

    def _view(self, piece: Slice) -> memoryview:
        memory = self._progress[piece.index].memory
        target = self._targets[piece.index]
        assert memory is not None  # noqa: S101 - opened before its first fetch was handed out
        return memory[piece.start - target.start : piece.stop - target.start]

    def _complete(self, index: int) -> None:
        target, memory = self._targets[index], self._progress[index].memory
        assert memory is not None  # noqa: S101 - all its bytes have just landed there
        self._verify(target, memory)
        if target.convert is not None:
            target.convert(memory)
        self._finished.put(index)

    def _verify(self, target: Target, memory: memoryview) -> None:
        if _first_mismatch(target, memory) is None:
            return
        logger.warning("%s: checksum mismatch in %s, reading it once more", target.key, target.label)
        self._store.get_range(target.key, target.start, [memory], if_match=self._if_match)
        wrong = _first_mismatch(target, memory)
        if wrong is not None:
            raise CorruptCheckpointError(
                f"the stored bytes of {target.label} are not the bytes that were saved",
                key=target.key,
                cause=f"CRC-32 mismatch in its bytes {target.start + wrong.start} to {target.start + wrong.stop}",
                hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
            )

    def _hand_back(self, index: int) -> None:
        target, progress = self._targets[index], self._progress[index]
        memory = progress.memory
        if target.done is not None and memory is not None:
            target.done(memory)
        if target.memory is None:
            progress.memory = memory = None  # before the budget may give it to somebody else
            self._budget.release(target.nbytes)
        self._hook(Progressed(phase=self._phase, size_bytes=target.nbytes, items=target.items))


def _distinct(slices: Iterable[Slice]) -> list[int]:
    return list(dict.fromkeys(piece.index for piece in slices))


def _overlaps(
    landed: Sequence[tuple[int, int, memoryview]], piece: Slice, view: memoryview
) -> Iterable[tuple[memoryview, memoryview]]:
    for start, stop, source in landed:
        low, high = max(start, piece.start), min(stop, piece.stop)
        if low < high:
            yield source[low - start : high - start], view[low - piece.start : high - piece.start]


def _first_mismatch(target: Target, memory: memoryview) -> Check | None:
    for check in target.checks:
        if crc32(memory[check.start : check.stop]) != check.crc32:
            return check
    return None
