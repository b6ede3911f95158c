"""What a torch without experimental checkpointers is answered; runs with every version."""

from __future__ import annotations

import sys

import pytest

from dcp_cloud.errors import MissingExtraError


def test_an_older_torch_is_told_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no experimental checkpointers, importing ours is an ImportError that says so."""
    for name in [name for name in sys.modules if name.startswith("dcp_cloud.experimental")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch.distributed.checkpoint._experimental.barriers", None)
    with pytest.raises(MissingExtraError, match="Update torch"):
        __import__("dcp_cloud.experimental.writer")
    with pytest.raises(MissingExtraError):
        __import__("dcp_cloud.experimental").experimental.make_cloud_sync_checkpointer  # noqa: B018
