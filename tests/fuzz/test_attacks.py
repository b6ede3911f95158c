from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import fractions
import io
import json
import pathlib
import subprocess
import sys
import types
import uuid
import zipfile
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
from tests.fuzz.value_attacks import VALUE_ATTACKS

_ROOT = pathlib.Path(__file__).resolve().parents[2]
URI = "memory://somewhere/run"
REFUSED = {"UnsafeCheckpointError", "CorruptCheckpointError"}


def test_no_attack_by_metadata_gets_through() -> None:
    """Every entry of the lists ends in a typed error, in a process with 1 GiB to spare that survives all of them."""
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
    values = {f"{door}: {name}" for door in ("value", "tensor") for name in VALUE_ATTACKS}
    assert outcomes.keys() == ATTACKS.keys() | values
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
        np.array(["a", "bc"]),
        np.arange(3, dtype=">i4"),
        np.array(["2026-01-01"], dtype="M8[ns]"),
        np.zeros((2, 3), order="F"),
        np.datetime64("2026-01-01"),
        bytearray(b"bytes"),
        frozenset({(1, 2)}),
        range(10**9),
        collections.deque([1, 2], maxlen=3),
        dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc),
        dt.timedelta(seconds=1),
        decimal.Decimal("1.5"),
        fractions.Fraction(1, 3),
        pathlib.PurePosixPath("/a/b"),
        types.SimpleNamespace(a=1),
        argparse.Namespace(a=1),
        uuid.UUID(int=7),
        float,
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}",
)
def test_plain_values_pass(value: Any) -> None:
    """Numbers, texts, containers, arrays and torch's own values are loaded without being asked about."""
    found = loaded(saved(value))
    assert type(found) is type(value)
    assert np.array_equal(found, value) if isinstance(value, np.ndarray) else found == value


def test_the_state_of_numpys_generators_passes() -> None:
    """What a job keeps to resume its random numbers is loaded without being asked about."""
    legacy, current = np.random.RandomState(3), np.random.default_rng(3)
    found = loaded(saved((legacy.get_state(), current.bit_generator.state)))
    again, also = np.random.RandomState(4), np.random.default_rng(4)
    again.set_state(found[0])
    also.bit_generator.state = found[1]
    assert again.random() == legacy.random()
    assert also.random() == current.random()


_SHARED = tuple(range(500))


@pytest.mark.parametrize(
    "value",
    [
        collections.Counter("aab"),
        collections.OrderedDict(a=1),
        collections.defaultdict(list, {1: [2]}),
        [torch.Size([2]), torch.device("cpu"), torch.bfloat16, torch.strided],
        torch.nn.Linear(2, 2).state_dict(),
        [torch.nn.Parameter(torch.ones(2)), torch.zeros(2, dtype=torch.uint16), torch.empty(2, device="meta")],
        [_SHARED] * 1000,  # what honest values repeat costs nothing in the bounds that stop dishonest ones
        {_SHARED: 1},
        [{"a": dt.date(2026, 1, 1)}, {"b": pathlib.Path("/a")}],
    ],
    ids=lambda value: f"{type(value).__name__} {value!r:.30}",
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_honest_containers_pass(value: Any, protocol: int) -> None:
    """What torch's planner would take apart, but nests in values, is let through as it is."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol)
    check_value(buffer.getvalue(), key="k", label="'value'")


def test_a_bomb_in_a_value_is_not_unpacked() -> None:
    """An archive that claims more than its own length is refused; torch never compresses."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"N" * (64 << 20))
    with pytest.raises(errors.CorruptCheckpointError, match="claim"):
        check_value(buffer.getvalue(), key="k", label="'value'")
