"""Settings of the Google Cloud Storage store."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import partial
from types import MappingProxyType

import pytest

from dcp_cloud.config import merge_options
from dcp_cloud.errors import ConfigError, InvalidURIError, UnknownOptionError
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.stores.registry import open_store


def test_options_become_settings():
    """What can be written in a URI is read from it."""
    options = {
        "upload_method": "compose",
        "user_project": "payer",
        "kms_key_name": "projects/p/locations/l/keyRings/r/cryptoKeys/k",
        "anonymous": "true",
        "read_timeout": "2m",
    }
    assert merge_options(None, GCSConfig, options) == GCSConfig(
        upload_method="compose",
        user_project="payer",
        kms_key_name="projects/p/locations/l/keyRings/r/cryptoKeys/k",
        anonymous=True,
        read_timeout_s=120.0,
    )


@pytest.mark.parametrize("option", ["metadata=x", "uploadmethod=compose", "retries=3"])
def test_other_options_are_refused(option: str):
    """What is an argument only, or misspelt, is no option."""
    with pytest.raises(UnknownOptionError):
        open_store(f"gs://b/p?{option}")


def test_credentials_are_no_option():
    """A URI never names credentials."""
    with pytest.raises(InvalidURIError):
        open_store("gs://b/p?credentials_factory=x")


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint_url": "localhost:1"},
        {"upload_method": "resumable"},
        {"connect_timeout_s": 0},
        {"max_pool_connections": 0},
        {"anonymous": True, "credentials_factory": object},
        {"user_project": "a\r\nx-evil: 1"},
        {"storage_class": "é"},
        {"metadata": {"a b": "1"}},
        {"metadata": {"a": "1\n"}},
        {"metadata": {"step": 100}},
        {"metadata": {100: "step"}},
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, object]):
    """A setting that cannot work, or would break out of its header field, is refused where it is given."""
    with pytest.raises(ConfigError):
        GCSConfig(**settings)  # type: ignore[arg-type]


def test_settings_travel_and_are_shown_without_the_factory():
    """A factory may hold a secret: it is pickled with the settings, but not shown."""
    config = GCSConfig(metadata=MappingProxyType({"run": "7"}), credentials_factory=partial(dict, key="secret"))
    copy = pickle.loads(pickle.dumps(config))
    assert (copy.metadata, copy.credentials_factory()) == ({"run": "7"}, {"key": "secret"})
    assert "secret" not in repr(config)


def test_both_ways_of_uploading_state_their_limits():
    """The limits are those of the configured way."""
    xml, pieces = open_store("gs://b"), open_store("gs://b/p?upload_method=compose")
    assert isinstance(pieces, PrefixStore)
    assert (xml.limits.min_part_bytes, pieces.limits.min_part_bytes) == (5 * 1024**2, 1)
    assert xml.limits.max_parts == pieces.limits.max_parts == 10_000
    assert pieces.uri == "gs://b/p"


def test_importing_the_package_imports_no_sdk():
    """Google's libraries are loaded when a gs:// URI is opened, not before."""
    code = "import sys, dcp_cloud, dcp_cloud.stores.registry, dcp_cloud.stores.gcs_config; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [
        name for name in done.stdout.split() if name.startswith(("google.auth", "google.cloud", "google_crc32c"))
    ]
