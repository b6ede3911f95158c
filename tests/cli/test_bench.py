"""``dcp-cloud bench``: what it measures, says and leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from dcp_cloud import TransferConfig, open_store
from dcp_cloud.config import MIB
from dcp_cloud.errors import ConfigError, PermissionDeniedError
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing import Fault, FaultyStore, RecordingStore
from dcp_cloud.tools.bench import run_bench
from dcp_cloud.tools.bench_plan import Measurement, Setting, choose, options_for, plan_bench
from tests.cli.conftest import Ran, compare_golden

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """An empty store that stays one."""
    store = MemoryStore("bench")
    store.put("run/notes.txt", [memoryview(b"stays")])
    yield store
    assert left_in(store) == ["run/notes.txt"]
    store.delete(["run/notes.txt"])


def left_in(store: ObjectStore) -> list[str]:
    """Name everything in a store, unfinished uploads too."""
    return [meta.key for meta in store.list()] + [f"upload of {upload.key}" for upload in store.list_multiparts()]


def setting(part_mib: int, concurrency: int) -> Setting:
    return Setting(part_size_bytes=part_mib * MIB, max_concurrency=concurrency)


def measured(part_mib: int, concurrency: int, save: float, load: float) -> Measurement:
    return Measurement(setting=setting(part_mib, concurrency), save_rates=(save,), load_rates=(load,))


@pytest.mark.usefixtures("store")
def test_output_and_what_it_announces(run: Callable[..., Ran]) -> None:
    """It says what will be moved before it begins, then a table of rates, advice and an estimate; nothing is left."""
    ran = run("bench", "memory://bench/run?part_size=1MiB&max_concurrency=2", "--size", "4MiB", "--checkpoint", "1TiB")
    assert ran.code == 0, ran
    text = re.sub(r"[\d.]+ ([KMGT]i)?B/s", "1.0 GiB/s", ran.err + ran.out)
    text = re.sub(r"[\d.]+ ms \([\d.]+ to [\d.]+\)", "1.0 ms (1.0 to 1.0)", text)
    text = re.sub(r"(save|load) [\d.]+ (s|min)", r"\1 1.0 s", text)
    compare_golden("bench.txt", re.sub(r" +", " ", text))


@pytest.mark.usefixtures("store")
def test_json_has_every_rate_and_a_uri_that_opens(run: Callable[..., Ran]) -> None:
    """Scripts get each measurement, and a URI with the recommended options in place of its own."""
    uri = "memory://bench/run?part_size_bytes=8MiB&max_concurrency=1"
    document = json.loads(run("bench", uri, "--quick", "--size", "64MiB", "--json").out)
    assert document["schema"] == "dcp-cloud/bench"
    tried = [(one["part_size_bytes"] // MIB, one["max_concurrency"]) for one in document["measurements"]]
    assert tried == [(8, 1), (8, 8), (16, 1)]
    assert all(one["save_bytes_per_s"][0] > 0 < one["load_bytes_per_s"][0] for one in document["measurements"])
    (best,) = (one for one in document["measurements"] if one["recommended"])
    opened = dict(parse_qsl(urlsplit(document["recommendation"]["uri"]).query))
    transfer = TransferConfig(part_size_bytes=8 * MIB, max_concurrency=1)
    wanted = options_for(setting(best["part_size_bytes"] // MIB, best["max_concurrency"]), transfer)
    assert document["recommendation"]["options"] == wanted
    assert opened | wanted == opened
    assert run("bench", document["recommendation"]["uri"], "--quick", "--size", "1MiB").code == 0


def test_real_parts_on_a_real_server(bucket_uri: Callable[..., str], run: Callable[..., Ran]) -> None:
    """On a server with multipart uploads everything that was written is gone at the end."""
    uri = bucket_uri("moto", "run", part_size="5MiB", max_concurrency="2")
    document = json.loads(run("bench", uri, "--quick", "--size", "12MiB", "--json").out)
    assert [one["max_concurrency"] for one in document["measurements"]] == [2]
    assert document["failures"] == {}
    assert left_in(open_store(uri)) == []


def test_it_moves_what_it_announces() -> None:
    """The announced bytes and requests are what is sent, or more where no setting has to be confirmed."""
    transfer = TransferConfig(part_size_bytes=MIB, max_concurrency=4)
    recorder = RecordingStore(MemoryStore("announced"))
    plan = plan_bench(transfer, recorder.limits, size_bytes=16 * MIB)
    run_bench(recorder, plan)
    written = sum(call.size_bytes for call in recorder.calls if call.verb in ("put", "put_part"))
    read = sum(call.size_bytes for call in recorder.calls if call.verb in ("get", "get_range"))
    least_bytes = plan.moved_bytes - 2 * plan.confirmations * plan.size_bytes
    assert written in (least_bytes, plan.moved_bytes)
    assert read in (least_bytes, plan.moved_bytes)
    writes = sum(recorder.count(verb) for verb in ("put", "put_part", "create_multipart", "complete"))
    assert plan.write_requests / 4 <= writes <= plan.write_requests
    assert recorder.count("get") + recorder.count("get_range") <= plan.read_requests


@pytest.mark.parametrize("verb", ["put_part", "complete", "get_range", "list_multiparts"])
def test_after_a_failure_nothing_is_left(store: MemoryStore, verb: str) -> None:
    """Whatever request is refused, what was written before is deleted; a refused listing of uploads is no failure."""
    faulty = FaultyStore(store, [Fault(kind="refuse", verb=verb)])
    plan = plan_bench(TransferConfig(part_size_bytes=MIB, max_concurrency=2), store.limits, size_bytes=4 * MIB)
    if verb == "list_multiparts":
        run_bench(faulty, plan)
        return
    with pytest.raises(PermissionDeniedError):
        run_bench(faulty, plan)


def test_after_ctrl_c_nothing_is_left(bucket_uri: Callable[..., str]) -> None:
    """Ctrl-C in the middle of an upload ends with 130, and the parts that were stored are gone."""
    uri = bucket_uri("moto", "run", part_size="5MiB", max_concurrency="1")
    store = open_store(uri)
    process = subprocess.Popen(
        [sys.executable, "-m", "dcp_cloud.cli", "bench", uri, "--size", "1GiB"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=_ROOT, env=os.environ,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 60
        while not any(store.list_multiparts()):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("\ninterrupted\n")
    assert "Traceback" not in err
    assert left_in(store) == []


@pytest.mark.parametrize("args", [("--size", "many"), ("--size", "10KiB"), ("--checkpoint", "-1")])
def test_wrong_sizes_are_refused(store: MemoryStore, run: Callable[..., Ran], args: tuple[str, str]) -> None:
    """A size that is none, or too small to measure, is wrong use: nothing is sent."""
    ran = run("bench", "memory://bench/run", *args)
    assert (ran.code, ran.out) == (2, "")
    with pytest.raises(ConfigError, match="too few"):
        plan_bench(TransferConfig(), store.limits, size_bytes=100)


@pytest.mark.parametrize(
    ("measurements", "best"),
    [
        ([measured(16, 16, 100, 100), measured(16, 64, 108, 105)], setting(16, 16)),
        ([measured(16, 16, 100, 100), measured(16, 64, 200, 120)], setting(16, 64)),
        ([measured(16, 16, 100, 100), measured(32, 16, 197, 120), measured(16, 64, 200, 120)], setting(32, 16)),
        ([measured(16, 64, 100, 100), measured(8, 8, 99, 99)], setting(16, 64)),
    ],
)
def test_advice_is_given_where_it_is_worth_it(measurements: Sequence[Measurement], best: Setting) -> None:
    """What was configured stays unless another setting is a tenth faster; of equals the smallest is advised."""
    assert choose(measurements).setting == best


def test_only_what_differs_has_to_be_set() -> None:
    """Options say what is not in force anyway."""
    transfer = TransferConfig(part_size_bytes=16 * MIB, max_concurrency=16)
    assert options_for(setting(16, 16), transfer) == {}
    assert options_for(setting(16, 64), transfer) == {"max_concurrency": "64"}
    assert options_for(setting(32, 16), transfer) == {"part_size": "32MiB"}
