"""Settings that become header fields: each on the requests that take it, on no other, in Amazon's spelling."""

from __future__ import annotations

import base64
import hashlib
import logging
import pickle
from collections.abc import Callable
from urllib.parse import parse_qsl

import pytest

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from tests.s3.stub import OPERATIONS, operation
from tests.s3.verbs import DATA, call_all
from tests.unit.stores.stub_server import StubServer

Open = Callable[..., ObjectStore]

_KEY = bytes(range(32))
_ALL = set(OPERATIONS.values()) - {"create_session"}
_NEW_OBJECTS = {"put_object", "create_multipart_upload"}
_KMS_KEY = "arn:aws:kms:us-west-2:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def customer_key() -> bytes:
    """A customer's key."""
    return _KEY


def _senders(server: StubServer, name: str, value: str) -> set[str]:
    """The operations whose requests carry this header field."""
    return {operation(request) for request in server.requests if request.headers.get(name) == value}


def test_every_verb_is_known(stub: StubServer, open_s3: Open):
    """The tests below speak of all requests that the store sends."""
    call_all(open_s3(endpoint_url=stub.url))
    assert {operation(request) for request in stub.requests} == _ALL


@pytest.mark.parametrize(
    ("settings", "name", "value", "operations"),
    [
        ({"encryption": "AES256"}, "x-amz-server-side-encryption", "AES256", _NEW_OBJECTS),
        ({"encryption": "aws:kms"}, "x-amz-server-side-encryption", "aws:kms", _NEW_OBJECTS),
        ({"encryption": "aws:kms:dsse"}, "x-amz-server-side-encryption", "aws:kms:dsse", _NEW_OBJECTS),
        (
            {"encryption": "aws:kms", "kms_key_id": _KMS_KEY},
            "x-amz-server-side-encryption-aws-kms-key-id",
            _KMS_KEY,
            _NEW_OBJECTS,
        ),
        ({"bucket_key": True}, "x-amz-server-side-encryption-bucket-key-enabled", "true", _NEW_OBJECTS),
        ({"bucket_key": False}, "x-amz-server-side-encryption-bucket-key-enabled", "false", _NEW_OBJECTS),
        ({"storage_class": "STANDARD_IA"}, "x-amz-storage-class", "STANDARD_IA", _NEW_OBJECTS),
        ({"bucket_owner_full_control": True}, "x-amz-acl", "bucket-owner-full-control", _NEW_OBJECTS),
        ({"metadata": {"run": "7"}}, "x-amz-meta-run", "7", _NEW_OBJECTS),
        ({"requester_pays": True}, "x-amz-request-payer", "requester", _ALL),
        ({"expected_bucket_owner": "123456789012"}, "x-amz-expected-bucket-owner", "123456789012", _ALL),
    ],
)
def test_a_setting_stands_where_it_belongs(
    stub: StubServer, open_s3: Open, settings: dict[str, object], name: str, value: str, operations: set[str]
):
    """What concerns new objects goes with them only; what concerns the bucket goes with every request."""
    call_all(open_s3(endpoint_url=stub.url, **settings))
    assert _senders(stub, name, value) == operations
    assert {operation(request) for request in stub.requests if name in request.headers} == operations


def test_settings_are_signed(stub: StubServer, open_s3: Open):
    """S3 refuses x-amz header fields that the signature does not cover."""
    open_s3(endpoint_url=stub.url, requester_pays=True, encryption="aws:kms").put("k", [DATA])
    [request] = stub.requests
    signed = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"x-amz-request-payer", "x-amz-server-side-encryption"} <= set(signed)


def test_nothing_is_sent_that_nobody_asked_for(stub: StubServer, open_s3: Open):
    """Without settings a request has no field that a compatible server might not know."""
    call_all(open_s3(endpoint_url=stub.url, checksums="when_required"))
    usual = {"x-amz-date", "x-amz-content-sha256"}
    for request in stub.requests:
        if operation(request) != "delete_objects":  # S3 demands a checksum there
            assert {name for name in request.headers if name.startswith("x-amz-")} == usual


def test_options_of_the_uri_mean_the_same(stub: StubServer, credentials: None):
    """Each setting that is no function and no mapping can stand in the URI."""
    options = (
        f"encryption=aws:kms&kms_key_id={_KMS_KEY}&bucket_key=true&storage_class=GLACIER_IR&requester_pays=true"
        "&expected_bucket_owner=123456789012&bucket_owner_full_control=yes"
    )
    store = open_store(f"s3://bucket/pre?endpoint_url={stub.url}&{options}")
    store.put("k", [DATA])
    store.close()
    assert {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": _KMS_KEY,
        "x-amz-server-side-encryption-bucket-key-enabled": "true",
        "x-amz-storage-class": "GLACIER_IR",
        "x-amz-request-payer": "requester",
        "x-amz-expected-bucket-owner": "123456789012",
        "x-amz-acl": "bucket-owner-full-control",
    }.items() <= stub.requests[0].headers.items()


def test_tags_are_a_query_string(stub: StubServer, open_s3: Open):
    """Amazon's form for tags in a header field: percent-encoded, so that every character survives."""
    tags = {"team": "ml + co", "größe": "a=b"}
    call_all(open_s3(endpoint_url=stub.url, tags=tags))
    for request in stub.requests:
        if operation(request) in _NEW_OBJECTS:
            assert dict(parse_qsl(request.headers["x-amz-tagging"], strict_parsing=True)) == tags
            assert "+" not in request.headers["x-amz-tagging"]
        else:
            assert "x-amz-tagging" not in request.headers


def test_a_customer_key_stands_on_every_request_that_needs_it(tls_stub: StubServer, open_s3: Open):
    """S3 can neither write nor read nor describe such an object without the key, nor take parts of it."""
    call_all(open_s3(endpoint_url=tls_stub.url, customer_key=customer_key))
    prefix = "x-amz-server-side-encryption-customer-"
    fields = {
        f"{prefix}algorithm": "AES256",
        f"{prefix}key": base64.b64encode(_KEY).decode(),
        f"{prefix}key-md5": base64.b64encode(hashlib.md5(_KEY).digest()).decode(),
    }
    for name, value in fields.items():
        assert _senders(tls_stub, name, value) == {
            *("put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"),
            *("get_object", "head_object"),
        }


def test_a_customer_key_is_nowhere_to_be_found(tls_stub: StubServer, open_s3: Open, caplog: pytest.LogCaptureFixture):
    """Neither text nor pickle of settings and store holds the key, before use and after, and no log does."""
    caplog.set_level(logging.INFO)
    store = open_s3(endpoint_url=tls_stub.url, customer_key=customer_key)
    store.put("k", [DATA])
    config = store.store.client.config
    texts = [repr(config), repr(store), repr(store.store.client), caplog.text]
    texts += [pickle.dumps(thing).decode("latin-1") for thing in (config, store)]
    for text in texts:
        for secret in (_KEY.decode("latin-1"), repr(_KEY), base64.b64encode(_KEY).decode(), _KEY.hex()):
            assert secret not in text
    assert pickle.loads(pickle.dumps(config)) == config


def _short_key() -> bytes:
    return b"short"


def _no_key() -> bytes:
    raise OSError("the vault is closed, and the key was 'topsecret'")


def _text() -> bytes:
    return "topsecret" + "x" * 23  # type: ignore[return-value]  # what somebody might give by mistake


@pytest.mark.parametrize("give", [_short_key, _no_key, _text])
def test_a_bad_customer_key_sends_nothing(tls_stub: StubServer, open_s3: Open, give: Callable[[], bytes]):
    """A key of the wrong length, or none, is a mistake in the settings; the error does not repeat what was said."""
    with pytest.raises(ConfigError) as caught:
        open_s3(endpoint_url=tls_stub.url, customer_key=give).put("k", [DATA])
    assert "topsecret" not in str(caught.value)
    assert tls_stub.requests == []
