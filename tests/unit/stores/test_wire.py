"""The wire: bodies without copies, connections reused only when that is safe."""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import threading
import tracemalloc

import pytest
import trustme

from dcp_cloud.errors import ConfigError, InvalidRequestError, TransientError
from dcp_cloud.stores.wire import Wire, WireConfig
from tests.unit.stores.stub_server import Request, StubServer, answer, one_connection, stub_server


def _echo(request: Request) -> bytes:
    return answer(200, request.body)


@pytest.fixture
def wire():
    wire = Wire(WireConfig(connect_timeout_s=5, read_timeout_s=5))
    yield wire
    wire.close()


def _views(*pieces: bytes) -> list[memoryview]:
    return [memoryview(piece) for piece in pieces]


def _resting(wire: Wire) -> int:
    return sum(map(len, wire._idle.values()))


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (5,), (3, 0, 4), (100_000,), (704, 100_000, 20), (20_000, 20_000), (3_000_000, 1), (100,) * 1000],
)
def test_bodies_arrive_whole_and_in_order(wire: Wire, sizes: tuple[int, ...]):
    """Buffers of any number and length are one body."""
    pieces = [os.urandom(size) for size in sizes]
    with stub_server(_echo) as server:
        assert wire.request("PUT", server.url + "/x", [], _views(*pieces)).read() == b"".join(pieces)
        assert server.requests[0].headers["content-length"] == str(sum(sizes))


def test_small_pieces_leave_together(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """Headers and small buffers are one write to the socket; large ones are written from where they are."""
    sent: list[object] = []
    sendall = socket.socket.sendall
    monkeypatch.setattr(socket.socket, "sendall", lambda self, data: (sent.append(data), sendall(self, data))[1])
    big = memoryview(bytes(3_000_000))
    with stub_server(_echo) as server:
        client_port_writes = sent
        wire.request("PUT", server.url, [], _views(b"a" * 100, b"b" * 100, b"c" * 100)).read()
        assert len([data for data in client_port_writes if isinstance(data, bytearray)]) == 1
        sent.clear()
        wire.request("PUT", server.url, [], [memoryview(b"a" * 700), big, memoryview(b"b")]).read()
    ours = [data for data in sent if isinstance(data, (bytearray, memoryview))]
    assert [type(data) for data in ours] == [bytearray, memoryview, memoryview, memoryview, bytearray]
    assert all(data.obj is big.obj for data in ours if isinstance(data, memoryview))


def test_large_bodies_are_not_copied(wire: Wire):
    """Neither sending nor receiving 16 MiB takes memory of that order."""
    size = 16 * 1024 * 1024
    data = memoryview(bytes(size))
    with stub_server(lambda request: answer(200) if request.method == "PUT" else None) as server:
        wire.request("PUT", server.url, [], _views(b"warm")).read()
        server.respond = lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
        room = memoryview(bytearray(size))
        response = wire.request("GET", server.url, [])
        sender = threading.Thread(target=lambda: server._sockets[1].sendall(data))
        tracemalloc.start()
        sender.start()
        response.read_into([room[: size // 2], room[size // 2 :]])
        sender.join()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert room == data
    assert peak < 200_000


def test_a_connection_is_reused(wire: Wire):
    """Requests whose answers were read to the end go over one connection, whatever the status."""
    with stub_server(lambda request: answer(404, b"not here" if request.method == "GET" else b"")) as server:
        for method in ("GET", "PUT", "HEAD", "GET"):
            wire.request(method, server.url, []).read()
        assert server.connections == 1


def test_an_answer_may_be_read_in_pieces(wire: Wire):
    """``read`` with a bound and ``read_into`` go on where the other stopped; then the connection is free."""
    with stub_server(lambda _: answer(200, b"0123456789")) as server:
        response = wire.request("GET", server.url, [])
        room = bytearray(3)
        assert response.read(2) == b"01"
        response.read_into([memoryview(room)])
        assert (bytes(room), response.length, _resting(wire)) == (b"234", 5, 0)
        assert (response.read(), response.read(), response.length, _resting(wire)) == (b"56789", b"", 0, 1)


def test_an_answer_given_up_costs_its_connection(wire: Wire):
    """A connection with an unread rest is closed: the next answer must not begin with it."""
    with stub_server(lambda _: answer(200, b"0123456789")) as server:
        with wire.request("GET", server.url, []) as response:
            response.read(4)
        assert wire.request("GET", server.url, []).read() == b"0123456789"
        assert server.connections == 2


@pytest.mark.parametrize("how", ["content-length", "chunked", "until close"])
def test_all_framings_of_a_body_are_read(wire: Wire, how: str):
    """Bodies of known length, chunked ones and ones that end with the connection."""
    raw = {
        "content-length": answer(200, b"0123456789"),
        "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n",
        "until close": b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n0123456789",
    }[how]
    with stub_server(lambda _: raw) as server:
        assert wire.request("GET", server.url, []).read() == b"0123456789"
        assert wire.request("GET", server.url, []).read() == b"0123456789"


@pytest.mark.parametrize("how", ["read", "read bounded", "read_into", "read_into beyond"])
def test_a_short_answer_is_transient(wire: Wire, how: str):
    """A body that ends before its announced length is an error, never a short result."""
    raw = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10\r\n\r\n01234"
    if how == "read_into beyond":
        raw = answer(200, b"01234")
    with stub_server(lambda _: raw) as server:
        response = wire.request("GET", server.url, [], key="k")
        with pytest.raises(TransientError) as caught:
            if how == "read":
                response.read()
            elif how == "read bounded":
                response.read(8)
            else:
                response.read_into([memoryview(bytearray(5)), memoryview(bytearray(3))])
        assert caught.value.key == "k"
        assert _resting(wire) == 0


def test_a_reset_while_receiving_is_transient(wire: Wire):
    """A connection that breaks in the middle of a body is an error."""
    with stub_server(lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123") as server:
        response = wire.request("GET", server.url, [])
        server.hang_up()
        with pytest.raises(TransientError):
            response.read_into([memoryview(bytearray(100))])


def test_a_connection_that_died_at_rest_is_not_used(wire: Wire):
    """A server may close resting connections at any time; the next request does not notice."""
    with stub_server(_echo) as server:
        wire.request("GET", server.url, []).read()
        server.hang_up()
        _until_stale(wire)
        wire.request("PUT", server.url, [], _views(b"1"), replay=False).read()
        assert server.connections == 2


def _until_stale(wire: Wire) -> None:
    from dcp_cloud.stores.wire_connection import is_stale

    [idle] = wire._idle.values()
    while not is_stale(idle[0]):
        pass


@pytest.mark.parametrize("replay", [True, False])
def test_a_request_on_a_dying_connection_is_sent_again_if_it_may(wire: Wire, replay: bool):
    """A reused connection that ends without an answer is replaced once, unless the request must not run twice."""
    with stub_server(lambda request: None if request.connection == 0 and request.body else _echo(request)) as server:
        wire.request("GET", server.url, []).read()
        if replay:
            assert wire.request("PUT", server.url, [], _views(b"1")).read() == b"1"
        else:
            with pytest.raises(TransientError):
                wire.request("PUT", server.url, [], _views(b"1"), replay=False)
        assert len([request for request in server.requests if request.body]) == (2 if replay else 1)


def test_a_fresh_connection_is_not_tried_twice(wire: Wire):
    """A request that fails on a new connection is the caller's to repeat."""
    with stub_server(lambda _: None) as server:
        with pytest.raises(TransientError):
            wire.request("PUT", server.url, [], _views(b"1"))
        assert len(server.requests) == 1


def test_an_early_refusal_is_heard(wire: Wire):
    """A server that answers and hangs up before it took the body is understood."""

    def refuse(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 503 Slow Down\r\ncontent-length: 4\r\n\r\nslow")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 20):
            pass

    with one_connection(refuse) as port:
        response = wire.request("PUT", f"http://127.0.0.1:{port}", [], _views(bytes(8_000_000)))
        assert (response.status, response.read()) == (503, b"slow")
        wire.close()


def test_nobody_listening_is_transient(wire: Wire):
    """A refused connection is TransientError with the key."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransientError) as caught:
        wire.request("GET", f"http://127.0.0.1:{port}/secret?X-Amz-Signature=abc", [], key="a/b")
    assert caught.value.key == "a/b"
    assert "abc" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*reached over http:UserWarning")
def test_an_unknown_host_is_transient(wire: Wire):
    """Name resolution fails for moments, too."""
    with pytest.raises(TransientError):
        wire.request("GET", "http://name.invalid/", [])


@pytest.mark.parametrize("phase", ["answer", "body", "send"])
def test_silence_is_transient(phase: str):
    """A server that goes silent is given up after the time allowed."""
    wire = Wire(WireConfig(read_timeout_s=0.2))
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" if phase == "body" else b""
    done = threading.Event()

    def answer_partly(sock: socket.socket) -> None:
        sock.sendall(head)
        done.wait()

    with one_connection(answer_partly) as port:
        body = _views(bytes(50_000_000 if phase == "send" else 0))
        with pytest.raises(TransientError, match="TimeoutError"):
            wire.request("PUT", f"http://127.0.0.1:{port}", [], body).read()
        done.set()


def test_garbage_is_transient(wire: Wire):
    """What is no HTTP answer is not taken for one."""
    with stub_server(lambda _: b"no http at all\r\n\r\n") as server, pytest.raises(TransientError):
        wire.request("GET", server.url, [])


def test_other_schemes_are_refused(wire: Wire):
    """Only http and https."""
    with pytest.raises(ConfigError):
        wire.request("GET", "ftp://127.0.0.1/", [])


def test_a_header_cannot_be_smuggled(wire: Wire):
    """A line break in a header or URL is refused."""
    with stub_server(_echo) as server:
        with pytest.raises(InvalidRequestError):
            wire.request("GET", server.url, [("x", "a\r\ny: b")])
        with pytest.raises(InvalidRequestError):
            wire.request("GET", server.url + "/a b", [])


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tls_server(authority: trustme.CA):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with stub_server(_echo, tls=context) as server:
        yield server


def test_tls_with_a_trusted_certificate(authority: trustme.CA, tls_server: StubServer, tmp_path):
    """Over TLS bodies arrive too, and connections are reused."""
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    wire = Wire(WireConfig(ca_bundle=str(tmp_path / "ca.pem")))
    data = os.urandom(300_000)
    for _ in range(2):
        room = bytearray(len(data))
        wire.request("PUT", tls_server.url, [], _views(data[:10], data[10:])).read_into([memoryview(room)])
        assert room == data
    assert tls_server.connections == 1
    wire.close()


def test_an_untrusted_certificate_is_refused_for_good(tls_server: StubServer):
    """Trying again would not help, and the hint names the option."""
    with pytest.raises(InvalidRequestError) as caught:
        Wire().request("GET", tls_server.url, [])
    assert "ca_bundle" in (caught.value.hint or "")


def test_verification_can_be_switched_off(tls_server: StubServer):
    """``verify_tls=False`` takes any certificate."""
    wire = Wire(WireConfig(verify_tls=False))
    assert wire.request("PUT", tls_server.url, [], _views(b"1")).read() == b"1"
    wire.close()


def test_https_to_a_plain_port_is_refused_for_good(wire: Wire):
    """The hint says that the endpoint speaks no TLS."""
    with one_connection(lambda sock: sock.sendall(answer(400))) as port:
        with pytest.raises(InvalidRequestError) as caught:
            wire.request("GET", f"https://127.0.0.1:{port}", [])
        assert "http://" in (caught.value.hint or "")


def test_a_missing_ca_bundle_is_a_config_error(tmp_path):
    """The message names the file."""
    with pytest.raises(ConfigError, match="nowhere"):
        Wire(WireConfig(ca_bundle=str(tmp_path / "nowhere.pem"))).request("GET", "https://127.0.0.1:1/", [])


@pytest.mark.filterwarnings("ignore:.*reached over http:UserWarning")
def test_http_goes_through_a_proxy(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """A plain request asks the proxy for the whole URL, with the login of the proxy's URL."""
    with stub_server(_echo) as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert wire.request("PUT", "http://bucket.example/k?x=1", [], _views(b"1")).read() == b"1"
        [request] = proxy.requests
        assert request.target == "http://bucket.example/k?x=1"
        assert request.headers["host"] == "bucket.example"
        assert request.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"


def test_https_asks_the_proxy_for_a_tunnel(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """A TLS request begins with CONNECT; a proxy that refuses is an error."""
    with stub_server(lambda _: answer(502, connection="close")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(TransientError):
            wire.request("GET", "https://bucket.example/", [])
        assert (proxy.requests[0].method, proxy.requests[0].target) == ("CONNECT", "bucket.example:443")


def test_no_proxy_is_respected(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """Hosts in NO_PROXY are reached directly."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with stub_server(_echo) as server:
        assert wire.request("GET", server.url, []).status == 200


@pytest.mark.filterwarnings("ignore:.*reached over http:UserWarning")
def test_a_proxy_of_another_kind_is_a_config_error(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """SOCKS is refused with the way out."""
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ConfigError, match="socks5"):
        wire.request("GET", "http://bucket.example/", [])


def test_a_wire_pickles_without_its_connections(wire: Wire):
    """A copy has the configuration and connects anew."""
    with stub_server(_echo) as server:
        wire.request("GET", server.url, []).read()
        copy = pickle.loads(pickle.dumps(wire))
        assert (copy.config, _resting(copy)) == (wire.config, 0)
        copy.request("GET", server.url, []).read()
        copy.close()
        assert server.connections == 2


def test_a_child_process_does_not_use_its_parents_connections(wire: Wire, monkeypatch: pytest.MonkeyPatch):
    """After a fork both sides would speak on one socket: the child begins anew."""
    with stub_server(_echo) as server:
        wire.request("GET", server.url, []).read()
        monkeypatch.setattr(os, "getpid", lambda: -1)
        wire.request("GET", server.url, []).read()
        assert server.connections == 2


def test_the_pool_is_bounded():
    """No more connections rest than are allowed, and none for longer than allowed."""
    wire = Wire(WireConfig(max_idle=1, max_idle_s=0.0))
    with stub_server(_echo) as server:
        responses = [wire.request("PUT", server.url, [], _views(b"1")) for _ in range(3)]
        for response in responses:
            response.read()
        assert _resting(wire) == 1
        wire.request("GET", server.url, []).read()
        assert server.connections == 4
    wire.close()


def test_a_forgotten_wire_closes_its_connections():
    """Whoever drops a wire without closing it leaves no open socket behind."""
    wire = Wire()
    with stub_server(_echo) as server:
        wire.request("GET", server.url, []).read()
        [idle] = wire._idle.values()
        connection = idle[0]
        del wire
        assert connection.sock is None
