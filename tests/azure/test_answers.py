"""What is made of answers: typed errors, exact ranges, one attempt."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable

import pytest

from dcp_cloud.errors import (
    DcpCloudError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ThrottledError,
    TransientError,
    UnauthenticatedError,
)
from dcp_cloud.stores.base import ObjectStore
from tests.azure.stub import Reply, Stub, content, refusal

Open = Callable[..., ObjectStore]

_SIGNATURE = "c2VjcmV0c2VjcmV0c2VjcmV0"


def _verbs(store: ObjectStore) -> dict[str, Callable[[], object]]:
    return {
        "head": lambda: store.head("a"),
        "get": lambda: store.get("a", max_bytes=5),
        "get_range": lambda: store.get_range("a", 0, [memoryview(bytearray(5))]),
        "put": lambda: store.put("a", [memoryview(b"x")]),
        "create_multipart": lambda: store.create_multipart("a"),
        "delete": lambda: store.delete(["a"]),
        "delete_many": lambda: store.delete(["a", "b"]),
        "list": lambda: list(store.list("a")),
        "list_prefixes": lambda: list(store.list_prefixes("a")),
        "list_multiparts": lambda: list(store.list_multiparts("a")),
    }


_VERBS = tuple(_verbs(None))  # type: ignore[arg-type]  # only the names are looked at


@pytest.mark.parametrize("verb", _VERBS)
def test_a_throttled_request_is_tried_once(stub: Stub, open_at: Open, verb: str):
    """Retrying is the transfer layer's work; it learns how long the service asks to wait."""
    stub.answer = lambda _request: refusal(503, "ServerBusy", Retry_After="7")
    with pytest.raises(ThrottledError) as caught:
        _verbs(open_at(stub))[verb]()
    assert caught.value.retry_after_s == 7.0
    assert len(stub.requests) == 1


@pytest.mark.parametrize("verb", _VERBS)
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AuthenticationFailed", UnauthenticatedError),
        (403, "AuthorizationPermissionMismatch", PermissionDeniedError),
        (500, "OperationTimedOut", TransientError),
        (400, "InvalidHeaderValue", InvalidRequestError),
    ],
)
def test_refusals_have_one_type_on_every_verb(
    stub: Stub, open_at: Open, verb: str, status: int, code: str, kind: type[DcpCloudError]
):
    """The code of the service decides, whichever request it answers."""
    stub.answer = lambda _request: refusal(status, code)
    with pytest.raises(kind) as caught:
        _verbs(open_at(stub))[verb]()
    assert type(caught.value) is kind
    assert code in str(caught.value)


@pytest.mark.parametrize("verb", _VERBS)
def test_a_signature_shows_nowhere(
    stub: Stub,
    open_at: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    verb: str,
):
    """A shared access signature is in every URL, and in no error, traceback, log or pickle."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("AZURE_STORAGE_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", f"?sv=2024-11-04&sp=rwdl&sig={_SIGNATURE}%3D")
    stub.answer = lambda request: refusal(403, "AuthenticationFailed", request.path.replace("&", "&amp;"))
    store = open_at(stub)
    with pytest.raises(UnauthenticatedError) as caught:
        _verbs(store)[verb]()
    assert _SIGNATURE in stub.requests[0].path
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__) + caplog.text
    assert _SIGNATURE not in shown
    assert _SIGNATURE not in repr(store)
    assert _SIGNATURE.encode() not in pickle.dumps(store)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (content(b"12345", 1), TransientError),
        (content(b"123456"), TransientError),
        (content(b"123", size=3), InvalidRequestError),
        (content(b"12345", status=200), InvalidRequestError),
        (refusal(416, "InvalidRange"), InvalidRequestError),
        (refusal(404, "BlobNotFound"), NotFoundError),
    ],
)
def test_a_range_is_exact_or_an_error(stub: Stub, open_at: Open, reply: Reply, kind: type[DcpCloudError]):
    """Another range than was asked for never ends up in the caller's buffers as if it were right."""
    stub.answer = lambda _request: reply
    with pytest.raises(kind):
        open_at(stub).get_range("a", 0, [memoryview(bytearray(5))])


@pytest.mark.parametrize("verb", ["get", "get_range", "list"])
def test_an_answer_that_breaks_off_is_transient(stub: Stub, open_at: Open, verb: str):
    """Fewer bytes than announced is a failure that may pass."""
    whole = content(b"12345")
    stub.answer = lambda _request: Reply(200 if verb == "list" else 206, whole.headers, b"12", length=5)
    with pytest.raises(TransientError):
        _verbs(open_at(stub))[verb]()


def test_a_page_of_a_proxy_is_no_success(stub: Stub, open_at: Open):
    """A listing that is no listing is an error, not an empty one."""
    stub.answer = lambda _request: Reply(200, {"Content-Type": "text/html"}, b"<html>sign in</html>")
    with pytest.raises(DcpCloudError):
        list(open_at(stub).list())
