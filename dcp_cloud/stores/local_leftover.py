"""What a crash left of a write to the local store: a temporary file, or an upload that no longer knows its name.

Nobody can finish it. It is listed among the unfinished uploads, under its own name, so that whoever looks for stale
ones finds it and can drop it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone

from dcp_cloud.errors import NotFoundError
from dcp_cloud.stores.base import Buffers, ObjectMeta, Part
from dcp_cloud.stores.local_files import translated


@dataclass(frozen=True, slots=True)
class LocalLeftover:
    """The leftover of a write.

    Args:
        path: The temporary file, or the upload's directory.
        key: Its place relative to the store's root. The last segment is the leftover's own name.
        started_at: When it was last written.
    """

    path: str
    key: str
    started_at: datetime | None

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:  # noqa: ARG002 - the contract
        """Refuse: the upload has ended."""
        raise self._ended()

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:  # noqa: ARG002 - the contract
        """Refuse: the upload has ended."""
        raise self._ended()

    def abort(self) -> None:
        """Remove it."""
        with translated("abort", self.key), suppress(FileNotFoundError):
            if os.path.isdir(self.path):
                shutil.rmtree(self.path)
            else:
                os.unlink(self.path)

    def _ended(self) -> NotFoundError:
        return NotFoundError("the write ended in a crash and cannot be carried on", key=self.key)


def find_leftover(path: str, key: str) -> LocalLeftover | None:
    """Describe a leftover; None if it is gone.

    Args:
        path: The temporary file, or the upload's directory.
        key: Its place relative to the store's root.
    """
    with translated("list", key), suppress(FileNotFoundError):
        modified_s = os.stat(path, follow_symlinks=False).st_mtime
        return LocalLeftover(path, key, datetime.fromtimestamp(modified_s, tz=timezone.utc))
    return None
