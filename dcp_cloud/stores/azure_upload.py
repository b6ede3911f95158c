"""Uploads in parts: staged blocks and one commit.

Azure keeps the uncommitted blocks of a blob in one heap, whoever sent them. So each block's id carries the upload's
own id: a commit names exactly the blocks of its upload, and two writers of one key never mix. The service throws the
other blocks of the key away at any commit; an upload that lost its blocks that way fails with ``NotFoundError``.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock

from dcp_cloud.errors import (
    AlreadyExistsError,
    BucketNotFoundError,
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
)
from dcp_cloud.stores.azure_checksums import checksum_headers
from dcp_cloud.stores.azure_client import AzureClient
from dcp_cloud.stores.azure_errors import error_code, translated
from dcp_cloud.stores.azure_transport import ship
from dcp_cloud.stores.base import Buffers, ObjectMeta, Part
from dcp_cloud.stores.keys import check_indices, total_bytes

# "dcp", seconds of begin, chance, index: 35 characters, of which Azure allows 64. All ids of a blob must have the same
# length. Source: https://learn.microsoft.com/rest/api/storageservices/put-block
_BLOCK_ID = re.compile(r"^(dcp[0-9a-f]{26})-(\d{5}|begin)$")


class _State(Enum):
    # The SDK writes a block under "Uncommitted" if its state has this value; its own BlockState.UNCOMMITTED has another
    # one, "Uncommitted", and is written under "Latest".
    UNCOMMITTED = "uncommitted"


@dataclass(frozen=True, slots=True)
class AzureUpload:
    """Blocks that are not committed yet.

    Args:
        client: The container's client.
        key: Key of the object to be.
        upload_id: What its block ids begin with.
    """

    client: AzureClient
    key: str
    upload_id: str

    @property
    def started_at(self) -> datetime:
        """When it was begun, by the clock of the machine that began it."""
        return datetime.fromtimestamp(int(self.upload_id[3:13], 16), timezone.utc)

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part. After the end of the upload it is stored too, and expires after a week."""
        block_id = self._block_id(index)
        self._stage(block_id, data)
        return Part(index=index, token=block_id, size_bytes=total_bytes(data), crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        check_indices(parts, key=self.key)
        if foreign := [part.index for part in parts if part.token != self._block_id(part.index)]:
            raise InvalidRequestError("a part belongs to another upload", key=self.key, cause=f"index {foreign[0]}")
        # Only uncommitted blocks: a second completion must not find the blocks of the first.
        state: Any = _State.UNCOMMITTED
        blocks = [BlobBlock(part.token, state=state) for part in parts]
        with self._translated("put_block_list"):
            try:
                answer = self._blob.commit_block_list(blocks, **ship(self.key, replay=False), **self.client.creating())
            except HttpResponseError as error:
                if error_code(error) == "InvalidBlockList" and self not in find_uploads(self.client, self.key):
                    raise NotFoundError(
                        "the upload was completed or aborted",
                        key=self.key,
                        hint="another write to the same key, or a week's time, ends an upload too",
                    ) from None
                raise
        return ObjectMeta(
            key=self.key,
            size_bytes=sum(part.size_bytes for part in parts),
            etag=answer["etag"].strip('"'),
            modified_at=answer.get("last_modified"),
        )

    def abort(self) -> None:
        """Drop the upload and its parts, if nobody else's work is at stake.

        Azure has no request for that. Where there is no object, an empty one is committed and deleted at once, which
        drops all uncommitted blocks of the key. Where there is an object, or blocks of another upload, nothing is
        touched, and the blocks expire a week after the last of them was sent.
        """
        if list(_uploads_of(self.client, self.key)) != [self]:
            return
        # Sent twice, a create-only write would find its own object.
        freight = ship(self.key, replay=False)
        try:
            with self._translated("put_block_list"):
                empty = self._blob.commit_block_list(
                    [], match_condition=MatchConditions.IfMissing, **freight, **self.client.writing()
                )
            with self._translated("delete_blob"):
                self._blob.delete_blob(etag=empty["etag"], match_condition=MatchConditions.IfNotModified, **freight)
        except BucketNotFoundError:
            raise
        except (AlreadyExistsError, PreconditionError, NotFoundError):
            return  # somebody else's object came in between, and ended the upload

    def begin(self) -> None:
        """Stage a mark that is never committed: from here on the upload can be found."""
        self._stage(f"{self.upload_id}-begin", [memoryview(b"-")])

    def _stage(self, block_id: str, data: Buffers) -> None:
        with self._translated("put_block"):
            self._blob.stage_block(
                block_id,
                b"",
                length=total_bytes(data),
                headers=checksum_headers(data, self.client.config.checksums),
                **ship(self.key, body=data),
                **self.client.writing(),
            )

    @property
    def _blob(self) -> Any:  # noqa: ANN401 - the keywords for the transport are in no signature
        return self.client.blob(self.key)

    def _block_id(self, index: int) -> str:
        return f"{self.upload_id}-{index:05d}"

    def _translated(self, operation: str) -> Any:  # noqa: ANN401 - a context manager
        return translated(f"{operation} on {self.client.uri.root}", key=self.key)


def new_upload_id() -> str:
    """Make what the block ids of an upload begin with."""
    return f"dcp{int(time.time()):010x}{uuid.uuid4().hex[:16]}"


def find_uploads(client: AzureClient, key: str) -> Iterator[AzureUpload]:
    """Find the uploads of this package that have uncommitted blocks.

    Args:
        client: The container's client.
        key: Key of the object to be.

    Yields:
        Each, once.
    """
    return (upload for upload in _uploads_of(client, key) if upload is not None)


def _uploads_of(client: AzureClient, key: str) -> Iterator[AzureUpload | None]:
    """Find all uploads to a key; None stands for those of other programs."""
    try:
        with translated(f"get_block_list on {client.uri.root}", key=key):
            blocks = client.blob(key).get_block_list("uncommitted", **ship(key))[1]
    except BucketNotFoundError:
        raise
    except NotFoundError:
        return
    found = (_BLOCK_ID.match(block.id) for block in blocks)
    for upload_id in dict.fromkeys(match[1] if match else None for match in found):
        yield AzureUpload(client, key, upload_id) if upload_id else None
