"""The writer and reader once more for each provider, with its settings typed and other providers' URIs refused."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.checkpoint.writer import CloudStorageWriter


class S3StorageWriter(CloudStorageWriter):
    """:class:`CloudStorageWriter` for ``s3://`` only; ``config`` is an :class:`~dcp_cloud.S3Config`."""

    _schemes: ClassVar[Collection[str] | None] = ("s3",)


class S3StorageReader(CloudStorageReader):
    """:class:`CloudStorageReader` for ``s3://`` only; ``config`` is an :class:`~dcp_cloud.S3Config`."""

    _schemes: ClassVar[Collection[str] | None] = ("s3",)


class GCSStorageWriter(CloudStorageWriter):
    """:class:`CloudStorageWriter` for ``gs://`` only; ``config`` is a :class:`~dcp_cloud.GCSConfig`."""

    _schemes: ClassVar[Collection[str] | None] = ("gs",)


class GCSStorageReader(CloudStorageReader):
    """:class:`CloudStorageReader` for ``gs://`` only; ``config`` is a :class:`~dcp_cloud.GCSConfig`."""

    _schemes: ClassVar[Collection[str] | None] = ("gs",)


class AzureStorageWriter(CloudStorageWriter):
    """:class:`CloudStorageWriter` for ``az://`` only; ``config`` is an :class:`~dcp_cloud.AzureConfig`."""

    _schemes: ClassVar[Collection[str] | None] = ("az",)


class AzureStorageReader(CloudStorageReader):
    """:class:`CloudStorageReader` for ``az://`` only; ``config`` is an :class:`~dcp_cloud.AzureConfig`."""

    _schemes: ClassVar[Collection[str] | None] = ("az",)
