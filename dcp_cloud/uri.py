"""Where a checkpoint lives: the URI, taken apart once and never again.

::

    s3://bucket/prefix                    gs://bucket/prefix  (also gcs://)
    az://container/prefix                 abfs[s]://container@account.dfs.core.windows.net/prefix
    file:///dir  /dir  ./dir              https://account.blob.core.windows.net/container/prefix
    memory://name/prefix

Options follow a ``?``: ``s3://b/p?region=eu-west-1&part_size=64MiB``. The prefix is taken literally: ``%20`` in an
``s3://`` URI is three characters of the key, as it is for the providers' own tools; only ``https://`` URIs are
percent-decoded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import parse_qsl, quote, unquote

from dcp_cloud.errors import InvalidURIError

_SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "s3": "s3",
        "gs": "gs",
        "gcs": "gs",
        "az": "az",
        "azure": "az",
        "abfs": "abfs",
        "abfss": "abfs",
        "https": "https",
        "http": "https",
        "file": "file",
        "memory": "memory",
    }
)
_SECRET_OPTION = re.compile(
    r"(?i)secret|password|passwd|signature|^sig$|^sas|_sas|sas_|token|account_?key|access_?key|connection_?string|credential"
)
_USER_INFO = re.compile(r"://.*@")
_SCHEME_AND_REST = re.compile(r"([^:/@]*:/+)?(.*)", re.DOTALL)
_AZURE_HOST = re.compile(r"^(?P<account>[a-z0-9-]+)\.(?:blob|dfs)\.(?P<suffix>[a-z0-9.-]+)$")
_CREDENTIALS_HINT = (
    "leave credentials to the provider's own chain (environment, profile, workload identity); "
    "URIs end up in logs and in checkpoints"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreURI:
    """A parsed checkpoint URI.

    Args:
        scheme: ``s3``, ``gs``, ``az``, ``file`` or ``memory``; other spellings are folded into these.
        bucket: Bucket, container or memory-store name; empty for ``file``.
        prefix: Key prefix without leading or trailing slash; for ``file`` the absolute directory.
        account: Azure account, when the URI names it.
        endpoint: Azure service URL, when the URI names a host.
        options: Query options as text, undecoded into types.
    """

    scheme: str
    bucket: str
    prefix: str
    account: str | None = None
    endpoint: str | None = None
    options: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def parse(cls, uri: str | os.PathLike[str] | StoreURI) -> StoreURI:
        """Take a URI apart.

        Args:
            uri: The text of a URI, a local path that starts with ``/``, ``./`` or ``../``, a path object that names
                a local path, or a ``StoreURI``, which is returned as it is.

        Returns:
            The parts.

        Raises:
            InvalidURIError: It is neither text nor a path, the scheme is unknown, the bucket is missing, a segment of
                the prefix is empty, ``.`` or ``..``, a secret stands in the URI, or a ``pathlib`` object has swallowed
                one of its slashes.
        """
        if isinstance(uri, StoreURI):
            return uri
        text = os.fspath(uri) if isinstance(uri, os.PathLike) else uri
        if not isinstance(text, str):
            raise InvalidURIError("a checkpoint URI must be text", cause=f"got {type(text).__name__}")
        _refuse_lost_slash(text)
        if "://" not in text.partition("?")[0]:
            return _parse_path(text, is_path_object=not isinstance(uri, str))
        scheme, _, rest = text.partition("://")
        if scheme.lower() not in _SCHEMES:
            raise InvalidURIError(
                f"unknown scheme {scheme!r}",
                key=_shown(text),
                hint="use s3://, gs://, az://, abfss://, https:// (Azure), file:// or memory://",
            )
        path, _, query = rest.partition("?")
        options = _parse_options(query, shown=_shown(text))
        return _PARSERS[_SCHEMES[scheme.lower()]](path, options, _shown(text), scheme.lower())

    def at(self, prefix: str) -> StoreURI:
        """Name another place in the same bucket with the same options.

        Args:
            prefix: Key prefix without leading or trailing slash.

        Returns:
            The URI of that place.
        """
        return dataclasses.replace(self, prefix=prefix)

    def child(self, name: str) -> StoreURI:
        """Name a place below this one.

        Args:
            name: One or more key segments.

        Returns:
            The URI of ``prefix/name``.
        """
        return self.at(f"{self.prefix.rstrip('/')}/{name}" if self.prefix else name)

    def locate(self, key: str) -> StoreURI:
        """Name an object that a store's error names.

        A store that is rooted below a prefix names objects by their whole key, any other one by the key relative to
        its root.

        Args:
            key: The key in the error.

        Returns:
            The URI of the object.
        """
        is_whole = self.scheme != "file" and bool(self.prefix) and key.startswith(f"{self.prefix}/")
        return self.at(key) if is_whole else self.child(key)

    @property
    def root(self) -> str:
        """The URI without options: what may be shown, logged and stored."""
        if self.scheme == "file":
            return f"file://{self.prefix}"
        host = (
            f"{self.bucket}@{self.endpoint.removeprefix('https://').replace('.blob.', '.dfs.', 1)}"
            if self.endpoint
            else self.bucket
        )
        scheme = "abfss" if self.endpoint else self.scheme
        return f"{scheme}://{host}" + (f"/{self.prefix}" if self.prefix else "")

    def __str__(self) -> str:
        query = "&".join(f"{quote(key)}={quote(value, safe=':/@,')}" for key, value in self.options.items())
        return f"{self.root}?{query}" if query else self.root


def has_known_scheme(text: str) -> bool:
    """Tell whether a text begins as a URI that :meth:`StoreURI.parse` takes, mistakes or not.

    Args:
        text: Any text.

    Returns:
        True for ``s3://`` and its like; False for paths and for the URIs of others.
    """
    scheme, separator, _ = text.partition("?")[0].partition("://")
    return bool(separator) and scheme.lower() in _SCHEMES


def _shown(text: str) -> str:
    """Cut the parts of a raw URI that could hold a secret, so that an error may show it."""
    scheme, rest = _SCHEME_AND_REST.fullmatch(text.partition("?")[0]).groups()  # type: ignore[union-attr]  # always
    head, at, tail = rest.rpartition("@")
    # An '@' may stand in a key, and between a container and its host: abfss://container@account.dfs.core.windows.net.
    is_harmless = ":" not in head and ("/" in head or _AZURE_HOST.match(tail.partition("/")[0].lower()))
    return f"{scheme or ''}{rest}" if not at or is_harmless else f"{scheme or ''}***@{tail}"


def _refuse_lost_slash(text: str) -> None:
    head = text.partition("?")[0]
    mangled = re.match(r"^(?:.*/)?([a-zA-Z][a-zA-Z0-9]*):/(?!/)", head)
    if mangled and "://" not in head and mangled[1].lower() in _SCHEMES:
        raise InvalidURIError(
            f"{_shown(text)!r} has lost a slash",
            cause="pathlib.Path folds '//' into '/', which turns an object-store URI into a local directory",
            hint=f"pass the URI as text: '{mangled[1]}://…'",
        )


def _parse_path(text: str, *, is_path_object: bool) -> StoreURI:
    if not text or not (is_path_object or text.startswith(("/", "./", "../")) or text in (".", "..")):
        raise InvalidURIError(
            f"{_shown(text)!r} is neither a URI nor a path",
            hint="write s3://bucket/prefix, gs://…, az://… or, for a local directory, ./dir or /dir",
        )
    if "?" in text:
        raise InvalidURIError(
            "a path has no options", key=_shown(text), hint="write file:///dir?option=value, or a path without '?'"
        )
    # POSIX leaves two slashes at the front as they are.
    path = "/" + os.path.abspath(text).lstrip("/")
    _clean_prefix(path[1:], shown=path)
    return StoreURI(scheme="file", bucket="", prefix=path)


def _parse_options(query: str, *, shown: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if _SECRET_OPTION.search(name):
            raise InvalidURIError(
                f"the option {name!r} would put a secret into a URI", key=shown, hint=_CREDENTIALS_HINT
            )
        if name in options:
            raise InvalidURIError(f"the option {name!r} is given twice", key=shown, hint="keep one of them")
        if _USER_INFO.search(value):
            raise InvalidURIError(
                f"credentials stand before an '@' in the option {name!r}", key=shown, hint=_CREDENTIALS_HINT
            )
        options[name] = value
    return options


def _clean_prefix(path: str, *, shown: str) -> str:
    prefix = path.rstrip("/")
    for segment in prefix.split("/") if prefix else ():
        if segment in ("", ".", ".."):
            raise InvalidURIError(
                f"the prefix has an empty, '.' or '..' segment: {prefix!r}",
                key=shown,
                hint="write the key as the provider lists it, with single slashes",
            )
    if any(ord(char) < 32 or ord(char) == 127 for char in prefix):
        raise InvalidURIError("the prefix has a control character", key=shown, hint="remove it")
    if "?" in prefix:
        raise InvalidURIError("the prefix has a '?'", cause="options begin there", key=shown, hint="remove it")
    return prefix


def _need_bucket(bucket: str, *, shown: str, word: str) -> str:
    if not bucket:
        raise InvalidURIError(f"the {word} is missing", key=shown, hint=f"write scheme://{word}/prefix")
    if ":" in bucket or "@" in bucket:  # no provider allows either; a key that has a slash leaves no '@' here
        raise InvalidURIError(
            f"the {word} has a ':' or '@', as if credentials stood in its place", hint=_CREDENTIALS_HINT
        )
    return bucket


def _parse_bucket(path: str, options: dict[str, str], shown: str, scheme: str) -> StoreURI:
    bucket, _, prefix = path.partition("/")
    word = "container" if scheme in ("az", "azure") else "name" if scheme == "memory" else "bucket"
    return StoreURI(
        scheme=_SCHEMES[scheme],
        bucket=_need_bucket(bucket, shown=shown, word=word),
        prefix=_clean_prefix(prefix, shown=shown),
        options=options,
    )


def _parse_abfs(path: str, options: dict[str, str], shown: str, _scheme: str) -> StoreURI:
    authority, _, prefix = path.partition("/")
    container, at, host = authority.partition("@")
    if not at:
        return _parse_bucket(path, options, shown, "az")
    return StoreURI(
        scheme="az",
        bucket=_need_bucket(container, shown=shown, word="container"),
        prefix=_clean_prefix(prefix, shown=shown),
        options=options,
        **_azure_host(host, shown),
    )


def _parse_https(path: str, options: dict[str, str], shown: str, scheme: str) -> StoreURI:
    host, _, rest = path.partition("/")
    if scheme == "http" or "@" in host or not _AZURE_HOST.match(host.lower()):
        raise InvalidURIError(
            "only https://account.blob.core.windows.net/container/prefix is taken as a URL",
            key=shown,
            hint="for a custom endpoint write s3://bucket/prefix?endpoint_url=… (or gs://, az:// with account_url=…)",
        )
    container, _, prefix = unquote(rest).partition("/")
    return StoreURI(
        scheme="az",
        bucket=_need_bucket(container, shown=shown, word="container"),
        prefix=_clean_prefix(prefix, shown=shown),
        options=options,
        **_azure_host(host, shown),
    )


def _azure_host(host: str, shown: str) -> dict[str, str]:
    match = _AZURE_HOST.match(host.lower())
    if match is None:
        raise InvalidURIError(
            f"{host!r} is no Azure storage host", key=shown, hint="write container@account.dfs.core.windows.net"
        )
    # The blob endpoint serves accounts with and without hierarchical namespace; the dfs endpoint has another API.
    return {"account": match["account"], "endpoint": f"https://{match['account']}.blob.{match['suffix']}"}


def _parse_file(path: str, options: dict[str, str], shown: str, _scheme: str) -> StoreURI:
    host, slash, rest = path.partition("/")
    if host not in ("", "localhost") or not slash:
        raise InvalidURIError(
            "a file URI needs an absolute path", key=shown, hint="write file:///dir (three slashes) or ./dir"
        )
    _clean_prefix(rest, shown=shown)
    return StoreURI(scheme="file", bucket="", prefix="/" + rest.rstrip("/"), options=options)


_PARSERS = MappingProxyType(
    {
        "s3": _parse_bucket,
        "gs": _parse_bucket,
        "az": _parse_bucket,
        "memory": _parse_bucket,
        "abfs": _parse_abfs,
        "https": _parse_https,
        "file": _parse_file,
    }
)
