"""The commit of a checkpoint that every rank writes for itself: how all learn that all have written.

The store itself is the meeting place, since the process that writes may have no process group. A rank leaves a small
mark when its file is stored, or when it failed. The first rank waits for all marks and then writes the manifest, in one
atomic request; the others wait for the manifest. A file names the save it belongs to, and so does the manifest: a
reader takes no file that the manifest does not vouch for.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from dcp_cloud.errors import CorruptCheckpointError, DcpCloudError, IncompleteCheckpointError, NotFoundError, describe
from dcp_cloud.stores.base import ObjectStore

logger = logging.getLogger(__name__)

MANIFEST_KEY = "checkpoint.json"
_MARKS = "marks"
_FORMAT = 1
_MAX_BYTES = 64 * 1024
_FIRST_PAUSE_S = 0.02
_LAST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The save that a file or a manifest belongs to.

    Args:
        save_id: The same on all ranks, different for every save.
        world_size: How many ranks save.
    """

    save_id: str
    world_size: int

    def dump(self) -> bytes:
        """Give the bytes that are stored."""
        return json.dumps({"format": _FORMAT, "save": self.save_id, "world_size": self.world_size}).encode()

    @classmethod
    def load(cls, data: bytes, *, key: str) -> Stamp:
        """Read what was stored.

        Args:
            data: The bytes, trusted or not.
            key: Where they stood, for messages.

        Returns:
            The stamp.

        Raises:
            CorruptCheckpointError: They are no stamp.
        """
        try:
            found = json.loads(data)
            known, save_id, world_size = found["format"], found["save"], found["world_size"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _unreadable(key, describe(error)) from error
        if known != _FORMAT or type(save_id) is not str or type(world_size) is not int:
            raise _unreadable(key, f"format {known!r}, save {save_id!r}, world_size {world_size!r}")
        return cls(save_id=save_id, world_size=world_size)


def read_manifest(store: ObjectStore) -> Stamp | None:
    """Read which save is committed.

    Args:
        store: Store rooted at the checkpoint, with retries.

    Returns:
        The save, or None if there is no manifest.
    """
    try:
        found = store.get(MANIFEST_KEY, max_bytes=_MAX_BYTES)
    except NotFoundError as error:
        if type(error) is not NotFoundError:
            raise  # the bucket is missing
        return None
    return Stamp.load(found.data, key=f"{store.uri}/{MANIFEST_KEY}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """One save of one rank, and the others'.

    Args:
        store: Store rooted at the checkpoint, with retries.
        stamp: The save.
        rank: This rank.
        timeout_s: How long to wait for the other ranks.
    """

    store: ObjectStore
    stamp: Stamp
    rank: int
    timeout_s: float

    def announce(self) -> None:
        """Tell the others that this rank's file is stored."""
        if self.stamp.world_size > 1:
            self.store.put(f"{self._marks('stored')}/{self.rank}", [])

    def announce_failure(self, error: BaseException) -> None:
        """Tell the others that this rank has failed, so that they need not wait.

        Args:
            error: Why.
        """
        if self.stamp.world_size > 1:
            text = describe(error).encode()[:_MAX_BYTES]
            self.store.put(f"{self._marks('failed')}/{self.rank}", [memoryview(text)])

    def commit(self) -> None:
        """Make the checkpoint visible, or wait until the first rank has.

        Raises:
            IncompleteCheckpointError: Another rank failed, or did not come in time.
        """
        if self.rank != 0:
            self._wait(self._is_committed, "the first rank to commit the checkpoint")
            return
        if self.stamp.world_size > 1:
            self._wait(self._are_all_stored, "the files of all ranks")
            self._check_failures()
        self.store.put(MANIFEST_KEY, [memoryview(self.stamp.dump())])

    def clean_up(self) -> None:
        """Remove the marks after the commit. The checkpoint is whole with them, too: a failure is logged only."""
        if self.rank != 0:
            return
        try:
            marks = [meta.key for meta in self.store.list(_MARKS)]
            if marks:
                self.store.delete(marks)
        except DcpCloudError as error:
            logger.warning("marks of the save stay below %s/%s: %s", self.store.uri, _MARKS, error)

    def _marks(self, kind: str) -> str:
        return f"{_MARKS}/{self.stamp.save_id}/{kind}"

    def _is_committed(self) -> bool:
        return read_manifest(self.store) == self.stamp

    def _are_all_stored(self) -> bool:
        return sum(1 for _ in self.store.list(self._marks("stored"))) >= self.stamp.world_size

    def _wait(self, is_done: Callable[[], bool], what: str) -> None:
        deadline_s, pause_s = time.monotonic() + self.timeout_s, _FIRST_PAUSE_S
        while not is_done():
            self._check_failures()
            if time.monotonic() > deadline_s:
                raise IncompleteCheckpointError(
                    f"the checkpoint was not committed: {what} did not come within {self.timeout_s:.0f} s",
                    key=self.store.uri,
                    hint="look for an error on the other ranks; write_barrier_timeout_secs sets the time",
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)

    def _check_failures(self) -> None:
        for meta in self.store.list(self._marks("failed")):
            rank = meta.key.rpartition("/")[2]
            cause = self.store.get(meta.key, max_bytes=_MAX_BYTES).data.decode("utf-8", "replace")
            raise IncompleteCheckpointError(
                f"the checkpoint was not committed because rank {rank} failed", key=self.store.uri, cause=cause
            )


def _unreadable(key: str, cause: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "the note of which save this is cannot be read", key=key, cause=cause, hint="load another checkpoint"
    )
