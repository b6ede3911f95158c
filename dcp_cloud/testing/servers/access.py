"""How to reach an object server: its address and credentials, one record per provider's protocol.

Each record knows the environment variables that the provider's own SDK reads, so that a store needs no test-only
door, and offers the raw SDK client, so that a test can look at objects past the store that it tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and key are published in its manual and the same everywhere: they protect nothing."""

MISLEADING_VARIABLES = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
"""Variables of the user's that would turn an SDK away from a server whose ``environment`` is set."""


class Access(Protocol):
    """What every protocol offers."""

    @property
    def scheme(self) -> str:
        """URI scheme of the store that speaks this protocol."""
        ...

    @property
    def endpoint_url(self) -> str:
        """Base URL of the server."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """Environment variables from which the provider's SDK learns credentials and, where it can, the address."""
        ...

    @property
    def options(self) -> Mapping[str, str]:
        """URI options that a store needs besides the environment."""
        ...

    def client(self) -> Any:  # noqa: ANN401 - the SDKs are optional, so their types cannot stand here
        """Make a client of the official SDK that speaks to this server."""
        ...

    def create_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Create a bucket (Azure: a container) with the SDK's client."""
        ...

    def delete_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Delete a bucket with all that is in it with the SDK's client."""
        ...


def format_uri(access: Access, bucket: str, prefix: str = "", **options: str) -> str:
    """Write the URI of a place on a server.

    Args:
        access: The server.
        bucket: Bucket or container.
        prefix: Key prefix.
        **options: Further options of the URI.

    Returns:
        ``scheme://bucket/prefix?option=value``.
    """
    query = "&".join(f"{key}={quote(value, safe=':/@,')}" for key, value in {**access.options, **options}.items())
    place = f"{access.scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    return f"{place}?{query}" if query else place


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """A server that speaks the S3 protocol.

    Args:
        endpoint_url: Base URL.
        access_key: Access key id.
        secret_key: Secret key.
        region: Region to sign for.
        ca_bundle: PEM file of the authority that signed the server's certificate, if it is none of the system's.
        compatibility: The store's setting of that name, if the server needs it.
    """

    endpoint_url: str
    access_key: str = "testing"
    secret_key: str = "testing123"
    region: str = "us-east-1"
    ca_bundle: str | None = None
    compatibility: str | None = None

    @property
    def scheme(self) -> str:
        """URI scheme of the store that speaks this protocol."""
        return "s3"

    @property
    def environment(self) -> Mapping[str, str]:
        """What botocore's chain reads."""
        variables = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }
        return variables | ({"AWS_CA_BUNDLE": self.ca_bundle} if self.ca_bundle else {})

    @property
    def options(self) -> Mapping[str, str]:
        """The address: two S3 servers can be used side by side with one environment. And what the server needs."""
        needed = {"compatibility": self.compatibility} if self.compatibility else {}
        return {"endpoint_url": self.endpoint_url, **needed}

    def client(self) -> Any:  # noqa: ANN401
        """Make a boto3 client."""
        import boto3  # noqa: PLC0415 - optional
        from botocore.config import Config  # noqa: PLC0415 - optional

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            verify=self.ca_bundle,
            # S3-compatible servers refuse the trailing checksums that boto3 sends over TLS by default.
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def create_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Create a bucket."""
        client.create_bucket(Bucket=name)

    def delete_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Delete a bucket with its unfinished uploads and objects."""
        for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", []):
            client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
            if keys := [{"Key": item["Key"]} for item in page.get("Contents", [])]:
                client.delete_objects(Bucket=name, Delete={"Objects": keys, "Quiet": True})
        client.delete_bucket(Bucket=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GCSAccess:
    """A server that speaks Google Cloud Storage's JSON API, without authentication.

    Args:
        endpoint_url: Base URL.
    """

    endpoint_url: str

    @property
    def scheme(self) -> str:
        """URI scheme of the store that speaks this protocol."""
        return "gs"

    @property
    def environment(self) -> Mapping[str, str]:
        """What google-cloud-storage reads; with the host of an emulator it asks for no credentials."""
        return {"STORAGE_EMULATOR_HOST": self.endpoint_url, "GOOGLE_CLOUD_PROJECT": "testing"}

    @property
    def options(self) -> Mapping[str, str]:
        """How objects go up in parts: no emulator has the XML API's multipart uploads."""
        return {"upload_method": "compose"}

    def client(self) -> Any:  # noqa: ANN401
        """Make a google-cloud-storage client."""
        from google.auth.credentials import AnonymousCredentials  # noqa: PLC0415 - optional
        from google.cloud import storage  # noqa: PLC0415 - optional

        return storage.Client(
            project="testing",
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]  # the library is not typed
            client_options={"api_endpoint": self.endpoint_url},
        )

    def create_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Create a bucket."""
        client.create_bucket(name)

    def delete_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Delete a bucket with its objects, one by one: the emulator does not answer batches."""
        bucket = client.bucket(name)
        for blob in list(client.list_blobs(bucket)):
            blob.delete()
        bucket.delete()


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureAccess:
    """A server that speaks the protocol of Azure Blob Storage.

    Args:
        endpoint_url: Base URL with the account's name as its path.
        account: Account name.
        account_key: Account key.
    """

    endpoint_url: str
    account: str = AZURITE_ACCOUNT
    account_key: str = AZURITE_KEY

    @property
    def scheme(self) -> str:
        """URI scheme of the store that speaks this protocol."""
        return "az"

    @property
    def environment(self) -> Mapping[str, str]:
        """The connection string, as Azure's own tools read it."""
        return {"AZURE_STORAGE_CONNECTION_STRING": self.connection_string}

    @property
    def connection_string(self) -> str:
        """Account, key and address in one text."""
        return (
            f"DefaultEndpointsProtocol={self.endpoint_url.partition(':')[0]};AccountName={self.account};"
            f"AccountKey={self.account_key};BlobEndpoint={self.endpoint_url};"
        )

    @property
    def options(self) -> Mapping[str, str]:
        """None: the environment says all."""
        return {}

    def client(self) -> Any:  # noqa: ANN401
        """Make an azure-storage-blob client."""
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415 - optional

        return BlobServiceClient.from_connection_string(self.connection_string)

    def create_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Create a container."""
        client.create_container(name)

    def delete_bucket(self, client: Any, name: str) -> None:  # noqa: ANN401
        """Delete a container with its blobs."""
        client.delete_container(name)
