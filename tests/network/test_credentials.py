"""Credentials that run out in mid-transfer, at the endpoints that the SDKs really ask for new ones."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, errors, open_store
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.testing import FaultProxy, NetworkFault, ObjectServer
from tests.azure.stub import STORED, stub_server
from tests.gcs.stub import json_answer, running_stub
from tests.network.clouds import fault
from tests.network.conftest import Job, cause_of
from tests.network.identity import Identity, identity_service

_STATE = {"w": torch.arange(3_000_000.0)}
_THREE_LOOKS = """
import sys
from dcp_cloud import open_store
from dcp_cloud.stores.gcs_config import GCSConfig
store = open_store("gs://bucket", config=GCSConfig(endpoint_url=sys.argv[1]))
for _ in range(3):
    store.head("a")
store.close()
"""
# The AWS SDK fetches new credentials ten minutes before the old ones end, Google's four, Azure's five.
_NEARLY_OVER = (200.0, 3600.0)


@pytest.fixture
def moto_place(servers: Callable[[str], ObjectServer]) -> Iterator[tuple[FaultProxy, str]]:
    """A proxy before moto, and the URI of a checkpoint through it; no credentials."""
    server, bucket = servers("moto"), f"test-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    with FaultProxy(server.endpoint_url) as proxy:
        yield proxy, proxy.in_front_of(server).uri(bucket, "run", part_size="5MiB", region="us-east-1")
    server.delete_bucket(bucket)


def _of_a_pod(identity: Identity, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An IAM role for a service account: the pod's token is exchanged at STS."""
    (directory / "pod-token").write_text("of-the-pod")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/saver")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(directory / "pod-token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", identity.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def _of_a_container(identity: Identity, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ECS and EKS pod identities: an address in the environment."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{identity.url}/ecs")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-container")


def _save_and_load(uri: str) -> None:
    writer, reader, loaded = CloudStorageWriter(uri), CloudStorageReader(uri), {"w": torch.zeros(3_000_000)}
    try:
        dcp.save(_STATE, storage_writer=writer)
        dcp.load(loaded, storage_reader=reader)
    finally:
        writer.close()
        reader.close()
    assert torch.equal(loaded["w"], _STATE["w"])


@pytest.mark.parametrize("source", [_of_a_pod, _of_a_container])
def test_aws_credentials_are_renewed_in_mid_save(
    moto_place: tuple[FaultProxy, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[..., None]
) -> None:
    """A server that refuses the first credentials after a few requests never sees them again by then."""
    proxy, uri = moto_place
    with identity_service(lifetimes_s=_NEARLY_OVER) as identity:
        source(identity, tmp_path, monkeypatch)
        old = {"x-amz-security-token": "token-1"}
        proxy.set_faults(NetworkFault("status", header=old, nth=2, times=None, status=400, code="ExpiredToken"))
        _save_and_load(uri)
    assert identity.issued >= 2
    assert proxy.strikes == ()


@pytest.mark.parametrize(
    ("settings", "source", "expected", "says"),
    [
        ({"refuse_from": 2}, _of_a_pod, errors.UnauthenticatedError, "InvalidIdentityToken"),
        ({"refuse_from": 1, "refusal": "AccessDenied"}, _of_a_pod, errors.PermissionDeniedError, "AccessDenied"),
        ({"refuse_from": 1}, _of_a_container, errors.UnauthenticatedError, "credentials"),
        ({"lifetimes_s": (200.0, -60.0)}, _of_a_pod, errors.UnauthenticatedError, "clock"),
    ],
)
def test_aws_credentials_that_cannot_be_renewed(
    moto_place: tuple[FaultProxy, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    source: Callable[..., None],
    expected: type[Exception],
    says: str,
) -> None:
    """The save ends at once, with what the service said and what to do, and leaves nothing."""
    proxy, uri = moto_place
    with identity_service(**{"lifetimes_s": _NEARLY_OVER, **settings}) as identity:
        source(identity, tmp_path, monkeypatch)
        with pytest.raises(CheckpointException) as caught:
            _save_and_load(uri)
    error = cause_of(caught.value)
    assert type(error) is expected, error
    assert says in str(error)
    assert "secret-" not in str(error)
    assert "of-the-" not in str(error)
    assert not [exchange for exchange in proxy.exchanges if "/.metadata" in exchange.path and exchange.method == "PUT"]


def _on_a_machine(identity: Identity, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service account of the machine: its metadata server."""
    monkeypatch.delenv("NO_GCE_CHECK")
    monkeypatch.setenv("GCE_METADATA_HOST", identity.url.removeprefix("http://"))
    monkeypatch.setenv("GCE_METADATA_IP", identity.url.removeprefix("http://"))


def _federated(identity: Identity, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workload identity federation: another platform's token, itself fetched from an address, is exchanged."""
    (directory / "platform-token").write_text("of-the-platform")
    path = directory / "federation.json"
    path.write_text(
        json.dumps(
            {
                "type": "external_account",
                "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "token_url": f"{identity.url}/v1/token",
                "credential_source": {"file": str(directory / "platform-token")},
            }
        )
    )
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))


@pytest.mark.parametrize("source", [_on_a_machine, _federated])
def test_google_tokens_are_renewed_when_they_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Callable[..., None]
) -> None:
    """A token that is nearly over is replaced before the next request, by the service that gave the first."""
    resource = {"name": "a", "size": "4", "generation": "1"}
    with identity_service(lifetimes_s=_NEARLY_OVER) as identity, running_stub() as stub:
        source(identity, tmp_path, monkeypatch)
        stub.answer = lambda _request: json_answer(resource)
        # The library reads where the metadata server is when it is imported, so it has to be imported now.
        subprocess.run([sys.executable, "-W", "error", "-c", _THREE_LOOKS, stub.url], check=True, timeout=60)
    used = [request.headers["authorization"] for request in stub.requests]
    assert used[-1] == "Bearer token-2"
    assert len(set(used)) == 2 or source is _on_a_machine  # which asks twice before the first request
    assert identity.issued == 2


def test_a_managed_identity_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's App Service and Functions: the token comes from an address in the environment."""
    with identity_service(lifetimes_s=_NEARLY_OVER) as identity, stub_server(str(tmp_path), tls=True) as stub:
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"{identity.url}/msi/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header-secret")
        stub.answer = lambda _request: STORED
        store = open_store("az://container", config=AzureConfig(account_url=stub.url, ca_bundle=stub.ca_file))
        for _ in range(3):
            store.put("a", [memoryview(b"x")])
        store.close()
    used = [request.headers["authorization"] for request in stub.requests]
    assert used[0] == "Bearer token-1"
    assert used[-1] == "Bearer token-2"
    assert {request.headers["x-identity-header"] for request in identity.requests} == {"header-secret"}


def test_a_shared_access_signature_that_has_run_out(
    servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azurite checks signatures: the error says that the signature may have run out, and does not repeat it."""
    server, container = servers("azurite"), f"test-{uuid.uuid4().hex[:12]}"
    server.create_bucket(container)
    access = server.access

    def sign(expires: timedelta) -> str:
        return generate_container_sas(
            access.account, container, account_key=access.account_key,
            permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True),
            expiry=datetime.now(timezone.utc) + expires,
        )  # fmt: skip

    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", access.account)
    uri = f"az://{container}/run?account_url={server.endpoint_url}"
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", sign(timedelta(hours=1)))
    _save_and_load(uri)
    old = sign(timedelta(minutes=-1))
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", old)
    with pytest.raises(CheckpointException) as caught:
        _save_and_load(uri)
    server.delete_bucket(container)
    error = cause_of(caught.value)
    assert isinstance(error, errors.PermissionDeniedError)
    assert "run out" in str(error)
    assert old.partition("sig=")[2] not in str(error)


@pytest.mark.parametrize("job", ["s3"], indirect=True)
def test_a_clock_that_is_wrong(job: Job) -> None:
    """S3 refuses a request whose time is off; the error says that it is the clock."""
    skewed = fault("status", {**job.cloud.part, "times": None}, status=403, code="RequestTimeTooSkewed")
    with pytest.raises(CheckpointException) as caught:
        job.save(job.state(1), skewed)
    error = cause_of(caught.value)
    assert type(error) is errors.UnauthenticatedError
    assert "clock" in str(error)
    # Three parts, each asked for anew by the SDK once.
    assert len(job.proxy.strikes) <= 6, "a refusal for good was repeated"
    assert job.contents() == set()
