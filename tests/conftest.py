"""For all tests: a clean environment, and the package's own fixtures: servers by name, fresh buckets."""

from __future__ import annotations

import signal

import hypothesis
import pytest

from tests.support.environment import isolate

pytest_plugins = ["dcp_cloud.testing.fixtures"]

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
