"""Uploads in parts as objects of their own: pieces are stored, composed to one object, and deleted.

::

    .dcp-cloud-uploads/<key>/<upload id>/started      written first: the upload is open while it is there
    .dcp-cloud-uploads/<key>/<upload id>/00000 …      the pieces
    .dcp-cloud-uploads/<key>/<upload id>/c1-00000 …   32 pieces composed, then 32 of these, and so on

They stand apart from the data, so no listing of data meets them, and one lifecycle rule on their prefix removes what
a crash left. A piece that arrives after its upload has ended finds the marker gone and removes itself; one that
arrives before is found by whoever ends the upload, since listings are strongly consistent. Pieces whose sender was
killed in between have no marker; they are listed as an upload too, so that it can be aborted.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dcp_cloud.crc32 import combine_crc32c
from dcp_cloud.errors import BucketNotFoundError, InvalidRequestError, NotFoundError, TransientError
from dcp_cloud.stores.base import Buffers, ObjectMeta, Part
from dcp_cloud.stores.gcs_checksum import check_crc32c, crc32c_from_text
from dcp_cloud.stores.gcs_objects import GCSObjects, meta_of
from dcp_cloud.stores.keys import below, check_indices, total_bytes

PIECES = ".dcp-cloud-uploads/"
"""What the names of all pieces start with. Such objects are never data."""

# Source: https://docs.cloud.google.com/storage/docs/composite-objects
_MAX_SOURCES = 32
_MARKER = "started"
# What is named otherwise is none of ours.
_NAME = re.compile(rf"{_MARKER}|\d{{5}}|c\d+-\d{{5}}")
_ID = re.compile(r"[0-9a-f]{32}")
# Custom metadata of the finished object, by which a repeated completion knows its own work.
_UPLOAD_ID = "dcp-cloud-upload"


@dataclass(frozen=True, slots=True)
class ComposeUpload:
    """An unfinished upload.

    Args:
        objects: The bucket's objects.
        key: Key of the object to be.
        upload_id: Its name among the uploads of this key.
        started_at: When it was begun.
    """

    objects: GCSObjects
    key: str
    upload_id: str
    started_at: datetime | None = None

    @classmethod
    def begin(cls, objects: GCSObjects, key: str) -> ComposeUpload:
        """Begin an upload.

        Args:
            objects: The bucket's objects.
            key: Key of the object to be.
        """
        upload = cls(objects, key, uuid.uuid4().hex)
        marker = meta_of(objects.insert(upload._name(_MARKER), []))
        return cls(objects, key, upload.upload_id, marker.modified_at)

    @classmethod
    def find(cls, objects: GCSObjects, prefix: str) -> Iterator[ComposeUpload]:
        """List unfinished uploads, and what is left of ended ones; such a rest is as old as its newest piece.

        Args:
            objects: The bucket's objects.
            prefix: Prefix of whole segments.
        """
        begun: dict[tuple[str, str], datetime | None] = {}
        orphans: dict[tuple[str, str], datetime | None] = {}
        for resource in objects.list(PIECES + below(prefix)):
            path, _, name = resource["name"].removeprefix(PIECES).rpartition("/")
            key, _, upload_id = path.rpartition("/")
            if not (key.startswith(below(prefix)) and key and _NAME.fullmatch(name) and _ID.fullmatch(upload_id)):
                continue  # also those to the key that the prefix itself is: they are not below it
            written = meta_of(resource).modified_at
            if name == _MARKER:
                begun[key, upload_id] = written
            else:
                orphans[key, upload_id] = _later(orphans.get((key, upload_id)), written)
        # Pieces without a marker: somebody died while ending the upload, or while sending to one that had ended.
        for (key, upload_id), started_at in (orphans | begun).items():
            yield cls(objects, key, upload_id, started_at)

    def put_part(self, index: int, data: Buffers, *, crc32: int | None = None) -> Part:
        """Store one part."""
        name = self._name(f"{index:05d}")
        piece = self.objects.insert(name, data)
        try:
            self.objects.describe(self._name(_MARKER))
        except BucketNotFoundError:
            raise
        except NotFoundError as error:
            self.objects.delete([name])
            raise self._gone() from error
        token = f"{piece['generation']} {piece['crc32c']}"
        return Part(index=index, token=token, size_bytes=total_bytes(data), crc32=crc32)

    def complete(self, parts: Sequence[Part]) -> ObjectMeta:
        """Make the object visible."""
        check_indices(parts, key=self.key)
        stored = {resource["name"]: resource for resource in self.objects.list(self._name(""))}
        if self._name(_MARKER) not in stored:
            raise self._gone()
        complete = all(self._is_stored(part, stored) for part in parts)
        # Unless an earlier try got as far as removing the pieces, a receipt is wrong.
        made = self._compose(parts) if complete else self._find_own_work()
        # The marker goes when the pieces have gone: until then a completion that is repeated can go on from here.
        self._remove_pieces()
        self.objects.delete([self._name(_MARKER)])
        self._remove_pieces()  # those that were sent once more meanwhile, for nothing
        return meta_of(made)

    def abort(self) -> None:
        """Drop the upload and its parts."""
        self.objects.delete([self._name(_MARKER)])
        self._remove_pieces()

    def _name(self, name: str) -> str:
        return f"{PIECES}{self.key}/{self.upload_id}/{name}"

    def _gone(self) -> NotFoundError:
        return NotFoundError("the upload was completed or aborted", key=self.key)

    def _is_stored(self, part: Part, stored: dict[str, Any]) -> bool:
        piece = stored.get(self._name(f"{part.index:05d}"))
        return piece is not None and f"{piece['generation']} {piece['crc32c']}" == part.token

    def _compose(self, parts: Sequence[Part]) -> Any:  # noqa: ANN401 - JSON
        sources = [(self._name(f"{part.index:05d}"), part.token.partition(" ")[0]) for part in parts]
        level = 0
        while len(sources) > _MAX_SOURCES:
            level += 1
            sources = [
                self._compose_group(level, start // _MAX_SOURCES, sources[start : start + _MAX_SOURCES])
                for start in range(0, len(sources), _MAX_SOURCES)
            ]
        made = self.objects.compose(self.key, sources, metadata={_UPLOAD_ID: self.upload_id})
        size_bytes = crc = 0
        for part in parts:
            part_crc = crc32c_from_text(part.token.partition(" ")[2]) or 0
            crc, size_bytes = combine_crc32c(crc, part_crc, part.size_bytes), size_bytes + part.size_bytes
        check_crc32c(crc32c_from_text(made.get("crc32c")), crc, key=self.key, what="the object")
        if int(made.get("size", 0)) != size_bytes:
            raise TransientError(f"the object has {made.get('size')} bytes instead of {size_bytes}", key=self.key)
        return made

    def _compose_group(self, level: int, number: int, sources: Sequence[tuple[str, str]]) -> tuple[str, str]:
        name = self._name(f"c{level}-{number:05d}")
        return name, str(self.objects.compose(name, sources, metadata={})["generation"])

    def _find_own_work(self) -> Any:  # noqa: ANN401 - JSON
        try:
            made = self.objects.describe(self.key)
        except BucketNotFoundError:
            raise
        except NotFoundError:
            made = {}
        if made.get("metadata", {}).get(_UPLOAD_ID) != self.upload_id:
            raise InvalidRequestError("a part is missing or is not the one that was stored", key=self.key)
        return made

    def _remove_pieces(self) -> None:
        names = [resource["name"] for resource in self.objects.list(self._name(""))]
        self.objects.delete([name for name in names if name != self._name(_MARKER)])


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other
