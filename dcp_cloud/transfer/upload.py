"""Uploading: objects are appended to from one thread, cut into equal parts, and sent by many.

::

    with Uploader(store, config) as uploader:
        upload = uploader.begin("key", expected_bytes=n)
        upload.append(span)          # waits when enough is under way; append_copy for short pieces
        upload.end()
        uploader.finish()            # all objects are stored, or the first error is raised

An object that fits into one part is one ``put``. A longer one is a multipart upload that becomes visible, whole, when
its last part is in. If anything fails, a Ctrl-C included, unfinished uploads are aborted and finished objects are
deleted: an uploader stores all of its objects or none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import TracebackType

from typing_extensions import Self

from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError, describe
from dcp_cloud.stores.base import MultipartUpload, ObjectStore, Part
from dcp_cloud.transfer.engine import Engine
from dcp_cloud.transfer.events import EventHook, Phase, Progressed, ignore_event
from dcp_cloud.transfer.ranges import upload_part_bytes
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingUpload
from dcp_cloud.transfer.span import Span, crc32_of

logger = logging.getLogger(__name__)

# Time for cleaning up after a failure; the failure itself must not wait long for a store that may be gone.
_CLEAN_UP_S = 15.0
# What is left of it when it is used up: one try of each request.
_LAST_TRY_S = 0.001
# So many copied bytes are one span: enough for a span to cost nothing beside them, and little to hold ahead.
_COPIED_BYTES = 1024 * 1024


class Uploader:
    """Sends the parts of any number of objects in parallel.

    Args:
        store: Where to; tries once, this class repeats.
        config: Part length, concurrency, memory, retries.
        hook: Told of requests and progress.
        phase: What the progress events say they belong to.
    """

    def __init__(
        self,
        store: ObjectStore,
        config: TransferConfig,
        *,
        hook: EventHook = ignore_event,
        phase: Phase = "save",
    ) -> None:
        self._config = config
        self._hook = hook
        self._phase: Phase = phase
        self._engine = Engine(
            store, config, name="dcp_cloud-upload", hook=hook, phase=phase, queue_limit=config.max_concurrency
        )
        self.budget = self._engine.budget
        self.pool = self._engine.pool
        self.store = self._engine.store
        self.hedger = self._engine.hedger
        self._uploads: list[ObjectUpload] = []

    def __enter__(self) -> Self:
        self._engine.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._engine.__exit__(kind, error, trace)
        except BaseException:  # an error that the pool still had to tell, or a Ctrl-C
            self._undo()
            raise
        if error is not None:
            self._undo()

    def begin(self, key: str, *, expected_bytes: int, replaces: bool = False) -> ObjectUpload:
        """Begin an object.

        Args:
            key: Its key.
            expected_bytes: Its length, or an upper bound; decides the length of its parts.
            replaces: Whether an object of this key may be there that has to outlive a failure. An object becomes
                visible whole or not at all, so it is then not deleted when something else fails.

        Returns:
            The object to append to.
        """
        if not self._uploads:
            self._engine.watch_stalls()
        part_bytes = upload_part_bytes(
            expected_bytes, part_size_bytes=self._config.part_size_bytes, limits=self.store.limits
        )
        upload = ObjectUpload(self, key, part_bytes, replaces=replaces)
        self._uploads.append(upload)
        return upload

    def finish(self) -> None:
        """Wait until every object is stored.

        Raises:
            BaseException: The first thing that went wrong.
        """
        self.pool.join()

    def sent(self, spans: Sequence[Span]) -> None:
        """Take note of stored bytes (called by uploads).

        Args:
            spans: What was stored.
        """
        for span in spans:
            span.forget()
            if span.room is not None and span.room.sent(span.nbytes):
                self.budget.release(span.room.nbytes)
            if span.on_sent is not None:
                span.on_sent(span.nbytes)
        self._hook(Progressed(phase=self._phase, size_bytes=sum(span.nbytes for span in spans)))

    def _undo(self) -> None:
        """Leave nothing behind; failures here are logged, since an error is already on its way."""
        deadline_s = time.monotonic() + _CLEAN_UP_S
        for upload in self._uploads:
            for step in (upload.abort, upload.delete):
                left_s = max(_LAST_TRY_S, deadline_s - time.monotonic())
                retry = replace(self._config.retry, total_timeout_s=min(left_s, self._config.retry.total_timeout_s))
                try:
                    step(Retrier(config=retry, hook=self._hook))
                except Exception as error:  # a store's own bug must not hide what went wrong before
                    logger.warning("could not clean up %s; 'dcp-cloud sweep' will: %s", upload.key, describe(error))


class ObjectUpload:
    """One object under way. ``append`` and ``end`` belong to one thread.

    Args:
        uploader: Sends the parts.
        key: Key of the object.
        part_bytes: Length of each part but the last.
        replaces: Whether what stood here before has to outlive a failure.
    """

    def __init__(self, uploader: Uploader, key: str, part_bytes: int, *, replaces: bool = False) -> None:
        self.key = key
        self.size_bytes = 0
        self._uploader = uploader
        self._part_bytes = part_bytes
        self._replaces = replaces
        self._open: list[Span] = []
        self._open_bytes = 0
        self._open_held_bytes = 0
        self._copied = bytearray()
        self._multipart: RetryingUpload | None = None
        self._lock = threading.Lock()
        self._sent: list[Part] = []
        self._begun_parts = 0
        self._ended = False
        self._stored = False

    @property
    def open_bytes(self) -> int:
        """Bytes of the budget in what was appended but is not under way yet: only the appending thread sends them."""
        return self._open_held_bytes

    def append(self, span: Span) -> None:
        """Add bytes at the end, waiting while enough is under way.

        Args:
            span: The bytes.

        Raises:
            BaseException: An earlier part failed.
        """
        # What the span holds is not under way either, and waiting for it would never end.
        self._flush(own_bytes=span.nbytes if span.on_sent is not None else 0)
        self.size_bytes += span.nbytes
        self._add(span)

    def append_copy(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Add short bytes at the end by copying them: thousands of them become one span.

        Args:
            pieces: The bytes; they may change afterwards.

        Raises:
            BaseException: An earlier part failed.
        """
        before = len(self._copied)
        for piece in pieces:
            self._copied += piece
        self.size_bytes += len(self._copied) - before
        if len(self._copied) >= _COPIED_BYTES:
            self._flush()

    def _flush(self, *, own_bytes: int = 0) -> None:
        if self._copied:
            copied, self._copied = self._copied, bytearray()
            self._uploader.budget.acquire(len(copied), own_bytes=self._open_held_bytes + own_bytes)
            self._add(Span.of(copied, on_sent=self._uploader.budget.release))

    def _add(self, span: Span) -> None:
        while span.nbytes:
            if self._open_bytes == self._part_bytes:
                self._send_open()
            room = self._part_bytes - self._open_bytes
            head, rest = (span, None) if span.nbytes <= room else span.split(room)
            self._open.append(head)
            self._open_bytes += head.nbytes
            if head.on_sent is not None:
                self._open_held_bytes += head.nbytes
            if rest is None:
                return
            span = rest

    def end(self) -> None:
        """Send the rest; the object becomes visible when all of it is in.

        Raises:
            BaseException: An earlier part failed.
        """
        self._flush()
        limits = self._uploader.store.limits
        if self._multipart is None and self._open_bytes <= limits.max_put_bytes:
            spans = self._take_open()
            self._uploader.pool.submit(lambda: self._put(spans))
            return
        self._send_open(is_last=True)

    def abort(self, retrier: Retrier) -> None:
        """Abort the upload if it was begun.

        Args:
            retrier: Repeats even though the transfer was cancelled.
        """
        if self._multipart is not None and not self._stored:
            replace(self._multipart, retrier=retrier).abort()

    def delete(self, retrier: Retrier) -> None:
        """Delete the object if anything of it was sent; whether the last request took effect may not be known.

        Args:
            retrier: As for ``abort``.
        """
        if self._begun_parts and not self._replaces:
            replace(self._uploader.store, retrier=retrier).delete([self.key])

    def _send_open(self, *, is_last: bool = False) -> None:
        limits = self._uploader.store.limits
        if self._begun_parts == limits.max_parts:
            raise ConfigError(
                f"the object would need more than {limits.max_parts} parts", key=self.key, hint="raise part_size"
            )
        if self._multipart is None:
            self._multipart = self._uploader.store.create_multipart(self.key)
        multipart, index, spans = self._multipart, self._begun_parts, self._take_open()
        with self._lock:
            self._begun_parts += 1
            self._ended = is_last
        self._uploader.pool.submit(lambda: self._put_part(multipart, index, spans))

    def _take_open(self) -> list[Span]:
        """Close the open part, when there is memory for the bytes that are to be made for it."""
        rooms = {span.room for span in self._open if span.room is not None and not span.room.is_granted}
        if rooms:
            self._uploader.budget.acquire(sum(room.nbytes for room in rooms), own_bytes=self._open_held_bytes)
        for room in rooms:
            room.is_granted = True
        spans, self._open, self._open_bytes, self._open_held_bytes = self._open, [], 0, 0
        return spans

    def _put(self, spans: Sequence[Span]) -> None:
        self._begun_parts = 1
        self._uploader.store.put(self.key, [span.view() for span in spans], crc32=crc32_of(spans))
        self._stored = True
        self._uploader.sent(spans)

    def _put_part(self, multipart: MultipartUpload, index: int, spans: Sequence[Span]) -> None:
        data, crc32 = [span.view() for span in spans], crc32_of(spans)
        nbytes = sum(view.nbytes for view in data)
        turns: list[int] = []

        def request(turn: int) -> Part:
            turns.append(turn)
            return multipart.put_part(index, data, crc32=crc32)

        part = self._uploader.hedger.run(request, nbytes, awaits_loser=True)
        if len(turns) > 1:
            # Either run may have been stored last, and a provider may give each a token of its own (S3 does when it
            # encrypts with KMS): completing with the other one would be refused.
            part = request(len(turns))
        data.clear()  # the bytes are about to be given back to the budget, and must not outlive that
        self._uploader.sent(spans)
        with self._lock:
            self._sent.append(part)
            is_complete = self._ended and len(self._sent) == self._begun_parts
        if is_complete:
            multipart.complete(sorted(self._sent, key=lambda sent: sent.index))
            self._stored = True
