"""S3's settings: what cannot work is refused where it is written."""

from __future__ import annotations

import pickle
from types import MappingProxyType
from typing import Any

import pytest

from dcp_cloud.config import merge_options, option_fields
from dcp_cloud.errors import ConfigError, InvalidURIError
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.uri import StoreURI


def _make_session() -> Any:
    return None


def _key() -> bytes:
    return bytes(32)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint_url": "127.0.0.1:9000"},
        {"endpoint_url": "ftp://host"},
        {"endpoint_url": "https://"},
        {"endpoint_url": "http://[::1"},
        {"read_timeout_s": 0.0},
        {"connect_timeout_s": -1.0},
        {"max_pool_connections": 0},
        {"addressing_style": "host"},
        {"compatibility": "s3"},
        {"checksums": "never"},
        {"checksums": None},
        {"encryption": "kms"},
        {"profile": "p", "session_factory": _make_session},
        {"endpoint_url": "https://host", "dual_stack": True},
        {"endpoint_url": "https://host", "accelerate": True},
        {"endpoint_url": "https://host", "fips": True},
        {"proxy_url": "https://host:3128"},
        {"proxy_url": "host:3128"},
        {"expected_bucket_owner": "me"},
        {"expected_bucket_owner": "12345678901"},
        {"kms_key_id": "alias/k"},
        {"kms_key_id": "alias/k", "encryption": "AES256"},
        {"kms_key_id": "alias/k\r\nx-amz-acl: public-read", "encryption": "aws:kms"},
        {"customer_key": _key, "encryption": "AES256"},
        {"customer_key": _key, "bucket_key": True},
        {"customer_key": _key, "endpoint_url": "http://host"},
        {"storage_class": "GLACIER"},
        {"storage_class": "DEEP_ARCHIVE"},
        {"storage_class": "größer"},
        {"metadata": {"a b": "c"}},
        {"metadata": {"a": "ü"}},
        {"metadata": {"step": 100}},
        {"tags": {"step": 100}},
        {"tags": {100: "step"}},
        {"tags": {f"t{number}": "" for number in range(11)}},
        {"tags": {"": "v"}},
        {"tags": {"k" * 129: "v"}},
        {"tags": {"k": "v" * 257}},
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any]):
    """Values out of range, unknown names, contradictions and broken header fields are errors at once."""
    with pytest.raises(ConfigError):
        S3Config(**settings)


@pytest.mark.parametrize("name", ["endpoint_url", "proxy_url"])
def test_an_address_holds_no_password(name: str):
    """Settings are shown and pickled; the refusal does not repeat the password either."""
    with pytest.raises(ConfigError) as caught:
        S3Config(**{name: "http://user:topsecret@host:3128"})
    assert "topsecret" not in str(caught.value)
    with pytest.raises(InvalidURIError) as caught:
        StoreURI.parse(f"s3://bucket/pre?{name}=http://user:topsecret@host:3128")
    assert "topsecret" not in str(caught.value)


def test_settings_pickle_whatever_mapping_they_were_given():
    """Settings travel to worker processes."""
    config = S3Config(tags=MappingProxyType({"a": "b"}), metadata=MappingProxyType({"c": "d"}), customer_key=_key)
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_customer_key_is_no_option():
    """Neither functions nor mappings can stand in a URI."""
    assert not {"customer_key", "session_factory", "tags", "metadata"} & set(option_fields(S3Config))


def test_an_unset_bucket_key_is_the_buckets_choice():
    """The option has three states: yes, no, and whatever the bucket does."""
    values = [merge_options(None, S3Config, options).bucket_key for options in ({}, {"bucket_key": "no"})]
    assert values == [None, False]
