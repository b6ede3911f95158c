"""What is wrong with a place, found out by doing there what saves, loads and sweeps do, on small objects of its own.

Every finding says what does not work and what mends it. The objects are called like data of a save that never
committed, in a directory of their own, so whatever an interrupted examination leaves is deleted by a sweep.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from statistics import median
from typing import Literal, TypeAlias

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.config import GIB, RetryConfig
from dcp_cloud.crc32 import crc32
from dcp_cloud.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    ConfigError,
    DcpCloudError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    StoreError,
    UnauthenticatedError,
)
from dcp_cloud.format.layout import data_key
from dcp_cloud.settings import gather_settings
from dcp_cloud.stores.base import IfAbsent, IfMatch, MultipartUpload, ObjectMeta, StoreLimits
from dcp_cloud.stores.region import Regions, teller_of
from dcp_cloud.stores.registry import provider_section, provider_settings
from dcp_cloud.tools.permissions import permission_for
from dcp_cloud.transfer.events import EventHook, ignore_event
from dcp_cloud.transfer.ranges import upload_part_bytes
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore

Status: TypeAlias = Literal["ok", "warning", "failed", "skipped"]
# What goes wrong for a moment should not be told as a lasting fault, and what lasts should be told soon.
_RETRY = RetryConfig(max_attempts=3, base_delay_s=0.1, max_delay_s=1.0, total_timeout_s=20.0)
_BYTES = b"dcp-cloud doctor"
_PROBES = 8
# Above this a request takes longer to begin than 16 MiB take at 90 MB/s, what a connection to a cloud brings.
_SLOW_S = 0.2
# AWS refuses requests whose clock is off by more than 15 minutes; tokens of the other clouds live for minutes too.
# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html (RequestTimeTooSkewed)
_SKEWED_S, _SKEW_TOLD_S = 600.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Args:
        check: What was tried.
        needed_for: What does not work without it: ``save``, ``load``, ``overwrite``, ``sweep`` …
        status: ``skipped`` if something before it made it pointless.
        detail: What was seen.
        fix: What to do about it; empty if there is nothing to do.
    """

    check: str
    needed_for: str
    status: Status
    detail: str
    fix: str = ""


def examine(
    location: Location, *, read_only: bool = False, hook: EventHook = ignore_event
) -> Generator[Finding, None, None]:
    """Try at a place all that checkpoints need.

    Args:
        location: The place.
        read_only: Write nothing; tells whether checkpoints can be listed and loaded.
        hook: Told of requests.

    Yields:
        A finding for each check, as it is made. Nothing is raised for what is wrong with the place. Closing the
        generator deletes what the examination has written.
    """
    return _Examination(location, hook).run(read_only=read_only)


class _Examination:
    """One examination under way."""

    def __init__(self, location: Location, hook: EventHook) -> None:
        self._location = location
        self._scheme = location.uri.scheme
        self._store = RetryingStore(location.store, Retrier(config=_RETRY, hook=hook))
        self._directory = f"doctor-{uuid.uuid4().hex[:12]}"
        # What is being tried at the moment: a check may need more than one permission, and one of them is refused.
        self._verb = ""

    def run(self, *, read_only: bool) -> Generator[Finding, None, None]:
        reached = self._reach()
        yield reached
        if reached.status == "failed":
            return
        yield from self._region()
        yield self._attempt("list", "ls, sweep", self._list)
        if not read_only:
            try:
                yield from self._write()
            finally:
                self._clean_up()
        yield from self._settings()

    def _reach(self) -> Finding:
        """Ask for an object that is not there: whoever may not even ask cannot do anything else."""
        check, needed = "reach the bucket", "everything"
        began_s = time.monotonic()
        try:
            self._store.head(self._key(9))
        except BucketNotFoundError as error:
            return self._failed(check, needed, error, fix="create it, or correct the URI")
        except NotFoundError:
            pass
        except (UnauthenticatedError, ConfigError) as error:
            return self._failed(check, needed, error)
        except PermissionDeniedError:
            pass  # it was reached, and the credentials are known; the checks that follow name what they may not do
        except StoreError as error:
            return self._failed(check, needed, error)
        return Finding(
            check=check,
            needed_for=needed,
            status="ok",
            detail=f"answered in {(time.monotonic() - began_s) * 1000:.0f} ms, the credentials are accepted",
        )

    def _region(self) -> Iterator[Finding]:
        """Compare the bucket's region with the one that requests are signed for, where that is a thing."""
        teller = teller_of(self._location.store)
        if teller is not None:
            ask = self._store.retrier.call
            found = self._attempt(
                "region", "speed", lambda: _compare(ask(teller.regions, verb="region", key=self._location.uri.root))
            )
            # It is no more than good to know: whoever may not ask can save and load all the same.
            yield found if found.status != "failed" else replace(found, status="skipped")
        elif self._scheme in ("gs", "az"):
            detail = "requests name none here; see that the bucket is where this machine is"
            yield Finding(check="region", needed_for="speed", status="skipped", detail=detail)

    def _write(self) -> Iterator[Finding]:
        meta: list[ObjectMeta] = []
        put = self._attempt("put", "save", lambda: self._put(meta))
        yield put
        if put.status == "ok":
            yield self._attempt("get", "load, inspect, verify", self._get)
            yield self._attempt("commit only where nothing is", "save with overwrite=False", self._create_only)
            yield self._attempt("commit only over what was seen", "save over another", lambda: self._replace(meta))
            yield self._attempt("clock", "signed requests", lambda: self._clock(meta[0]))
            yield self._attempt("latency", "speed", self._latency)
        else:
            yield from (
                Finding(check=check, needed_for="load", status="skipped", detail="needs an object that was put")
                for check in ("get", "conditions", "clock", "latency")
            )
        yield self._attempt("upload in parts", "save objects longer than a part", self._multipart)
        yield self._attempt("find unfinished uploads", "sweep", self._find_uploads)
        yield self._attempt("delete", "overwrite, rm, prune, clean up after a failed save", self._delete)

    def _settings(self) -> Iterator[Finding]:
        transfer, limits = self._location.transfer, self._store.limits
        part_bytes = transfer.part_size_bytes
        check, needed = "part length", "save"
        if part_bytes < limits.min_part_bytes:
            yield Finding(
                check=check,
                needed_for=needed,
                status="warning",
                detail=f"part_size is {part_bytes} bytes, shorter than the provider takes; longer parts are sent",
                fix=f"part_size={limits.min_part_bytes // 2**20}MiB or more",
            )
        else:
            yield Finding(check=check, needed_for=needed, status="ok", detail=_extent(part_bytes, limits))
        endpoint = self._endpoint()
        if endpoint.startswith("http://") and not endpoint.startswith(
            ("http://127.", "http://localhost", "http://[::1]")
        ):
            yield Finding(
                check="encryption on the way",
                needed_for="secrecy",
                status="warning",
                detail="the endpoint is plain http: whoever is on the way can read and change the bytes",
                fix="use an https endpoint",
            )

    def _endpoint(self) -> str:
        """Give the endpoint that somebody has set, wherever; nothing if it is the provider's own."""
        uri = self._location.uri
        kind = provider_settings(uri)
        if kind is None:
            return ""
        found = gather_settings(kind, uri.options, section=provider_section(uri))
        named = next((found[name].text for name in ("endpoint_url", "account_url") if name in found), "")
        return named or uri.endpoint or ""

    def _list(self) -> str:
        for _ in self._location.store.list(self._directory):
            pass
        return "listed"

    def _put(self, meta: list[ObjectMeta]) -> str:
        meta.append(self._store.put(self._key(0), [memoryview(_BYTES)], crc32=crc32(_BYTES)))
        return f"{len(_BYTES)} bytes stored"

    def _get(self) -> str:
        found = self._store.get(self._key(0), max_bytes=1024).data
        part = memoryview(bytearray(4))
        self._store.get_range(self._key(0), 2, [part])
        if found != _BYTES or bytes(part) != _BYTES[2:6]:
            raise StoreError("what was read is not what was stored", hint="something on the way changes bytes")
        return "read whole and in part"

    def _create_only(self) -> str:
        try:
            self._location.store.put(self._key(0), [memoryview(b"second")], condition=IfAbsent())
        except AlreadyExistsError:
            return "a second create-only write was refused"
        raise _ignores_conditions("If-None-Match")

    def _replace(self, meta: list[ObjectMeta]) -> str:
        self._verb = "get"
        first = self._store.head(self._key(0))
        self._verb = "commit"
        meta[0] = self._location.store.put(self._key(0), [memoryview(_BYTES + b"!")], condition=IfMatch(first.etag))
        try:
            self._location.store.put(self._key(0), [memoryview(b"third")], condition=IfMatch(first.etag))
        except PreconditionError:
            return "a write over a version that is gone was refused"
        raise _ignores_conditions("If-Match")

    def _multipart(self) -> str:
        part = memoryview(bytes(self._store.limits.min_part_bytes))
        upload = self._store.create_multipart(self._key(1))
        try:
            parts = [upload.put_part(0, [part], crc32=crc32(part)), upload.put_part(1, [memoryview(_BYTES)])]
            made = upload.complete(parts)
        except BaseException:
            _try_to_abort(upload)
            raise
        self._verb = "get"
        tail = memoryview(bytearray(len(_BYTES)))
        self._store.get_range(self._key(1), part.nbytes, [tail])
        if made.size_bytes != part.nbytes + len(_BYTES) or bytes(tail) != _BYTES:
            raise StoreError("what was read is not what was stored", hint="something on the way changes bytes")
        return f"two parts, {made.size_bytes} bytes"

    def _find_uploads(self) -> str:
        self._verb = "upload"
        upload = self._store.create_multipart(self._key(2))
        try:
            # Azure knows an upload when it has a block.
            upload.put_part(0, [memoryview(_BYTES)])
            self._verb = "find"
            found = [one.key for one in self._store.list_multiparts(self._directory)]
        except BaseException:  # whoever may not list uploads will not find this one again
            _try_to_abort(upload)
            raise
        self._verb = "abort"
        upload.abort()
        self._verb = "find"
        if self._key(2) not in found:
            return "the store lists none; let a lifecycle rule of the bucket drop them"
        left: list[MultipartUpload] = list(self._store.list_multiparts(self._directory))
        if left:
            raise StoreError("an aborted upload is still there", key=left[0].key, hint="let a lifecycle rule drop it")
        return "found and aborted"

    def _delete(self) -> str:
        self._store.delete([self._key(0), self._key(1)])
        self._verb = "list"
        left = [meta.key for meta in self._store.list(self._directory)]
        if left:
            raise StoreError(
                "deleted objects are still listed", key=left[0], hint="is the bucket under a retention rule?"
            )
        return "all objects of this examination deleted"

    def _clock(self, meta: ObjectMeta) -> Finding:
        check, needed = "clock", "signed requests"
        modified_at = meta.modified_at or self._store.head(self._key(0)).modified_at
        if modified_at is None:
            return Finding(check=check, needed_for=needed, status="skipped", detail="the store tells no times")
        off_s = abs((datetime.now(timezone.utc) - modified_at).total_seconds())
        if off_s <= _SKEW_TOLD_S:
            return Finding(
                check=check, needed_for=needed, status="ok", detail="agrees with the store's within a minute"
            )
        return Finding(
            check=check,
            needed_for=needed,
            status="failed" if off_s > _SKEWED_S else "warning",
            detail=f"{off_s:.0f} s away from the store's",
            fix="set this machine's clock (NTP): requests are refused when it is too far off",
        )

    def _latency(self) -> Finding:
        times_s = []
        for _ in range(_PROBES):
            began_s = time.monotonic()
            self._store.get(self._key(0), max_bytes=64)
            times_s.append(time.monotonic() - began_s)
        typical_s = median(times_s)
        detail = f"{typical_s * 1000:.0f} ms for a small object, {max(times_s) * 1000:.0f} at most"
        if typical_s <= _SLOW_S:
            return Finding(check="latency", needed_for="speed", status="ok", detail=detail)
        fix = "is the bucket in this machine's region? Longer parts (part_size=64MiB) wait less often"
        return Finding(check="latency", needed_for="speed", status="warning", detail=detail, fix=fix)

    def _attempt(self, check: str, needed_for: str, action: Callable[[], str | Finding]) -> Finding:
        self._verb = check.split(" ", maxsplit=1)[0]
        try:
            seen = action()
        except DcpCloudError as error:
            fix = permission_for(self._scheme, self._verb, error) or error.hint
            return self._failed(check, needed_for, error, fix=fix)
        if isinstance(seen, Finding):
            return seen
        return Finding(check=check, needed_for=needed_for, status="ok", detail=seen)

    def _failed(self, check: str, needed_for: str, error: DcpCloudError, *, fix: str | None = None) -> Finding:
        detail = f"{error.message}: {error.cause}" if error.cause else error.message
        return Finding(check=check, needed_for=needed_for, status="failed", detail=detail, fix=fix or error.hint or "")

    def _clean_up(self) -> None:
        """Take back what a failed check has left; the findings have told what cannot be deleted."""
        quick = replace(self._store, retrier=Retrier(config=replace(_RETRY, max_attempts=1)))
        try:
            quick.delete([self._key(number) for number in range(3)])
            for upload in quick.list_multiparts(self._directory):
                upload.abort()
        except DcpCloudError:
            return

    def _key(self, number: int) -> str:
        return f"{self._directory}/{data_key(0, number, '0' * 32)}"


def _compare(regions: Regions) -> Finding:
    check, needed = "region", "speed"
    if regions.bucket is None:
        return Finding(check=check, needed_for=needed, status="skipped", detail="the server names none")
    if regions.client in (None, regions.bucket):
        return Finding(check=check, needed_for=needed, status="ok", detail=f"the bucket is in {regions.bucket}")
    return Finding(
        check=check,
        needed_for=needed,
        status="warning",
        detail=f"the bucket is in {regions.bucket}, requests are signed for {regions.client} and sent on from there",
        fix=f"region={regions.bucket}, and machines in that region: bytes between regions cost money and time",
    )


def _try_to_abort(upload: MultipartUpload) -> None:
    """Abort an upload of which something else is to be told."""
    with suppress(DcpCloudError):
        upload.abort()


def _extent(part_bytes: int, limits: StoreLimits) -> str:
    longest = min(part_bytes * limits.max_parts, limits.max_object_bytes)
    grown = upload_part_bytes(limits.max_object_bytes, part_size_bytes=part_bytes, limits=limits)
    text = f"{part_bytes / 2**20:.0f} MiB: objects of up to {longest / GIB:,.0f} GiB"
    return text if grown == part_bytes else f"{text}; longer ones get longer parts, up to {grown / 2**20:,.0f} MiB"


def _ignores_conditions(header: str) -> StoreError:
    return StoreError(
        f"the server ignores {header}",
        cause="two jobs that save here at once could replace each other's checkpoint unseen",
        hint="let only one job save to a prefix, or update the server",
    )
