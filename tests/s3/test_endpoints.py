"""Whereto requests go: the SDK chooses Amazon's hosts, and bodies go there like everything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import ObjectStore
from tests.s3.stub import AmazonProxy, operation
from tests.s3.verbs import DATA, call_all

Open = Callable[..., ObjectStore]

_ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/my-point"


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "my-bucket.s3.us-west-2.amazonaws.com"),
        ({"region": "eu-west-1"}, "my-bucket.s3.eu-west-1.amazonaws.com"),
        ({"region": "cn-north-1"}, "my-bucket.s3.cn-north-1.amazonaws.com.cn"),
        ({"dual_stack": True}, "my-bucket.s3.dualstack.us-west-2.amazonaws.com"),
        ({"fips": True}, "my-bucket.s3-fips.us-west-2.amazonaws.com"),
        ({"fips": True, "dual_stack": True}, "my-bucket.s3-fips.dualstack.us-west-2.amazonaws.com"),
        ({"accelerate": True}, "my-bucket.s3-accelerate.amazonaws.com"),
        ({"accelerate": True, "dual_stack": True}, "my-bucket.s3-accelerate.dualstack.amazonaws.com"),
        ({"access_point": _ACCESS_POINT}, "my-point-123456789012.s3-accesspoint.eu-west-1.amazonaws.com"),
        (
            {"access_point": "my-point-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias"},
            "my-point-hrzrlukc5m36ft7okagglf3gmwluquse1b-s3alias.s3.us-west-2.amazonaws.com",
        ),
        (
            {"access_point": "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"},
            "mfzwi23gnjvgw.mrap.accesspoint.s3-global.amazonaws.com",
        ),
    ],
)
def test_all_requests_go_to_the_host_that_amazon_documents(
    proxy: AmazonProxy, open_s3: Open, settings: dict[str, object], host: str
):
    """Bodies take the wire and the rest the SDK's own way, both through the proxy, to one host."""
    call_all(open_s3("s3://my-bucket/pre", proxy_url=proxy.url, **settings))
    assert {request.headers["host"] for request in proxy.requests} == {host}
    puts = [request for request in proxy.requests if operation(request) == "put_object"]
    assert [(put.target, put.body) for put in puts] == [("/pre/k", bytes(DATA))]


def test_the_sdks_own_configuration_counts(proxy: AmazonProxy, open_s3: Open, monkeypatch: pytest.MonkeyPatch):
    """What the SDK's environment variables say holds where a setting says nothing; so do its proxies."""
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    call_all(open_s3("s3://my-bucket/pre"))
    assert {request.headers["host"] for request in proxy.requests} == {
        "my-bucket.s3-fips.dualstack.us-west-2.amazonaws.com"
    }


def test_the_region_of_an_access_point_is_signed_for(proxy: AmazonProxy, open_s3: Open):
    """The ARN names the region; the one of the environment does not count."""
    open_s3("s3://my-bucket/pre", proxy_url=proxy.url, access_point=_ACCESS_POINT).put("k", [DATA])
    assert "/eu-west-1/s3/aws4_request" in proxy.requests[0].headers["authorization"]


def test_what_the_sdk_cannot_combine_is_a_config_error(proxy: AmazonProxy, open_s3: Open):
    """The SDK knows which endpoints there are; its refusal is ours, and nothing is sent."""
    store = open_s3("s3://my-bucket/pre", proxy_url=proxy.url, accelerate=True, fips=True)
    with pytest.raises(ConfigError):
        store.put("k", [DATA])
    assert proxy.requests == []
