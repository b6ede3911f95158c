"""From URIs to stores."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError, InvalidURIError, UnknownOptionError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.stores.registry import open_bucket, open_store
from dcp_cloud.stores.s3_config import S3Config

_ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("uri", ["memory://name/a/b", "memory://name", "s3://bucket/a/b", "s3://bucket"])
def test_a_store_is_called_by_its_uri(uri: str):
    """The URI without options names the store, and nothing is sent when it is opened."""
    store = open_store(uri + "?part_size=16MiB&max_attempts=3")
    assert store.uri == uri
    assert isinstance(store, ObjectStore)


def test_a_directory_is_its_stores_root(tmp_path):
    """Paths and file URIs open the same place."""
    assert open_store(tmp_path).uri == open_store(f"file://{tmp_path}").uri == f"file://{tmp_path}"
    assert open_bucket(tmp_path).uri == "file:///"


def test_a_bucket_serves_many_prefixes(tmp_path):
    """A prefix of the bucket's store is what ``open_store`` opens."""
    for root in ("memory://many", f"file://{tmp_path}"):
        bucket = open_bucket(f"{root}/anything")
        prefix = str(tmp_path / "p") if root.startswith("file") else "p"
        PrefixStore(bucket, prefix).put("k", [memoryview(b"1")])
        assert [meta.key for meta in open_store(f"{root}/p").list()] == ["k"]
        assert PrefixStore(bucket, prefix).uri == open_store(f"{root}/p").uri


def test_an_unknown_option_names_the_nearest():
    """A misspelt option is an error, not silence."""
    with pytest.raises(UnknownOptionError, match="endpoint_url"):
        open_store("s3://bucket?endpoint_ulr=http://127.0.0.1:1")
    with pytest.raises(UnknownOptionError):
        open_store("memory://name?region=x")


def test_an_option_that_only_code_can_give_is_unknown():
    """A session factory cannot stand in a URI."""
    with pytest.raises(UnknownOptionError):
        open_store("s3://bucket?session_factory=os.system")


@pytest.mark.parametrize("config", [TransferConfig(), "text"])
@pytest.mark.parametrize("uri", ["s3://bucket", "memory://name"])
def test_another_providers_configuration_is_refused(uri: str, config: object):
    """Each scheme takes its own settings."""
    with pytest.raises(ConfigError, match=type(config).__name__):
        open_store(uri, config=config)


def test_an_argument_wins_over_the_query():
    """Argument, then query, then default."""
    config = S3Config(region="eu-west-1")
    store = open_bucket("s3://bucket?region=us-west-2&addressing_style=path", config=config)
    assert (store.client.config.region, store.client.config.addressing_style) == ("eu-west-1", "path")  # type: ignore[attr-defined]


def test_a_uri_that_names_no_place_is_refused():
    """Opening parses."""
    with pytest.raises(InvalidURIError):
        open_store("ftp://x")


_WITHOUT_SDKS = """
import sys
for sdk in ("boto3", "botocore", "google", "azure"):
    sys.modules[sdk] = None
from dcp_cloud.errors import MissingExtraError
from dcp_cloud.stores.registry import open_store
for scheme in ("s3", "gs", "az"):
    try:
        open_store(f"{scheme}://bucket/prefix")
    except MissingExtraError as error:
        print(error)
open_store("memory://name")
"""


def test_a_missing_sdk_names_its_extra():
    """Without a provider's SDK the error is the line that installs it, and the stores that need none still open."""
    run = subprocess.run([sys.executable, "-c", _WITHOUT_SDKS], check=True, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert len(lines) == 3
    for line, extra in zip(lines, ("s3", "gcs", "azure"), strict=True):
        assert f"in the clone of dcp-cloud: pip install '.[{extra}]'" in line


def test_nothing_tells_to_install_a_name_that_is_not_ours():
    """The package is not on PyPI, where anybody could take its name: whatever says how to install it means a clone."""
    pages = [*(_ROOT / "dcp_cloud").rglob("*.py"), *(_ROOT / "docs").rglob("*.md"), *_ROOT.glob("*.md")]
    assert len(pages) > 200
    told = re.compile(r"pip install (-\S+ )*[\"'`]?dcp[-_]cloud")
    assert not [str(page) for page in pages if told.search(page.read_text(encoding="utf-8"))]


def test_two_memory_stores_of_one_name_are_one():
    """Opened twice, or pickled: the same objects."""
    store = open_store("memory://shared/p")
    store.put("k", [memoryview(b"1")])
    assert open_store("memory://shared/p").get("k", max_bytes=1).data == b"1"
    assert pickle.loads(pickle.dumps(store)).get("k", max_bytes=1).data == b"1"
    assert list(open_store("memory://other").list()) == []
