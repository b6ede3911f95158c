from __future__ import annotations

import os
import pickle
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dcp_cloud.errors import InvalidURIError
from dcp_cloud.uri import StoreURI

AZURE = {"account": "acct", "endpoint": "https://acct.blob.core.windows.net"}


def uri(scheme: str, bucket: str, prefix: str, **rest: object) -> StoreURI:
    return StoreURI(scheme=scheme, bucket=bucket, prefix=prefix, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/run/step-1", uri("s3", "b", "run/step-1")),
        ("s3://b", uri("s3", "b", "")),
        ("s3://b/", uri("s3", "b", "")),
        ("s3://b/p/", uri("s3", "b", "p")),
        ("S3://b/P", uri("s3", "b", "P")),
        ("s3://b/a%20b+c d#e@f", uri("s3", "b", "a%20b+c d#e@f")),
        ("s3://b/run:1/file:/x", uri("s3", "b", "run:1/file:/x")),
        ("gs://b/p", uri("gs", "b", "p")),
        ("gcs://b/p", uri("gs", "b", "p")),
        ("az://c/p", uri("az", "c", "p")),
        ("azure://c/p", uri("az", "c", "p")),
        ("abfs://c/p", uri("az", "c", "p")),
        ("abfs://c@acct.dfs.core.windows.net/p/q", uri("az", "c", "p/q", **AZURE)),
        ("abfss://c@ACCT.dfs.core.windows.net/p", uri("az", "c", "p", **AZURE)),
        ("abfss://c@acct.blob.core.windows.net", uri("az", "c", "", **AZURE)),
        ("https://acct.blob.core.windows.net/c/p%20q", uri("az", "c", "p q", **AZURE)),
        ("https://acct.dfs.core.windows.net/c", uri("az", "c", "", **AZURE)),
        ("memory://name/p", uri("memory", "name", "p")),
        ("file:///dir/sub", uri("file", "", "/dir/sub")),
        ("file:///dir/", uri("file", "", "/dir")),
        ("file:///", uri("file", "", "/")),
        ("file://localhost/dir", uri("file", "", "/dir")),
        ("/dir/./sub/../other", uri("file", "", "/dir/other")),
        ("//dir", uri("file", "", "/dir")),
    ],
)
def test_every_form_is_understood(text: str, expected: StoreURI) -> None:
    """All spellings of a place fold into one record, which prints as a URI of the same place."""
    parsed = StoreURI.parse(text)
    assert parsed == expected
    assert StoreURI.parse(str(parsed)) == parsed
    assert StoreURI.parse(parsed.root) == parsed


@pytest.mark.parametrize("text", [".", "..", "./a/b", "../a"])
def test_relative_paths_are_local_directories(text: str) -> None:
    """What starts like a path is one, below the working directory of now."""
    assert StoreURI.parse(text) == uri("file", "", os.path.abspath(text))


def test_path_objects_are_local_directories() -> None:
    """A path object needs no dot before it, since it cannot be a URI."""
    assert StoreURI.parse(Path("run/step")) == uri("file", "", os.path.abspath("run/step"))
    assert StoreURI.parse(PurePosixPath("/x")) == uri("file", "", "/x")


def test_a_parsed_uri_is_returned_as_it_is() -> None:
    """Functions that take URIs take parsed ones."""
    parsed = StoreURI.parse("s3://b/p?region=eu")
    assert StoreURI.parse(parsed) is parsed


def test_options_are_decoded_once() -> None:
    """Options follow the rules of a query; a value may hold what a URI could not."""
    parsed = StoreURI.parse("s3://b/p?endpoint_url=http://127.0.0.1:9000&a=x%26y%3Dz&empty=&flag")
    assert parsed.options == {"endpoint_url": "http://127.0.0.1:9000", "a": "x&y=z", "empty": "", "flag": ""}
    assert parsed.root == "s3://b/p"
    assert StoreURI.parse(str(parsed)) == parsed


names = st.text(st.characters(min_codepoint=33, exclude_characters="/?@:\x7f", exclude_categories=["Cs"]), min_size=1)
segments = names.filter(lambda name: name not in (".", ".."))
prefixes = st.lists(segments, max_size=4).map("/".join)
options = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])), max_size=3
)
parsed_uris = st.one_of(
    st.builds(uri, st.sampled_from(["s3", "gs", "az", "memory"]), names, prefixes, options=options),
    st.builds(
        lambda container, prefix, options: uri("az", container, prefix, options=options, **AZURE),
        names,
        prefixes,
        options,
    ),
    st.builds(lambda prefix, options: uri("file", "", f"/{prefix}", options=options), prefixes, options),
)


@given(parsed_uris)
def test_what_is_printed_is_what_is_parsed(given_uri: StoreURI) -> None:
    """Text and record say the same: parse and print are each other's inverse, and pickling changes nothing."""
    try:
        parsed = StoreURI.parse(str(given_uri))
    except InvalidURIError as error:
        assume("secret" not in str(error))  # an option that hypothesis happened to name like one
        assume("credentials" not in str(error))
        raise
    assert parsed == given_uri
    assert hash(parsed) == hash(given_uri)
    assert pickle.loads(pickle.dumps(parsed)) == parsed


@given(st.text() | st.text().map(lambda text: "s3://" + text) | st.text().map(lambda text: "abfss://c@" + text))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Whatever the text, the answer is a record that prints as itself, or an error of the package."""
    try:
        parsed = StoreURI.parse(text)
        printed = str(parsed)
    except (InvalidURIError, UnicodeEncodeError):
        return
    assert StoreURI.parse(printed) == parsed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither a URI nor a path"),
        ("run/step-1", r"neither a URI nor a path.*\./dir"),
        ("bucket", "neither a URI nor a path"),
        ("ftp://b/p", "unknown scheme 'ftp'.*s3://"),
        ("s3a://b/p", "unknown scheme 's3a'"),
        ("s3:///p", "the bucket is missing"),
        ("s3://", "the bucket is missing"),
        ("az:///p", "the container is missing"),
        ("abfss://@acct.dfs.core.windows.net/p", "the container is missing"),
        ("memory:///p", "the name is missing"),
        ("https://acct.blob.core.windows.net", "the container is missing"),
        ("s3://b//p", "empty, '.' or '..' segment"),
        ("s3://b/a//p", "single slashes"),
        ("s3://b/a/../p", "'..' segment"),
        ("s3://b/./p", "'.' or '..' segment"),
        ("file:///a/../b", "'..' segment"),
        ("https://acct.blob.core.windows.net/c/%2E%2E/p", "'..' segment"),
        ("https://acct.blob.core.windows.net/c/a%3Fb", r"a '\?'"),
        ("s3://b/a\nb", "control character"),
        ("s3://b/a\x7f", "control character"),
        ("/a\nb", "control character"),
        ("file://host/dir", "absolute path.*three slashes"),
        ("file://dir", "absolute path"),
        ("http://127.0.0.1:9000/b/p", "only https://account.blob.core.windows.net.*endpoint_url"),
        ("https://storage.googleapis.com/b/p", "only https://account"),
        ("abfss://c@example.com/p", "no Azure storage host"),
        ("s3://b/p?region=a&region=b", "'region' is given twice"),
        ("./dir?part_size=1MiB", r"a path has no options.*file:///dir\?option"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    """What cannot name a place is refused with the reason and the way out."""
    with pytest.raises(InvalidURIError, match=f"(?s){reason}"):
        StoreURI.parse(text)


@pytest.mark.parametrize("value", [None, 3, b"s3://b/p", ["s3://b"]])
def test_what_is_no_text_is_refused(value: object) -> None:
    """Bytes, numbers and None are no URIs, and the error is one of the package."""
    with pytest.raises(InvalidURIError, match=f"must be text.*{type(value).__name__}"):
        StoreURI.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "lost",
    [Path("s3://bucket/p"), Path("gs://b"), Path("/work") / "s3:/b/p", "s3:/b/p", "abfss:/c@a/p", Path("file:///dir")],
)
def test_a_path_object_that_swallowed_a_slash_is_refused(lost: object) -> None:
    """``Path("s3://b")`` would be a local directory called ``s3:``; nobody wants to save there."""
    with pytest.raises(InvalidURIError, match=r"lost a slash.*pathlib"):
        StoreURI.parse(lost)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAID:hunter2@bucket/p",
        "s3://AKIAID:hun/hunter2@bucket/p",
        "s3://AKIAID:hun//hunter2@bucket/p",
        "s3://hunter2@bucket/p",
        "gs://user:hunter2@bucket",
        "az://account:hunter2@container/p",
        "memory://u:hunter2@name",
        "abfss://container:hunter2@acct.dfs.core.windows.net/p",
        "https://user:hunter2@acct.blob.core.windows.net/c",
        "http://user:hunter2@127.0.0.1:9000/b",
        "ftp://user:hunter2@host/p",
        "file://user:hunter2@host/p",
        "s3:/AKIAID:hunter2@bucket/p",
        "AKIAID:hunter2@bucket/p",
        "bucket/p?sig=hunter2",
        "./p?sig=hunter2",
        "bucket/p?u=http://x&sig=hunter2",
        "s3://b/p?aws_secret_access_key=hunter2",
        "s3://b/p?X-Amz-Signature=hunter2",
        "s3://b/p?session_token=hunter2",
        "az://c/p?account_key=hunter2",
        "az://c/p?sas_token=hunter2",
        "az://c/p?connection_string=AccountKey%3Dhunter2",
        "https://acct.blob.core.windows.net/c/p?sv=2024&se=x&sig=hunter2",
        "s3://b//p?password=hunter2",
        "s3://b/p?endpoint_url=http://user:hunter2@host",
        "s3://b/p?endpoint_url=http://user:hun/hunter2@host",
        "s3://b/p?region=a&region=hunter2",
    ],
)
def test_secrets_are_refused_and_never_shown(text: str) -> None:
    """A URI with a credential is an error, and the error does not hold it: URIs and errors end up in logs."""
    with pytest.raises(InvalidURIError) as caught:
        StoreURI.parse(text)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__dict__)


def test_harmless_ats_are_shown() -> None:
    """What only looks like a credential stays in the message, so that the user finds the mistake."""
    for text in ("s3://bucket/run@v2//x", "abfss://container@acct.dfs.core.windows.net//x"):
        with pytest.raises(InvalidURIError) as caught:
            StoreURI.parse(text)
        assert text in str(caught.value)


def test_children_and_neighbours_keep_the_rest() -> None:
    """Other places of the same bucket have the same options."""
    root = StoreURI.parse("s3://b?region=eu")
    run = root.child("run")
    assert str(run) == "s3://b/run?region=eu"
    assert str(run.child("step-1")) == "s3://b/run/step-1?region=eu"
    assert str(run.at("other")) == "s3://b/other?region=eu"
    assert StoreURI.parse("file:///").child("d").root == "file:///d"
    assert StoreURI.parse("/a").child("d").root == "file:///a/d"


def test_a_uri_can_be_a_key() -> None:
    """Frozen records can be put into sets and dictionaries."""
    assert len({StoreURI.parse("s3://b/p?a=1"), StoreURI.parse("s3://b/p?a=1"), StoreURI.parse("s3://b/q")}) == 2
