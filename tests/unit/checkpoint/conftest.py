"""Ways to be interrupted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dcp_cloud.stores.local import LocalStore


@pytest.fixture
def crash_put(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalStore, str], None]:
    """Begin a write to a local store and crash before it is published: its temporary file stays."""

    def crash(store: LocalStore, key: str) -> None:
        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("dcp_cloud.stores.local._publish", die)
            patched.setattr("dcp_cloud.stores.local.os.unlink", die)
            with pytest.raises(KeyboardInterrupt):
                store.put(key, [memoryview(b"half")])

    return crash
