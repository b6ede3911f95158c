"""The proxy itself: it carries what it is given, strikes what it is told to, and leaves nothing."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from dcp_cloud.errors import ConfigError, DcpCloudError
from dcp_cloud.testing import FaultProxy, NetworkFault
from tests.unit.stores.stub_server import StubServer, answer, stub_server


@pytest.fixture
def server() -> Iterator[StubServer]:
    """A server that answers with the body that it got, or with its target."""
    with stub_server(lambda request: answer(200, request.body or request.target.encode(), etag='"e"')) as running:
        yield running


def ask(proxy: FaultProxy, target: str = "/b/k", body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port, timeout=10)
    try:
        connection.request("PUT" if body is not None else "GET", target, body, headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_what_is_signed_arrives_as_it_was_sent(server: StubServer) -> None:
    """Target, Host and header fields are the client's own, and a chunked body arrives whole."""
    with FaultProxy(server.url) as proxy:
        host = urlsplit(proxy.url).netloc
        assert ask(proxy, "/a%2Fb//c?x=%20&y", b"body", **{"X-Amz-Date": "now"}) == (200, b"body")
        (request,) = server.requests
        assert (request.target, request.headers["host"]) == ("/a%2Fb//c?x=%20&y", host)
        assert request.headers["x-amz-date"] == "now"
        connection = http.client.HTTPConnection(host)
        connection.request("PUT", "/k", iter([b"one", b"two"]), encode_chunked=True)
        assert connection.getresponse().read() == b"onetwo"
        connection.close()


def test_a_client_that_expects_a_sign_gets_it(server: StubServer) -> None:
    """``Expect: 100-continue``, as the AWS SDK sends it, is answered before the body is read."""
    with FaultProxy(server.url) as proxy, socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port)) as sock:
        sock.sendall(b"PUT /k HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"abc")
        assert b" 200 " in sock.recv(1000)


def test_a_rule_strikes_what_it_names(server: StubServer) -> None:
    """Method, path, query and header patterns, the n-th match and the number of times decide together."""
    rule = NetworkFault(
        "status", method="P*", path="*.distcp", query={"partNumber": "*", "x": None}, header={"token": "old"},
        status=503, nth=2, times=2,
    )  # fmt: skip
    with FaultProxy(server.url, [rule]) as proxy:
        for target, token in (("/a.distcp?partNumber=1&x", "old"), ("/a.distcp?partNumber=1", "new"), ("/a", "old")):
            assert ask(proxy, target, b"b", token=token)[0] == 200
        statuses = [ask(proxy, "/a%2Edistcp?partNumber=7", b"b", token="old")[0] for _ in range(5)]
        assert statuses == [200, 503, 503, 200, 200]
        assert [str(strike) for strike in proxy.strikes] == [
            "#5 PUT /a.distcp?partNumber=7: status of the request (fault 0)",
            "#6 PUT /a.distcp?partNumber=7: status of the request (fault 0)",
        ]
        assert len(server.requests) == 6


def test_chance_follows_the_seed_and_not_the_order(server: StubServer) -> None:
    """The same requests in another order meet the same faults, and the replay line makes such a proxy again."""

    def struck(seed: int, names: list[int]) -> set[str]:
        with FaultProxy(server.url, [NetworkFault("status", times=None, chance=0.3)], seed=seed) as proxy:
            for name in names:
                ask(proxy, f"/k-{name}")
            assert f"seed={seed})" in proxy.replay
            again = eval(proxy.replay, {"FaultProxy": FaultProxy, "NetworkFault": NetworkFault})
            assert again.schedule.faults == proxy.schedule.faults
            return {strike.path for strike in proxy.strikes}

    first = struck(1, list(range(30)))
    assert 0 < len(first) < 30
    assert struck(1, list(reversed(range(30)))) == first
    assert struck(2, list(range(30))) != first


def test_secrets_stay_out_of_what_is_recorded(server: StubServer) -> None:
    """Signatures in a query and tokens in header fields are in no text of the proxy."""
    with FaultProxy(server.url, [NetworkFault("drop")]) as proxy:
        with pytest.raises(http.client.RemoteDisconnected):
            ask(proxy, "/c/k?sig=SECRET&comp=block&partNumber=3", authorization="Bearer SECRET")
        assert "SECRET" not in f"{proxy.exchanges} {proxy.replay} {proxy.strikes[0]}"
        assert proxy.strikes[0].query == ("sig", "comp=block", "partNumber=3")


@pytest.mark.parametrize(
    ("header", "path", "says"),
    [
        ({}, "/b/k", b"<Code>ExpiredToken</Code>"),
        ({}, "/storage/v1/b/x/o/k", b'"reason": "ExpiredToken"'),
        ({"x-ms-version": "2021-12-02"}, "/account/c/k", b"<Code>ExpiredToken</Code>"),
    ],
)
def test_errors_have_the_providers_shape(server: StubServer, header: dict[str, str], path: str, says: bytes) -> None:
    """The code stands where the provider's own client looks for it, and Retry-After beside it."""
    with FaultProxy(server.url, [NetworkFault("status", status=403, code="ExpiredToken", retry_after_s=7)]) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(proxy.url).port)
        connection.request("GET", path, headers=header)
        reply = connection.getresponse()
        assert (reply.status, reply.headers["Retry-After"]) == (403, "7")
        assert reply.headers["x-ms-error-code"] == ("ExpiredToken" if header else None)
        assert says in reply.read()
        connection.close()


def test_the_server_is_gone_and_comes_back(server: StubServer) -> None:
    """While it is gone the kernel refuses, on the same port that answers afterwards."""
    with FaultProxy(server.url, [NetworkFault("refuse")]) as proxy:
        url = proxy.url
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(proxy)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", urlsplit(url).port))
        proxy.release()
        _until(lambda: ask(proxy)[0] == 200)
        assert proxy.url == url


def test_what_stalls_goes_on_when_it_is_released(server: StubServer) -> None:
    """A stalled request has not reached the server; after the release it is carried over and answered."""
    with FaultProxy(server.url, [NetworkFault("stall")]) as proxy:
        got: list[tuple[int, bytes]] = []
        client = threading.Thread(target=lambda: got.append(ask(proxy)))
        client.start()
        _until(lambda: bool(proxy.strikes))
        assert server.requests == []
        proxy.release()
        client.join()
        assert got == [(200, b"/b/k")]


def test_a_drip_is_slow_and_whole(server: StubServer) -> None:
    """A dripping answer arrives, byte for byte."""
    fault = NetworkFault("drip", side="response", bytes_per_s=100_000)
    with FaultProxy(server.url, [fault]) as proxy:
        body = bytes(range(256)) * 40
        assert ask(proxy, body=body) == (200, body)


def test_changed_bodies_have_the_lengths_that_they_say(server: StubServer) -> None:
    """A truncated body is complete by its own account; a flipped one differs in one bit; a duplicate arrives twice."""
    with FaultProxy(server.url) as proxy:
        proxy.set_faults(NetworkFault("truncate"))
        assert ask(proxy, body=b"12345678") == (200, b"1234")
        proxy.set_faults(NetworkFault("flip_bit", side="response"))
        _, flipped = ask(proxy, body=b"12345678")
        assert sum((a ^ b).bit_count() for a, b in zip(flipped, b"12345678", strict=True)) == 1
        proxy.set_faults(NetworkFault("duplicate"))
        count = len(server.requests)
        assert ask(proxy, body=b"x") == (200, b"x")
        assert len(server.requests) == count + 2


def test_closing_ends_what_hangs(server: StubServer) -> None:
    """Leaving the block ends stalled clients, threads and sockets."""
    with FaultProxy(server.url, [NetworkFault("stall", times=None)]) as proxy:
        sock = socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port))
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        _until(lambda: bool(proxy.strikes))
    assert sock.recv(1) == b""
    sock.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "fault-proxy"]


def test_wrong_use_is_told() -> None:
    """What cannot be is refused where it is written."""
    for url in ("https://127.0.0.1:1", "ftp://x", "127.0.0.1:80"):
        with pytest.raises(ConfigError):
            FaultProxy(url)
    with pytest.raises(ConfigError, match="requests"):
        NetworkFault("duplicate", side="response")
    with pytest.raises(DcpCloudError, match="not running"):
        _ = FaultProxy("http://127.0.0.1:1").url


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        try:
            if condition():
                return
        except OSError:
            pass
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")
