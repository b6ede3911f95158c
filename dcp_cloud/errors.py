"""Every error that dcp_cloud raises, in one tree.

::

    DcpCloudError
    ├── ConfigError (ValueError)                 an argument, a URI or an option is wrong
    │   ├── InvalidURIError
    │   ├── UnknownOptionError
    │   └── MissingExtraError (ImportError)      the provider's SDK is not installed
    ├── StoreError                               the object store answered, and the answer was no
    │   ├── NotFoundError (FileNotFoundError)
    │   │   └── BucketNotFoundError
    │   ├── AlreadyExistsError (FileExistsError) a create-only write found something
    │   ├── PreconditionError                    a conditional request found another version
    │   ├── PermissionDeniedError (PermissionError)
    │   │   └── UnauthenticatedError             no credentials, wrong or expired ones
    │   ├── WrongRegionError
    │   ├── InvalidRequestError                  the provider refuses this request for good
    │   │   └── OutOfRangeError                  the object ends before the range that was asked for
    │   ├── TransientError (ConnectionError)     may pass: the retry layer tries again
    │   │   ├── ThrottledError                   the provider asks for fewer requests
    │   │   └── ChecksumMismatchError            bytes changed on the way
    │   └── RetriesExhaustedError                a transient error that did not pass
    ├── CheckpointError                          the objects are there, the checkpoint is not right
    │   ├── CheckpointNotFoundError (FileNotFoundError)
    │   ├── IncompleteCheckpointError            data without commit, or a plan without results
    │   ├── CheckpointExistsError (FileExistsError)
    │   ├── CommitConflictError                  another job committed to the same prefix
    │   ├── CorruptCheckpointError               wrong lengths, checksums or structure
    │   ├── UnsafeCheckpointError                a pickle names something that is not allowed
    │   ├── UnsupportedFormatError
    │   └── StateDictMismatchError (ValueError)  the state dict does not fit the checkpoint
    └── TransferCancelledError                   this transfer ended because another part of it failed

Each error carries what failed, the key it concerns, the cause and the next step. ``__cause__`` does not survive the
pickling with which torch gathers errors between ranks, so the cause is kept as text; everything an error holds is text,
so every error survives pickling. Text that comes from a provider passes through :func:`redact` first.
"""

from __future__ import annotations

import re

# What a secret looks like in the texts of the three SDKs: reprs of headers, JSON, XML, connection strings, signed URLs.
# The name stays, the value goes.
_NAMES = (
    r"x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential"
    r"|secret_?access_?key|session_?token|secret_?key|account_?key|shared_?access_?signature|private_?key"
    r"|access_?token|refresh_?token|id_?token|client_?secret|client_?assertion|password|sig|signature"
    r"|web_?identity_?token|subject_?token|assertion|x-identity-header"
    r"|x-amz-server-side-encryption-customer-key|sse_?customer_?key|x-ms-encryption-key"
)
_SEPARATOR = r"\\?[\"']?\s*[=:>]\s*(?:b?\\?[\"'])?"
_VALUE = r"[^\s&;,\"'<>\\]+"
_PEM = r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
_SECRETS = re.compile(
    rf"(?is)({_NAMES})({_SEPARATOR})(?:{_PEM}|{_VALUE})"
    # The header has the name of a method before the value: Bearer, Basic, SharedKey, AWS4-HMAC-SHA256.
    rf"|(authorization)({_SEPARATOR})(?:[\w-]+\s+)?{_VALUE}"
    # http://user:password@proxy:3128, http://token@proxy; a password may hold a raw @. A container is no secret:
    # abfss://container@account.dfs.core.windows.net
    r"|()((?<!abfss)(?<!abfs)(?<!wasbs)(?<!wasb)://)[^\s/?#\"'<>]+(?=@)"
)


def redact(text: str) -> str:
    """Replace the values of credentials and signatures in a text.

    Args:
        text: Any text, for example the message of an SDK's exception.

    Returns:
        The text with every recognised secret's value replaced by ``***``.
    """
    return _SECRETS.sub(r"\1\2\3\4\5\6***", text)


def describe(cause: BaseException) -> str:
    """Say in one redacted line what an exception was, by type and text.

    Args:
        cause: The exception to describe.

    Returns:
        ``TypeName: text``, or only the type's name when the exception has no text.
    """
    text = redact(" ".join(str(cause).split()))
    name = type(cause).__name__
    return f"{name}: {text}" if text else name


class DcpCloudError(Exception):
    """Root of all errors of this package.

    Args:
        message: What failed, in one sentence without a full stop.
        key: Object key or URI that it concerns, if there is one.
        cause: Why, as text; an exception is described by :func:`describe`.
        hint: What the user can do next.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        cause: str | BaseException | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.key = key
        self.cause = describe(cause) if isinstance(cause, BaseException) else cause
        self.hint = hint

    def __str__(self) -> str:
        text = self.message
        if self.key is not None and self.key not in text:
            text += f" [{self.key}]"
        if self.cause:
            text += f": {self.cause}"
        if self.hint:
            text += f". {self.hint[0].upper()}{self.hint[1:]}"
        return text


class ConfigError(DcpCloudError, ValueError):
    """An argument, a URI or an option is wrong; nothing was sent to any store."""


class InvalidURIError(ConfigError):
    """The URI cannot name a place for a checkpoint."""


class UnknownOptionError(ConfigError):
    """A query option that no setting of this store is called."""


class MissingExtraError(ConfigError, ImportError):
    """The package that speaks to this provider is not installed."""


class StoreError(DcpCloudError):
    """The object store refused or failed a request."""


class NotFoundError(StoreError, FileNotFoundError):
    """No object of that key, or no multipart upload of that id."""


class BucketNotFoundError(NotFoundError):
    """The bucket or container itself does not exist."""


class AlreadyExistsError(StoreError, FileExistsError):
    """A create-only write found an object."""


class PreconditionError(StoreError):
    """A conditional request found another version of the object than it asked for."""


class PermissionDeniedError(StoreError, PermissionError):
    """The credentials are known, and they may not do this."""


class UnauthenticatedError(PermissionDeniedError):
    """No credentials were found, or they are wrong or expired."""


class WrongRegionError(StoreError):
    """The bucket lives in another region than the request was signed for."""


class InvalidRequestError(StoreError):
    """The provider refuses this request, and would refuse it again."""


class OutOfRangeError(InvalidRequestError):
    """The object ends before the range that was asked for."""


class TransientError(StoreError, ConnectionError):
    """A failure that can pass: connection lost, timeout, 5xx.

    Args:
        message: What failed.
        key: Object key, if there is one.
        cause: Why.
        hint: What to do next.
        retry_after_s: Seconds the provider asks to wait, if it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        cause: str | BaseException | None = None,
        hint: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, key=key, cause=cause, hint=hint)
        self.retry_after_s = retry_after_s


class ThrottledError(TransientError):
    """The provider asks for fewer requests (503 SlowDown, 429)."""


class ChecksumMismatchError(TransientError):
    """The bytes that arrived are not the bytes that were sent; sending them again may pass."""


class RetriesExhaustedError(StoreError):
    """A transient error that did not pass within the attempts and the time allowed."""


class CheckpointError(DcpCloudError):
    """The objects of a checkpoint are not what they should be."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No checkpoint was committed under this prefix."""


class IncompleteCheckpointError(CheckpointError):
    """Data objects without a commit, a commit that names missing objects, or a plan without all its results."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """A checkpoint is already committed here and ``overwrite=False``."""


class CommitConflictError(CheckpointError):
    """Another job committed to this prefix while this save was running; this save changed nothing."""


class CorruptCheckpointError(CheckpointError):
    """Stored bytes are not the bytes that were saved."""


class UnsafeCheckpointError(CheckpointError):
    """A pickle in the checkpoint names something that is not allowed to be loaded."""


class UnsupportedFormatError(CheckpointError):
    """The checkpoint was written in a way that this version cannot read."""


class StateDictMismatchError(CheckpointError, ValueError):
    """The state dict to fill does not fit what the checkpoint holds."""


class TransferCancelledError(DcpCloudError):
    """A piece of work was given up because another piece of the same transfer failed first."""
