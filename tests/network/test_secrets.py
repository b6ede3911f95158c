"""Credentials stay out of everything that a full run at DEBUG shows, stores or hands over."""

from __future__ import annotations

import base64
import functools
import io
import json
import logging
import pickle
import ssl
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
import torch
import torch.distributed.checkpoint as dcp
import trustme
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from google.oauth2.credentials import Credentials
from torch.distributed.checkpoint.api import CheckpointException
from typer.testing import CliRunner

from dcp_cloud import (
    CheckpointManager,
    CloudStorageReader,
    CloudStorageWriter,
    RetryConfig,
    TransferConfig,
    errors,
    open_store,
)
from dcp_cloud.cli.app import build_app
from dcp_cloud.logs import SecretFilter
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.testing import FaultProxy, NetworkFault, ObjectServer
from tests.s3.stub import s3_stub
from tests.unit.stores.stub_server import answer, stub_server

_TRANSFER = TransferConfig(max_concurrency=4, retry=RetryConfig(max_attempts=2, base_delay_s=0.01))
_AWS_SECRET, _AWS_TOKEN = "kJ7secretAccessKey/EXAMPLE+x1", "IQoJsessionToken/EXAMPLE+x2=="
_GOOGLE_TOKEN, _PLATFORM_TOKEN = "ya29.bearerTokenExample-x3", "eyJ.platformTokenExample-x4"
_CUSTOMER_KEY = b"customer-key-of-32-bytes-exactly"


@dataclass
class Secured:
    """A place that is reached with credentials which can be told from everything else."""

    uri: str
    secrets: tuple[str, ...]
    config: object = None
    proxy: FaultProxy | None = None


@dataclass
class Evidence:
    """All that a run shows: what, and its text."""

    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, *things: object) -> None:
        """Take down what things look like: str, repr, pickle."""
        for thing in things:
            self.texts += [(f"str of {what}", str(thing)), (f"repr of {what}", repr(thing))]
            # An SDK's own exception stays in its process: only what is ours goes between ranks.
            if not isinstance(thing, BaseException) or isinstance(thing, errors.DcpCloudError):
                with suppress(pickle.PicklingError, AttributeError, TypeError):
                    self.texts.append((f"pickle of {what}", pickle.dumps(thing).decode("latin-1")))

    def add_error(self, error: BaseException) -> None:
        """Take down an error, what caused it, and its traceback."""
        self.texts.append(("traceback", "".join(traceback.format_exception(error))))
        seen: BaseException | None = error
        while seen is not None:
            self.add(f"{type(seen).__name__} in a chain", seen)
            if isinstance(seen, errors.DcpCloudError):
                self.add("what an error holds", vars(seen), seen.args)
            seen = seen.__cause__ or seen.__context__

    def leaks(self, secrets: tuple[str, ...]) -> list[str]:
        """Find secrets, as they are and as they stand in URLs."""
        return [
            f"{what}: {text[max(0, text.find(form) - 100) :][:200]}"
            for what, text in self.texts
            for secret in secrets
            for form in (secret, quote(secret, safe=""))
            if form in text
        ]


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, self.format(record)))


@contextmanager
def _everything_logged(*filters: logging.Filter) -> Iterator[_Log]:
    root, handler = logging.getLogger(), _Log()
    for each in filters:
        handler.addFilter(each)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def _google_credentials() -> Any:
    return Credentials(token=_GOOGLE_TOKEN)


@contextmanager
def _federated(directory: Path) -> Iterator[Path]:
    """Run a service that exchanges a platform's token for Google's, and give the file that says so."""
    document = {"access_token": _GOOGLE_TOKEN, "token_type": "Bearer", "expires_in": 3600}
    document["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token"
    token = answer(200, json.dumps(document).encode(), content_type="application/json")
    with stub_server(lambda _request: token) as sts:
        (directory / "platform-token").write_text(_PLATFORM_TOKEN)
        path = directory / "federation.json"
        path.write_text(
            json.dumps(
                {
                    "type": "external_account",
                    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
                    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                    "token_url": f"{sts.url}/v1/token",
                    "credential_source": {"file": str(directory / "platform-token")},
                }
            )
        )
        yield path


@pytest.fixture(params=["s3", "gcs factory", "gcs federation", "azure key", "azure signature"])
def secured(
    request: pytest.FixtureRequest,
    servers: Callable[[str], ObjectServer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Secured]:
    """A bucket behind a proxy on each cloud, and credentials of each kind."""
    kind = request.param
    server = servers({"s3": "moto", "gcs": "fake-gcs"}.get(kind.partition(" ")[0], "azurite"))
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    with FaultProxy(server.endpoint_url) as proxy, _federated(tmp_path) as federation:
        if kind == "s3":
            environment: Mapping[str, str] = {
                "AWS_ACCESS_KEY_ID": "ASIAEXAMPLE",
                "AWS_SECRET_ACCESS_KEY": _AWS_SECRET,
                "AWS_SESSION_TOKEN": _AWS_TOKEN,
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            place = Secured(f"s3://{bucket}/run?endpoint_url={proxy.url}&part_size=5MiB", (_AWS_SECRET, _AWS_TOKEN))
        elif kind == "gcs federation":
            environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(federation)}
            uri = f"gs://{bucket}/run?endpoint_url={proxy.url}&upload_method=compose"
            place = Secured(uri, (_GOOGLE_TOKEN, _PLATFORM_TOKEN))
        elif kind == "gcs factory":
            environment = {}
            config = GCSConfig(endpoint_url=proxy.url, upload_method="compose", credentials_factory=_google_credentials)
            place = Secured(f"gs://{bucket}/run", (_GOOGLE_TOKEN,), config)
        else:
            key = server.access.account_key
            environment = {"AZURE_STORAGE_ACCOUNT": server.access.account, "AZURE_STORAGE_KEY": key}
            secrets: tuple[str, ...] = (key,)
            if kind == "azure signature":
                token = generate_container_sas(
                    server.access.account, bucket, account_key=key,
                    permission=ContainerSasPermissions(read=True, write=True, delete=True, list=True, create=True),
                    expiry=datetime.now(timezone.utc) + timedelta(hours=1),
                )  # fmt: skip
                environment = {
                    "AZURE_STORAGE_ACCOUNT": server.access.account,
                    "AZURE_STORAGE_SAS_TOKEN": token,
                }
                secrets = (parse_qs(token)["sig"][0],)
            place = Secured(f"az://{bucket}/run?account_url={proxy.url}&part_size=5MiB", secrets)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        place.proxy = proxy
        yield place
    server.delete_bucket(bucket)


def _run(place: Secured, evidence: Evidence, *faults: NetworkFault) -> None:
    """Save and load, well or under faults, and take down everything."""
    events: list[object] = []
    assert place.proxy is not None
    place.proxy.set_faults(*faults)
    settings: dict[str, Any] = {"transfer": _TRANSFER, "config": place.config, "on_event": events.append}
    writer, reader = CloudStorageWriter(place.uri, **settings), CloudStorageReader(place.uri, **settings)
    store = open_store(place.uri, config=place.config)
    manager = CheckpointManager(place.uri, keep_last=1, **settings)
    state = {"w": torch.ones(2_000_000)}

    def in_background(step: int) -> None:
        manager.async_save(step, state).result()

    for work in (
        functools.partial(dcp.save, state, storage_writer=writer),
        functools.partial(dcp.load, state, storage_reader=reader),
        functools.partial(store.head, ".metadata"),
        functools.partial(in_background, 1),
        functools.partial(in_background, 2),
        functools.partial(manager.restore, state),
        manager.list,
    ):
        error = _failure_of(work)
        if error is None:
            continue
        if not faults:
            raise error
        evidence.add_error(error)
        for inner, _ in getattr(error, "failures", {}).values():
            evidence.add_error(inner)
    evidence.add("event", *events)
    evidence.add("summary", writer.last_save, reader.last_load)
    evidence.add("manager", manager, vars(manager), manager.last_retention)
    # Without the hook, which does not pickle.
    evidence.add("writer", CloudStorageWriter(place.uri, transfer=_TRANSFER, config=place.config))
    evidence.add("store and settings", store, place.config, vars(writer), vars(reader))
    evidence.add("exchange", *place.proxy.exchanges, place.proxy.replay)
    for each in (manager, writer, reader, store):
        each.close()
    place.proxy.set_faults()


def _failure_of(work: Callable[[], object]) -> BaseException | None:
    try:
        work()
    except (CheckpointException, errors.DcpCloudError) as error:
        return error
    return None


_FAILURES = {
    "denied": NetworkFault("status", times=None, status=403, code="AccessDenied"),
    "expired": NetworkFault("status", times=None, status=400, code="ExpiredToken"),
    "reset": NetworkFault("reset", times=None, side="response"),
}


def test_a_full_run_shows_no_secret(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the filter no log of anybody holds one, without it none but botocore's; nor does anything else, ever."""
    evidence = Evidence()
    with _everything_logged() as log, _everything_logged(SecretFilter()) as filtered:
        # Records are shared between handlers: the filtered one comes second.
        _run(secured, evidence)
        for fault in _FAILURES.values():
            _run(secured, evidence, fault)
        if secured.config is None:
            _use_the_command_line(secured, evidence)
        assert secured.proxy is not None
        secured.proxy.close()  # nobody is there any more
        store = open_store(secured.uri, config=secured.config)
        with pytest.raises(errors.TransientError) as caught:
            store.head("a")
        evidence.add_error(caught.value)
    names = {name.partition(".")[0] for name, _ in log.lines}
    assert "dcp_cloud" in names
    evidence.texts += [(f"log of {name}", line) for name, line in log.lines if not name.startswith("botocore")]
    evidence.texts += [(f"filtered log of {name}", line) for name, line in filtered.lines]
    assert evidence.leaks(secured.secrets) == []


def _use_the_command_line(place: Secured, evidence: Evidence) -> None:
    assert place.proxy is not None
    for fault in (None, _FAILURES["denied"]):
        place.proxy.set_faults(*filter(None, [fault]))
        for command in (["ls"], ["inspect"], ["verify"], ["sweep", "--dry-run"]):
            for options in (["-vv"], ["--json"]):
                result = CliRunner().invoke(build_app(), [*command, place.uri, *options])
                evidence.texts.append((f"output of {command}", result.output + result.stderr))
                if fault is None:
                    assert result.exit_code == 0, result.output
    place.proxy.set_faults()
    logger = logging.getLogger("dcp_cloud")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


def _customer_key() -> bytes:
    return _CUSTOMER_KEY


def test_a_customer_key_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's customer key travels in a header field, which botocore logs at DEBUG; the filter takes it out."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", _AWS_SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    evidence = Evidence()
    with s3_stub(str(tmp_path), tls=True) as stub, _everything_logged(SecretFilter()) as log:
        config = S3Config(endpoint_url=stub.url, ca_bundle=str(tmp_path / "ca.pem"), customer_key=_customer_key)
        store = open_store("s3://bucket/run", config=config)
        store.put("a", [memoryview(b"x")])
        store.get("a", max_bytes=5)
        store.create_multipart("b").put_part(0, [memoryview(b"x")])
        evidence.add("store and settings", store, config)
        store.close()
    assert log.lines
    evidence.texts += log.lines
    assert evidence.leaks((_AWS_SECRET, _CUSTOMER_KEY.decode(), base64.b64encode(_CUSTOMER_KEY).decode())) == []


def test_the_filter_redacts_arguments_and_tracebacks() -> None:
    """Secrets in a record's arguments and in the error that goes with it are taken out; the rest stays."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(SecretFilter())
    error = ValueError("AccountKey=hidden1;EndpointSuffix=core")
    arguments = ({"X-Amz-Security-Token": b"hidden2"}, "host")
    handler.handle(
        logging.LogRecord("x", logging.ERROR, "x.py", 1, "sent %s to %s", arguments, (ValueError, error, None))
    )
    assert "hidden" not in stream.getvalue()
    assert "EndpointSuffix=core" in stream.getvalue()
    assert "to host" in stream.getvalue()


@pytest.mark.parametrize(
    ("uri", "config"),
    [
        ("s3://bucket/run", functools.partial(S3Config, region="us-east-1", anonymous=True)),
        ("gs://bucket/run", functools.partial(GCSConfig, anonymous=True)),
        ("az://container/run", functools.partial(AzureConfig, account="a", anonymous=True)),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "elsewhere.example"])
def test_certificates_are_verified(uri: str, config: Callable[..., Any], host: str) -> None:
    """An authority that is not known, and a certificate for another host, end in an error that names the setting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(host).configure_cert(context)
    with stub_server(lambda _request: answer(200), tls=context) as server:
        name = "account_url" if uri.startswith("az") else "endpoint_url"
        store = open_store(uri, config=config(**{name: server.url}))
        for request in (lambda: store.head("a"), lambda: store.put("a", [memoryview(b"x")])):
            with pytest.raises(errors.InvalidRequestError, match="ca_bundle"):
                request()
        store.close()
        assert server.requests == []


@pytest.mark.parametrize(
    ("uri", "config"),
    [
        ("s3://bucket/run", functools.partial(S3Config, region="us-east-1", anonymous=True)),
        ("gs://bucket/run", functools.partial(GCSConfig, anonymous=True)),
        ("az://container/run", functools.partial(AzureConfig, account="a", anonymous=True)),
    ],
)
def test_http_warns_unless_it_stays_on_the_machine(
    uri: str, config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain http endpoint elsewhere is told of, once; one on this machine is not."""
    name = "account_url" if uri.startswith("az") else "endpoint_url"
    with stub_server(lambda _request: answer(200, b"{}", etag='"e"')) as server:
        here = open_store(uri, config=config(**{name: server.url}))
        with suppress(errors.DcpCloudError):
            here.put("a", [memoryview(b"x")])
        here.close()
        # Nobody has to know the host: the proxy of the environment takes requests for all of them.
        monkeypatch.setenv("HTTP_PROXY", server.url)
        store = open_store(uri, config=config(**{name: "http://storage.example:9000"}))
        with pytest.warns(UserWarning, match="storage.example is reached over http") as told:
            _put_twice(store)
        store.close()
        assert len(told) == 1


def _put_twice(store: ObjectStore) -> None:
    for _ in range(2):
        with suppress(errors.DcpCloudError):
            store.put("a", [memoryview(b"x")])
