"""Looking at objects past the store under test: with the provider's own SDK, or with the system's file calls.

What a store writes wrongly and reads back just as wrongly is seen only from outside.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

from dcp_cloud.stores import memory


class Oracle(Protocol):
    """Objects below the store's root, by relative key."""

    def seed(self, key: str, data: bytes) -> None:
        """Store an object."""

    def read(self, key: str) -> bytes | None:
        """Read a whole object; None if there is none."""

    def keys(self) -> set[str]:
        """All keys."""


class MemoryOracle:
    """The dictionary itself."""

    def __init__(self, name: str) -> None:
        self._name = name

    def seed(self, key: str, data: bytes) -> None:
        self._objects[key] = memory._Object(
            data, memory.ObjectMeta(key=key, size_bytes=len(data), etag=os.urandom(8).hex())
        )

    def read(self, key: str) -> bytes | None:
        found = self._objects.get(key)
        return None if found is None else found.data

    def keys(self) -> set[str]:
        return set(self._objects)

    @property
    def _objects(self) -> dict[str, memory._Object]:
        return memory._BUCKETS.setdefault(self._name, memory._Bucket()).objects


class FileOracle:
    """Plain files."""

    def __init__(self, root: str) -> None:
        self._root = root

    def seed(self, key: str, data: bytes) -> None:
        path = os.path.join(self._root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def read(self, key: str) -> bytes | None:
        try:
            with open(os.path.join(self._root, key), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def keys(self) -> set[str]:
        return {
            os.path.relpath(os.path.join(directory, name), self._root)
            for directory, _, names in os.walk(self._root)
            for name in names
        }


class S3Oracle:
    """boto3's own calls and transport."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._start = client, bucket, f"{prefix}/" if prefix else ""

    def seed(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._start + key, Body=data)

    def read(self, key: str) -> bytes | None:
        try:
            with self._client.get_object(Bucket=self._bucket, Key=self._start + key)["Body"] as body:
                return bytes(body.read())
        except self._client.exceptions.NoSuchKey:
            return None

    def keys(self) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._start)
        return {item["Key"].removeprefix(self._start) for page in pages for item in page.get("Contents", ())}


class AzureOracle:
    """azure-storage-blob's own calls and transport."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._container = client.get_container_client(bucket)
        self._start = f"{prefix}/" if prefix else ""

    def seed(self, key: str, data: bytes) -> None:
        self._container.upload_blob(self._start + key, data, overwrite=True)

    def read(self, key: str) -> bytes | None:
        blob = self._container.get_blob_client(self._start + key)
        return bytes(blob.download_blob().readall()) if blob.exists() else None

    def keys(self) -> set[str]:
        names = self._container.list_blob_names(name_starts_with=self._start or None)
        return {name.removeprefix(self._start) for name in names}


class GCSOracle:
    """google-cloud-storage's own calls and transport."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._bucket, self._start = client.bucket(bucket), f"{prefix}/" if prefix else ""

    def seed(self, key: str, data: bytes) -> None:
        self._bucket.blob(self._start + key).upload_from_string(data, content_type="application/octet-stream")

    def read(self, key: str) -> bytes | None:
        blob = self._bucket.get_blob(self._start + key)
        return None if blob is None else bytes(blob.download_as_bytes())

    def keys(self) -> set[str]:
        blobs = self._bucket.client.list_blobs(self._bucket, prefix=self._start)
        return {blob.name.removeprefix(self._start) for blob in blobs}


def server_oracle(scheme: str, client: Any, bucket: str, prefix: str) -> Oracle:
    """Make the oracle for a server by the scheme of its protocol."""
    return {"s3": S3Oracle, "gs": GCSOracle, "az": AzureOracle}[scheme](client, bucket, prefix)
