from __future__ import annotations

import inspect
import pickle
import re

import pytest

from dcp_cloud import errors
from dcp_cloud.errors import DcpCloudError, StoreError, TransientError, describe, redact

ALL = sorted(
    (kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, DcpCloudError)),
    key=lambda kind: kind.__name__,
)
every_error = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)


@every_error
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling_whole(kind: type[DcpCloudError], protocol: int) -> None:
    """torch gathers errors between ranks by pickling them: all that an error says arrives."""
    error = kind("it failed", key="run/k", cause=OSError(5, "the cause"), hint="try this")
    if isinstance(error, TransientError):
        error.retry_after_s = 2.5
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert (copy.message, copy.key, copy.cause, copy.hint) == (error.message, error.key, error.cause, error.hint)
    assert copy.__dict__ == error.__dict__
    assert copy.args == error.args
    assert str(copy) == str(error) == "it failed [run/k]: OSError: [Errno 5] the cause. Try this"


@every_error
def test_every_error_is_fine_with_a_message_alone(kind: type[DcpCloudError]) -> None:
    """Only the message is required."""
    error = kind("it failed")
    assert str(error) == "it failed"
    assert (error.key, error.cause, error.hint) == (None, None, None)
    assert str(pickle.loads(pickle.dumps(error))) == "it failed"


def test_retry_after_survives_pickling() -> None:
    """What the provider asked for is part of the error."""
    error = errors.ThrottledError("slow down", retry_after_s=3.5)
    assert pickle.loads(pickle.dumps(error)).retry_after_s == 3.5


def test_the_tree_is_the_one_that_is_documented() -> None:
    """The module's page shows every class once, under its parent, with the built-in that it also is."""
    parents: list[str] = []
    shown: dict[str, str] = {}
    builtins: dict[str, str | None] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:[│ ]   )*)(?:[├└]── )?(\w*Error)(?: \((\w+)\))?", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + ("── " in line)
        del parents[depth:]
        parents.append(match[2])
        shown[match[2]] = parents[depth - 1] if depth else "Exception"
        builtins[match[2]] = match[3]
    assert set(shown) == {kind.__name__ for kind in ALL}
    for kind in ALL:
        assert kind.__bases__[0].__name__ == shown[kind.__name__]
        assert [base.__name__ for base in kind.__bases__[1:]] == [b for b in [builtins[kind.__name__]] if b]


def test_errors_can_be_caught_as_what_python_calls_them() -> None:
    """Code that knows nothing of this package catches what it expects."""
    assert issubclass(errors.NotFoundError, FileNotFoundError)
    assert issubclass(errors.InvalidURIError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)
    assert issubclass(errors.UnauthenticatedError, PermissionError)
    assert issubclass(errors.ThrottledError, ConnectionError)
    assert issubclass(errors.CheckpointNotFoundError, FileNotFoundError)
    assert not issubclass(errors.RetriesExhaustedError, TransientError)


def test_the_text_names_the_key_once_and_ends_with_the_next_step() -> None:
    """What failed, the key, the cause, the next step: in this order, each once."""
    assert str(StoreError("put of run/k failed", key="run/k")) == "put of run/k failed"
    assert str(StoreError("put failed", key="run/k", cause="500")) == "put failed [run/k]: 500"
    assert str(StoreError("put failed", hint="look there")) == "put failed. Look there"


def test_causes_are_described_in_one_line_by_type_and_text() -> None:
    """A cause is kept as text, since exceptions of SDKs do not pickle."""
    assert describe(ValueError("two\n  lines")) == "ValueError: two lines"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert StoreError("x", cause=ValueError("password=hunter2")).cause == "ValueError: password=***"


SECRET = "hun+ter2/xyz=="


@pytest.mark.parametrize(
    "text",
    [
        f"GET https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Signature={SECRET}&X-Amz-Date=2024",
        f"https://b.s3.amazonaws.com/k?X-Amz-Security-Token={SECRET}&x=1",
        f"https://storage.googleapis.com/b/k?X-Goog-Signature={SECRET}",
        f"https://acct.blob.core.windows.net/c/b?sv=2024-01-01&se=2025&sig={SECRET}&sp=r",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={SECRET};EndpointSuffix=core.windows.net",
        f"SharedAccessSignature=sv=2024&sig={SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"Authorization: Basic {SECRET}",
        f"Authorization: SharedKey acct:{SECRET}",
        f"Authorization: SharedKeyLite acct:{SECRET}",
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIA/2024/r/s3/aws4_request, SignedHeaders=host, Signature="
        + SECRET,
        f"{{'Authorization': 'Bearer {SECRET}', 'x-ms-version': '2024'}}",
        f"{{'Authorization': b'Bearer {SECRET}'}}",
        f"{{'X-Amz-Security-Token': '{SECRET}'}}",
        f'{{"Authorization": "Bearer {SECRET}"}}',
        f'{{"access_token": "{SECRET}", "expires_in": 3599}}',
        f'body={{\\"refresh_token\\": \\"{SECRET}\\"}}',
        f'{{"AccessKeyId": "AKIA", "SecretAccessKey": "{SECRET}", "Expiration": "2024"}}',
        f'{{"SessionToken": "{SECRET}"}}',
        f"<Credentials><SecretAccessKey>{SECRET}</SecretAccessKey></Credentials>",
        f"<SessionToken>{SECRET}</SessionToken>",
        f"aws_secret_access_key = {SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET}",
        f"AWS_SESSION_TOKEN={SECRET}",
        f"AZURE_STORAGE_KEY and account_key={SECRET}",
        f"client_secret={SECRET}&grant_type=client_credentials",
        f"client_assertion={SECRET}&scope=x",
        f"S3Config(secret_key='{SECRET}')",
        f"Cannot connect to proxy http://user:{SECRET.replace('/', '')}@proxy:3128",
        f"Cannot connect to proxy http://user:p@{SECRET.replace('/', '')}@proxy:3128",
        f"Cannot connect to proxy http://{SECRET.replace('/', '')}@proxy:3128",
        f"Cannot connect to proxy http://:{SECRET.replace('/', '')}@proxy:3128",
        f'"private_key": "-----BEGIN PRIVATE KEY-----\\nMIIE {SECRET}\\n-----END PRIVATE KEY-----\\n"',
        f"private_key=-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_in_the_texts_of_sdks_are_cut(text: str) -> None:
    """Headers, JSON, XML, connection strings, signed URLs: the name stays, the value goes."""
    shown = redact(text)
    assert SECRET not in shown
    for piece in re.split(r"[/=+]+", SECRET):
        assert not piece or piece not in shown
    assert "***" in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "The request signature we calculated does not match the signature you provided",
        "ExpiredToken: The provided token has expired",
        "Unable to locate credentials: configure them by running aws configure",
        "An error occurred (SignatureDoesNotMatch) when calling PutObject",
        "DefaultAzureCredential failed to retrieve a token from the included credentials",
        "Connection to http://127.0.0.1:9000/bucket refused",
        "abfss://container@acct.dfs.core.windows.net/run",
        "GET https://example.com?user=somebody@example.com failed",
        "user@example.com has no access: storage.objects.get denied",
        "assigning part_size=64MiB",
        "",
    ],
)
def test_texts_without_secrets_are_left_alone(text: str) -> None:
    """A message that says what is wrong must still say it."""
    assert redact(text) == text
