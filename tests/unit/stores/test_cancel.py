"""Cancel scopes: what waits in them ends when they are cancelled, from any thread, through real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from dcp_cloud.errors import TransientError
from dcp_cloud.stores.cancel import CancelScope, current_scope
from dcp_cloud.stores.wire import Wire, WireConfig


@pytest.fixture
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """A server that takes a request and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    arrived, over = threading.Event(), threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            arrived.set()
            over.wait()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/", arrived
    over.set()
    thread.join()
    listener.close()


def test_scopes_nest_and_end() -> None:
    """The innermost scope is the current one; a scope is cancelled with the one around it, not the other way."""
    outer = CancelScope()
    with outer:
        inner = CancelScope(current_scope())
        with inner:
            assert current_scope() is inner
        assert current_scope() is outer
    assert current_scope() is None
    inner.cancel()
    assert inner.is_cancelled
    assert not outer.is_cancelled
    other = CancelScope(outer)
    outer.cancel()
    assert other.is_cancelled


def test_cancelling_breaks_off_inner_scopes_and_latecomers() -> None:
    """What is added to an inner scope ends with the outer one; what comes after the cancelling ends at once."""
    broken: list[str] = []
    outer = CancelScope()
    inner = CancelScope(outer)
    early, gone, late = (lambda name=name: broken.append(name) for name in ("early", "gone", "late"))
    inner.add(early)
    inner.add(gone)
    inner.remove(gone)
    outer.cancel()
    assert broken == ["early"]
    inner.add(late)
    assert "late" in broken


def test_a_request_that_nobody_answers_is_broken_off(silent_server: tuple[str, threading.Event]) -> None:
    """A thread that waits for an answer gets a TransientError as soon as its scope is cancelled."""
    url, arrived = silent_server
    scope, outcome = CancelScope(), []
    wire = Wire(WireConfig(read_timeout_s=120))

    def ask() -> None:
        with scope:
            try:
                wire.request("GET", url, [])
            except TransientError as error:
                outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert arrived.wait(10)
    scope.cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert len(outcome) == 1
