"""Many small saves and loads under faults that a seed decides; each seed can be run again by itself."""

from __future__ import annotations

import random
import zlib

import pytest

from dcp_cloud.config import RetryConfig
from dcp_cloud.errors import DcpCloudError
from dcp_cloud.testing.wrappers import Fault, FaultyStore
from dcp_cloud.transfer.download import Check, Downloader, Target
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader
from tests.unit.transfer.tools import config, content, keys, memory_store, random_bytes, transfer_threads

_PASSING = (
    Fault("fail", chance=0.08, times=None),
    # An upload whose creation took effect and was answered with an error has no name that anybody knows.
    *(
        Fault("fail", verb=verb, when="after", chance=0.08, times=None)
        for verb in ("put*", "complete", "abort", "delete")
    ),
    Fault("throttle", chance=0.04, times=None, retry_after_s=0),
    Fault("truncate", chance=0.08, times=None),
)
_LASTING = (
    Fault("refuse", verb="put*", chance=0.02, times=None),
    Fault("refuse", verb="complete", when="after", chance=0.05, times=None),
    Fault("refuse", verb="get_range", chance=0.02, times=None),
)
_FLIPS = (Fault("flip_bit", verb="get_range", chance=0.05, times=None),)


@pytest.fixture(autouse=True)
def _short_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcp_cloud.transfer.download._MIN_FETCH_BYTES", 1)


@pytest.mark.parametrize("seed", range(60))
def test_bytes_are_right_or_the_error_is_typed(seed: int) -> None:
    """Under any faults a save stores all or nothing and a load brings the right bytes, or says why it did not."""
    draw = random.Random(seed)
    settings = config(
        part=draw.randint(1, 40),
        concurrency=draw.randint(1, 6),
        inflight=draw.choice([1, 50, 1 << 20]),
        gap=draw.randint(0, 20),
        retry=RetryConfig(max_attempts=12, base_delay_s=0, max_delay_s=0),
    )
    data = {f"o/{number}": random_bytes(draw.randint(0, 300), seed + number) for number in range(draw.randint(1, 5))}
    store = memory_store(max_put_bytes=draw.choice([0, 20, 1000]))
    if not store.limits.max_put_bytes:
        data = {key: piece for key, piece in data.items() if piece}
    lasting = _LASTING if seed % 3 == 0 else ()
    faulty = FaultyStore(store, [*_PASSING, *lasting, *_FLIPS], seed=seed)

    saved = save(faulty, data, settings, draw)
    assert list(store.list_multiparts()) == []
    assert {key: content(store, key) for key in keys(store)} == (data if saved else {})
    assert saved or lasting, "what passes must not fail a save"
    assert transfer_threads() == []
    if saved:
        assert load(faulty, data, settings, draw) or lasting or any(s.fault in _FLIPS for s in faulty.strikes)
    assert transfer_threads() == []


def save(store: FaultyStore, data: dict[str, bytes], settings, draw: random.Random) -> bool:
    try:
        with Uploader(store, settings) as uploader:
            for key, piece in data.items():
                upload = uploader.begin(key, expected_bytes=len(piece))
                rest = piece
                while rest:
                    length = draw.randint(1, 60)
                    head, rest = rest[:length], rest[length:]
                    uploader.budget.acquire(len(head), own_bytes=upload.open_bytes)
                    upload.append(Span.of(head, on_sent=uploader.budget.release))
                upload.end()
            uploader.finish()
    except DcpCloudError:
        return False
    return True


def load(store: FaultyStore, data: dict[str, bytes], settings, draw: random.Random) -> bool:
    """Load random stretches, with their checksums."""
    targets: list[Target] = []
    expected: list[bytes] = []
    got: dict[int, bytes] = {}
    for key, piece in data.items():
        for _ in range(draw.randint(0, 8) if piece else 0):
            start = draw.randrange(len(piece))
            wanted = piece[start : start + draw.randint(1, 80)]
            number = len(targets)
            targets.append(
                Target(
                    key=key,
                    start=start,
                    nbytes=len(wanted),
                    memory=memoryview(bytearray(len(wanted))) if draw.random() < 0.5 else None,
                    checks=(Check(0, len(wanted), zlib.crc32(wanted)),),
                    done=lambda memory, number=number: got.__setitem__(number, bytes(memory)),
                )
            )
            expected.append(wanted)
    try:
        Downloader(store, settings).run(targets)
    except DcpCloudError:
        return False
    assert got == dict(enumerate(expected))
    return True
