"""Fixtures for all tests: a clean environment, servers by name, fresh buckets."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from dcp_cloud.testing import ObjectServer
from tests.support.environment import isolate
from tests.support.servers import ServerPool

# No deadline: the time of one example says more about the machine's other work than about the code.
# Another seed each time, in CI too.
hypothesis.settings.register_profile("any", deadline=None, print_blob=True, derandomize=False, max_examples=100)
hypothesis.settings.load_profile("any")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for what would take too long every time."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption("--soak-s", type=float, default=5.0, help="seconds that each server is kept busy in tests/soak")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and hear Ctrl-C."""
    # Started in the background of a script, Python ignores SIGINT, and so do its children, to whom tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out, visibly, unless they are asked for."""
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees credentials or configuration of the machine it runs on."""
    isolate(monkeypatch)


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], ObjectServer]]:
    """Give a running server by name (see ``tests.support.servers``); it is started once and shared by all tests."""
    pool = ServerPool()
    yield pool.get
    pool.close()


@pytest.fixture
def bucket_uri(servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Make a fresh bucket: ``bucket_uri("moto", "prefix", part_size="5MiB") -> uri``.

    Sets the environment in which the URI can be opened; the bucket is emptied and deleted after the test.
    """
    made: list[tuple[ObjectServer, str]] = []

    def make(server_name: str, prefix: str = "run", **options: str) -> str:
        server = servers(server_name)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        server.create_bucket(bucket)
        made.append((server, bucket))
        return server.uri(bucket, prefix, **options)

    yield make
    for server, bucket in made:
        server.delete_bucket(bucket)
