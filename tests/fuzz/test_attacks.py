from __future__ import annotations

import io
import json
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, errors
from dcp_cloud.format.values import check_value
from dcp_cloud.stores.memory import MemoryStore
from tests.fuzz.attacks import ATTACKS

_ROOT = Path(__file__).resolve().parents[2]
URI = "memory://somewhere/run"
REFUSED = {"UnsafeCheckpointError", "CorruptCheckpointError"}


def test_no_attack_by_metadata_gets_through() -> None:
    """Every entry of the list ends in a typed error, in a process with 1 GiB to spare that survives all of them."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.attacks"],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    outcomes = json.loads(ended.stdout)
    assert outcomes.keys() == ATTACKS.keys()
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in REFUSED} == {}
    assert "pwned" not in ended.stdout + ended.stderr


class Harmless:
    """A type of somebody's own."""

    def __init__(self) -> None:
        self.a = 1


def saved(value: object) -> MemoryStore:
    store = MemoryStore(uuid.uuid4().hex)
    dcp.save({"value": value}, storage_writer=CloudStorageWriter(URI, store=store))
    return store


def loaded(store: MemoryStore, **options: Any) -> Any:
    state: dict[str, Any] = {"value": None}
    try:
        dcp.load(state, storage_reader=CloudStorageReader(URI, store=store, **options))
    except CheckpointException as error:
        raise error.failures[0][0] from error
    return state["value"]


class Evil:
    """Calls print when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("pwned",)


def test_a_value_that_would_run_code_is_not_opened(capsys: pytest.CaptureFixture[str]) -> None:
    """torch's planner opens values without restriction; it does not get one that names a function."""
    store = saved([1, Evil()])
    with pytest.raises(errors.UnsafeCheckpointError, match="print") as caught:
        loaded(store)
    assert "'value'" in str(caught.value)
    assert "unsafe_values=True" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_the_user_may_open_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """With unsafe_values the planner gets what is stored, as with torch's own reader."""
    loaded(saved([1, Evil()]), unsafe_values=True)
    assert capsys.readouterr().out == "pwned\n"


def test_the_user_may_allow_a_type() -> None:
    """A type of somebody's own is refused by name, and loaded with allow_global."""
    store = saved([Harmless()])
    with pytest.raises(errors.UnsafeCheckpointError, match=f"{__name__}.Harmless"):
        loaded(store)
    (found,) = loaded(store, allow_global=lambda _module, name: Harmless if name == "Harmless" else None)
    assert found.a == 1


@pytest.mark.parametrize(
    "value",
    [
        7,
        1.5,
        "text",
        None,
        b"bytes",
        [1, (2, {"a": {3}})],
        np.arange(4),
        np.float32(1.5),
        torch.float16,
        torch.Size([2]),
    ],
    ids=repr,
)
def test_plain_values_pass(value: Any) -> None:
    """Numbers, texts, containers, arrays and torch's own values are loaded without being asked about."""
    found = loaded(saved(value))
    assert type(found) is type(value)
    assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def test_a_bomb_in_a_value_is_not_unpacked() -> None:
    """An archive that claims more than its own length is refused; torch never compresses."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * (64 << 20))
    with pytest.raises(errors.CorruptCheckpointError, match="claim"):
        check_value(buffer.getvalue(), key="k", label="'value'")
