"""Verifying a checkpoint: everything that is wrong with it, not just the first thing.

The shallow check needs the commit and one listing: every object is there and long enough, items keep apart, chunks tile
their tensors. The deep check reads every byte besides, in bounded memory and without making a tensor.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dcp_cloud.checkpoint.bytecheck import ByteChecker
from dcp_cloud.checkpoint.contents import read_contents
from dcp_cloud.checkpoint.entries import CheckpointContents, Shard
from dcp_cloud.checkpoint.summary import SummaryCollector
from dcp_cloud.checkpoint.tiling import Box, find_tiling_fault
from dcp_cloud.config import MIB, TransferConfig
from dcp_cloud.errors import CheckpointError, IncompleteCheckpointError
from dcp_cloud.format.layout import METADATA_KEY, metadata_key
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.events import EventHook, Planned, ignore_event

ProblemKind: TypeAlias = Literal["commit", "record", "missing", "short", "overlap", "coverage", "checksum", "shape"]
"""What is wrong.

* ``commit``: a commit is missing, damaged or unsafe
* ``record``: what the commit says of an item makes no sense
* ``missing``: an object is not there
* ``short``: an object ends before its items do
* ``overlap``: two items share bytes
* ``coverage``: chunks do not tile their tensor
* ``checksum``: stored bytes are not those that were saved
* ``shape``: an item holds a tensor of another shape than the commit says
"""

# Around the bare bytes of a tensor torch writes less than 1 KiB before and after; with the largest alignment, 64 KiB.
_MAX_ENDS_BYTES = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Args:
        kind: What kind of thing.
        key: The object that it concerns, relative to the checkpoint.
        tensors: Names of the tensors and values that cannot be loaded because of it.
        cause: What was found.
    """

    kind: ProblemKind
    key: str
    tensors: tuple[str, ...]
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification found.

    Args:
        uri: The checkpoint, without options.
        deep: Whether the bytes were read.
        tensors: Number of tensors.
        items: Number of stored items: chunks of tensors, and values.
        objects: Number of data objects that the checkpoint names.
        data_bytes: Length of those that are there.
        verified_items: Items whose bytes have the checksum that was recorded when they were saved; 0 if not deep.
        unrecorded_items: Items that could be read, but whose writer recorded no checksum; 0 if not deep.
        read_bytes: Bytes of items that were read.
        duration_s: How long it took, seconds.
        problems: Everything that is wrong.
    """

    uri: str
    deep: bool
    tensors: int
    items: int
    objects: int
    data_bytes: int
    verified_items: int
    unrecorded_items: int
    read_bytes: int
    duration_s: float
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_checkpoint(
    store: ObjectStore,
    *,
    deep: bool = True,
    transfer: TransferConfig | None = None,
    allow_global: Callable[[str, str], object | None] | None = None,
    unsafe_metadata: bool = False,
    hook: EventHook = ignore_event,
) -> VerifyReport:
    """Find out what is wrong with a checkpoint.

    Args:
        store: Store rooted at the checkpoint.
        deep: Read every byte and compare it with the recorded checksums.
        transfer: Concurrency, memory, retries.
        allow_global: Allows further names in ``.metadata``: gets module and name, returns the object or None.
        unsafe_metadata: Load ``.metadata`` with the plain unpickler, which runs whatever code it holds.
        hook: Told of requests and progress, from worker threads.

    Returns:
        The report; damage is in it, not raised.

    Raises:
        CheckpointNotFoundError: There is no checkpoint, not even a part of one.
        StoreError: The store refused, or stopped to answer.
    """
    config = transfer or TransferConfig()
    collector = SummaryCollector("verify", store.uri, hook)
    problems: list[Problem] = []

    def note(key: str, error: CheckpointError) -> None:
        problems.append(Problem(kind="commit", key=key, tensors=(), cause=_why(error)))

    contents: CheckpointContents | None = None
    verified = unrecorded = 0
    failure: BaseException | None = None
    try:
        contents = read_contents(
            store,
            transfer=config,
            allow_global=allow_global,
            unsafe_metadata=unsafe_metadata,
            on_damaged_commit=note,
            hook=collector,
        )
        problems.extend(_shallow(contents))
        if deep:
            verified, unrecorded = _deep(contents, ByteChecker(store, config, collector), problems, collector)
    except IncompleteCheckpointError as error:
        note(METADATA_KEY, error)
    except BaseException as error:
        failure = error
        raise
    finally:
        summary = collector.end(failure)
    return VerifyReport(
        uri=store.uri,
        deep=deep,
        tensors=len(contents.tensors) if contents else 0,
        items=sum(1 for _ in contents.shards()) if contents else 0,
        objects=len(contents.objects) if contents else 0,
        data_bytes=contents.data_bytes if contents else 0,
        verified_items=verified,
        unrecorded_items=unrecorded,
        read_bytes=summary.size_bytes,
        duration_s=summary.duration_s,
        problems=tuple(problems),
    )


def _shallow(contents: CheckpointContents) -> Iterator[Problem]:
    for damage in contents.damage:
        yield Problem(kind="record", key=damage.key, tensors=(damage.fqn,), cause=damage.cause)
    by_key: dict[str, list[Shard]] = {}
    for shard in contents.shards():
        if shard.stored is not None:
            by_key.setdefault(shard.stored.key, []).append(shard)
    for entry in contents.objects:
        shards = sorted(by_key[entry.key], key=_place)
        yield from _object_problems(entry.key, entry.size_bytes, shards)
        for shard in shards:
            fault = _record_fault(shard)
            if fault:
                yield Problem(kind="record", key=entry.key, tensors=(shard.fqn,), cause=fault)
    for tensor in contents.tensors:
        gap = find_tiling_fault(
            tensor.shape,
            [Box(shard.offsets, shard.sizes) for shard in tensor.shards],
            # A rank's own commit lists the chunks of that rank only.
            may_have_holes=tensor.commit_rank is not None,
        )
        if gap is not None:
            yield Problem(kind="coverage", key=metadata_key(tensor.commit_rank), tensors=(tensor.fqn,), cause=gap)


def _object_problems(key: str, size_bytes: int | None, shards: Sequence[Shard]) -> Iterator[Problem]:
    if size_bytes is None:
        yield Problem(kind="missing", key=key, tensors=_names(shards), cause="the object is not there")
        return
    beyond = [shard for shard in shards if _stop(shard) > size_bytes]
    if beyond:
        cause = f"it is {size_bytes} bytes long, its items end at {max(map(_stop, beyond))}"
        yield Problem(kind="short", key=key, tensors=_names(beyond), cause=cause)
    filled = [shard for shard in shards if shard.stored is not None and shard.stored.size_bytes]
    for one, other in itertools.pairwise(filled):
        if _place(other)[0] < _stop(one):
            cause = f"their items share bytes {_place(other)[0]} to {min(_stop(one), _stop(other))}"
            yield Problem(kind="overlap", key=key, tensors=_names((one, other)), cause=cause)


def _record_fault(shard: Shard) -> str:
    """Compare what the commit says of a tensor's bare bytes with what it says of the tensor."""
    stored = shard.stored
    if stored is None or stored.raw is None or not shard.is_tensor:
        return ""
    raw = stored.raw
    if raw.strides is None and raw.size_bytes != shard.size_bytes:
        return f"{raw.size_bytes} bytes are recorded for a chunk of {shard.size_bytes}"
    if stored.size_bytes - raw.size_bytes > _MAX_ENDS_BYTES:
        return f"{stored.size_bytes - raw.size_bytes} bytes of its item are no part of the tensor"
    return ""


def _deep(
    contents: CheckpointContents, checker: ByteChecker, problems: list[Problem], hook: EventHook
) -> tuple[int, int]:
    sizes = {entry.key: entry.size_bytes for entry in contents.objects}
    whole = [
        shard
        for shard in contents.shards()
        if shard.stored is not None and _stop(shard) <= (sizes[shard.stored.key] or -1) and not _record_fault(shard)
    ]
    whole.sort(key=lambda shard: (shard.stored.key if shard.stored else "", _place(shard)))
    total = sum(shard.stored.size_bytes for shard in whole if shard.stored)
    hook(Planned(phase="verify", size_bytes=total, items=len(whole)))
    counts: Counter[str] = Counter()
    for verdict in checker.check(whole):
        counts[verdict.status] += 1
        if verdict.status in ("verified", "unrecorded"):
            continue
        key = verdict.shard.stored.key if verdict.shard.stored else ""
        kind: ProblemKind = (
            "missing" if verdict.status == "gone" else "shape" if verdict.status == "shape" else "checksum"
        )
        problems.append(Problem(kind=kind, key=key, tensors=(verdict.shard.fqn,), cause=verdict.cause))
    return counts["verified"], counts["unrecorded"]


def _place(shard: Shard) -> tuple[int, int]:
    return (shard.stored.offset, _stop(shard)) if shard.stored is not None else (0, 0)


def _stop(shard: Shard) -> int:
    return shard.stored.offset + shard.stored.size_bytes if shard.stored is not None else 0


def _names(shards: Iterable[Shard]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(shard.fqn for shard in shards))


def _why(error: CheckpointError) -> str:
    return f"{error.message}: {error.cause}" if error.cause else error.message
