"""Every test of this floor ends soon and leaves no thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.transfer.tools import transfer_threads


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A hang is what these tests look for: it must not take the suite's long timeout."""
    for item in items:
        if "unit/transfer" in item.path.as_posix() and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert transfer_threads() == []
