"""Objects of a bucket in the JSON API: describe, store, compose, list, delete."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import Message
from email.parser import BytesParser
from typing import Any

from dcp_cloud.errors import NotFoundError, StoreError, TransientError
from dcp_cloud.stores.base import Buffers, ObjectMeta
from dcp_cloud.stores.gcs_checksum import check_crc32c, crc32c_from_text, crc32c_of, crc32c_text
from dcp_cloud.stores.gcs_client import GCSClient, Query, bucket_not_found, parse, target
from dcp_cloud.stores.gcs_errors import from_answer
from dcp_cloud.stores.server_side import Repeat

CONTENT_TYPE = "application/octet-stream"
# Source: https://docs.cloud.google.com/storage/docs/batch
_MAX_BATCH = 100
_FIELDS = "name,size,generation,updated,crc32c,metadata"


@dataclass(frozen=True, slots=True)
class GCSObjects:
    """The objects of a bucket. Resources are dictionaries as the JSON API has them.

    Args:
        client: The bucket's client.
    """

    client: GCSClient

    def describe(self, key: str) -> Any:  # noqa: ANN401 - JSON
        """Give an object's resource.

        Args:
            key: Key of the object.

        Returns:
            Its name, size, generation, checksum, time and custom metadata.

        Raises:
            NotFoundError: There is none.
        """
        try:
            return self.client.json(
                "GET",
                self.client.object_path(key),
                query=[("fields", _FIELDS)],
                action=f"head on {self.client.uri}",
                key=key,
            )
        except NotFoundError as error:
            raise self.client.explain_not_found(error) from error

    def insert(self, key: str, data: Buffers, query: Query = (), *, replay: bool = True) -> Any:  # noqa: ANN401 - JSON
        """Store an object in one request, its checksum verified by the server and against its answer.

        Args:
            key: Key of the object.
            data: Its bytes.
            query: Preconditions.
            replay: Whether the request may be sent again over another connection without being asked.

        Returns:
            The object's resource.
        """
        crc = crc32c_of(data)
        resource = json.dumps({"name": key, "crc32c": crc32c_text(crc), **self._properties()})
        boundary = uuid.uuid4().hex
        head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{resource}\r\n"
            f"--{boundary}\r\nContent-Type: {CONTENT_TYPE}\r\n\r\n"
        )
        tail = f"\r\n--{boundary}--\r\n"
        try:
            with self.client.send(
                "POST",
                f"/upload{self.client.objects_path}",
                query=[("uploadType", "multipart"), ("fields", _FIELDS), *query, *self._key, *self.client.billing],
                headers=[("Content-Type", f"multipart/related; boundary={boundary}")],
                body=[memoryview(head.encode()), *data, memoryview(tail.encode())],
                action=f"upload to {self.client.uri}",
                key=key,
                replay=replay,
            ) as response:
                found = parse(json.loads, response.read(), key=key)
        except NotFoundError as error:
            raise bucket_not_found(error) from error
        check_crc32c(crc32c_from_text(found.get("crc32c")), crc, key=key, what="the object")
        return found

    def compose(self, key: str, sources: Sequence[tuple[str, str]], *, metadata: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
        """Make an object of others, laid end to end.

        Args:
            key: Key of the new object.
            sources: Name and generation of each, at most 32; another generation is refused.
            metadata: Custom metadata of the new object besides the configured one.

        Returns:
            The new object's resource.
        """
        properties = self._properties()
        properties["metadata"] = properties.get("metadata", {}) | metadata
        return self.client.json(
            "POST",
            f"{self.client.object_path(key)}/compose",
            query=[("fields", _FIELDS), *self._key],
            document={
                "sourceObjects": [
                    {
                        "name": name,
                        "generation": generation,
                        "objectPreconditions": {"ifGenerationMatch": generation},
                    }
                    for name, generation in sources
                ],
                "destination": properties,
            },
            action=f"compose on {self.client.uri}",
            key=key,
        )

    def rewrite(self, source: GCSClient, name: str, generation: str, key: str, repeat: Repeat) -> None:
        """Let the service copy an object, call by call if it is long.

        Args:
            source: Client of the bucket that the object is in.
            name: Name of the object.
            generation: The version of it to copy; another one is refused.
            key: Key of the copy, in this bucket.
            repeat: Runs each call.
        """
        config = self.client.config
        target = self.client.object_path(key).removeprefix("/storage/v1")
        kms_key = [("destinationKmsKeyName", config.kms_key_name)] if config.kms_key_name else []

        def call(token: Query) -> Any:  # noqa: ANN401 - JSON
            return self.client.json(
                "POST",
                f"{source.object_path(name)}/rewriteTo{target}",
                query=[("ifSourceGenerationMatch", generation), ("fields", "done,rewriteToken"), *kms_key, *token],
                # An empty document takes the source's properties over.
                document=self._properties() if config.storage_class or config.metadata else {},
                action=f"rewrite to {self.client.uri}",
                key=name,
            )

        answer = repeat(lambda: call([]))
        while not answer.get("done", True):
            token = [("rewriteToken", answer["rewriteToken"])]
            answer = repeat(lambda token=token: call(token))  # type: ignore[misc]  # binds the loop's value

    def list(self, start: str) -> Iterator[Any]:
        """List the resources of all objects whose names start with a text."""
        for page in self._pages(start, [("fields", f"items({_FIELDS}),nextPageToken")]):
            yield from page.get("items", ())

    def list_prefixes(self, start: str) -> Iterator[str]:
        """List the beginnings, up to the next slash, of all names that start with a text."""
        for page in self._pages(start, [("delimiter", "/"), ("fields", "prefixes,nextPageToken")]):
            yield from page.get("prefixes", ())

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones count as deleted.

        Raises:
            StoreError: At least one could not be deleted. The others were tried.
        """
        failure: StoreError | None = None
        for start in range(0, len(keys), _MAX_BATCH):
            batch = keys[start : start + _MAX_BATCH]
            try:
                if len(batch) == 1:
                    self.delete_one(batch[0])
                else:
                    self._delete_batch(batch)
            except StoreError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def delete_one(self, key: str, condition: Query = ()) -> None:
        """Delete an object; a missing one counts as deleted.

        Args:
            key: Key of the object.
            condition: Precondition parameters.
        """
        try:
            self.client.json(
                "DELETE",
                self.client.object_path(key),
                query=condition,
                action=f"delete on {self.client.uri}",
                key=key,
            )
        except NotFoundError as error:
            self._ignore_missing_object(error)

    def _delete_batch(self, keys: Sequence[str]) -> None:
        """Delete up to a hundred objects in one request: calls in, answers out, both as MIME parts."""
        boundary = uuid.uuid4().hex
        paths = [target(self.client.object_path(key), self.client.billing) for key in keys]
        calls = "".join(
            f"--{boundary}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n"
            f"Content-ID: <call+{number}>\r\n\r\nDELETE {path} HTTP/1.1\r\n\r\n\r\n"
            for number, path in enumerate(paths)
        )
        with self.client.send(
            "POST",
            "/batch/storage/v1",
            headers=[("Content-Type", f"multipart/mixed; boundary={boundary}")],
            body=[memoryview(f"{calls}--{boundary}--\r\n".encode())],
            action=f"delete on {self.client.uri}",
            key=keys[0],
        ) as response:
            kind, content = response.headers.get("Content-Type", ""), response.read()
        failures = [
            from_answer(status, headers, body, action=f"delete on {self.client.uri}", key=keys[number])
            for number, status, headers, body in _read_batch(kind, content, keys)
            if status >= 300
        ]
        missing = [error for error in failures if isinstance(error, NotFoundError)]
        for error in failures:
            if error not in missing:
                raise error
        if missing:
            self._ignore_missing_object(missing[0])

    def _ignore_missing_object(self, error: NotFoundError) -> None:
        explained = self.client.explain_not_found(error)
        if explained is not error:
            raise explained from error

    @property
    def _key(self) -> Query:
        name = self.client.config.kms_key_name
        return [("kmsKeyName", name)] if name else []

    def _properties(self) -> dict[str, Any]:
        config = self.client.config
        found: dict[str, Any] = {"contentType": CONTENT_TYPE}
        if config.storage_class:
            found["storageClass"] = config.storage_class
        if config.metadata:
            found["metadata"] = dict(config.metadata)
        return found

    def _pages(self, start: str, query: Query) -> Iterator[Any]:
        token: Query = []
        while True:
            try:
                page = self.client.json(
                    "GET",
                    self.client.objects_path,
                    query=[("prefix", start), ("maxResults", "1000"), *query, *token],
                    action=f"list on {self.client.uri}",
                    key=start or None,
                )
            except NotFoundError as error:
                raise bucket_not_found(error) from error
            yield page
            if not page.get("nextPageToken"):
                return
            token = [("pageToken", page["nextPageToken"])]


def meta_of(resource: Any) -> ObjectMeta:  # noqa: ANN401 - JSON
    """Read an object's description from its resource.

    Raises:
        TransientError: It is none: the answer was changed on its way, or something else answered.
    """
    try:
        updated = resource.get("updated")
        return ObjectMeta(
            key=resource["name"],
            size_bytes=int(resource.get("size", 0)),
            etag=str(resource["generation"]),
            modified_at=read_time(updated) if updated else None,
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise TransientError("the answer describes no object", cause=error) from error


def read_time(text: str) -> datetime:
    """Read a time like ``2026-01-31T12:00:00.12Z``, with any number of digits behind the point."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    microsecond = int(fraction[:6].ljust(6, "0")) if fraction else 0
    return datetime.fromisoformat(whole).replace(microsecond=microsecond, tzinfo=timezone.utc)


def _read_batch(kind: str, content: bytes, keys: Sequence[str]) -> list[tuple[int, int, Message, bytes]]:
    """Take the answer to a batch apart: for each call its number, status, header and body."""
    message = BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + content)
    answers = []
    for part in message.walk():
        if part.get_content_type() != "application/http":
            continue
        inner = part.get_payload(decode=True)
        status_line, _, rest = bytes(inner).lstrip().partition(b"\n")
        answer = BytesParser().parsebytes(rest)
        number = part.get("Content-ID", "").rstrip(">").rpartition("+")[2]
        words = status_line.split()
        if number.isdecimal() and len(words) > 1 and words[1].isdigit():
            answers.append((int(number), int(words[1]), answer, str(answer.get_payload()).encode()))
    if {answer[0] for answer in answers} != set(range(len(keys))):
        raise TransientError("the answer to a batch of deletes is incomplete", key=keys[0])
    return answers
