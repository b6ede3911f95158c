from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_cloud.config import (
    GIB,
    KIB,
    MIB,
    RetryConfig,
    TransferConfig,
    check_options,
    merge_options,
    option_fields,
    parse_bytes,
    parse_seconds,
)
from dcp_cloud.errors import ConfigError, UnknownOptionError
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.uri import StoreURI


@dataclass(frozen=True, slots=True, kw_only=True)
class EveryKind:
    """A field of every kind that settings have."""

    text: str | None = None
    flag: bool = True
    count: int | None = None
    ratio: float = 0.5
    length_bytes: int | None = None
    pause_s: float = 1.0
    mode: Literal["fast", "safe"] = "fast"
    tier: Literal["hot", "cold"] | None = None
    secret: object = field(default=None, metadata={"argument_only": True})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("67108864", 64 * MIB),
        ("64MiB", 64 * MIB),
        ("64MB", 64 * MIB),
        ("64m", 64 * MIB),
        (" 64 mib ", 64 * MIB),
        ("1.5k", 1536),
        ("1k", KIB),
        ("2GiB", 2 * GIB),
        ("1t", 1024 * GIB),
        ("5b", 5),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_read_in_every_spelling(text: str, expected: int) -> None:
    """Units are powers of 1024 with or without the i, and no digit is rounded away."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e6", "64 megabytes", "1,5k", "0x10", "inf", "1 2", "1.k"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """The message says how a size is written."""
    with pytest.raises(ConfigError, match=r"is no size.*64MiB"):
        parse_bytes(text)


def test_a_size_of_any_length_is_a_number() -> None:
    """A slip of the keyboard is out of range, not an error of the float that it does not fit into."""
    assert parse_bytes("9" * 400) > 2**1000


@given(st.integers(0, 2**60))
def test_a_size_in_digits_is_itself(size: int) -> None:
    """A plain number is a number of bytes, exactly."""
    assert parse_bytes(str(size)) == size


@pytest.mark.parametrize(
    ("text", "expected"), [("1.5", 1.5), ("1.5s", 1.5), ("200ms", 0.2), ("2m", 120), ("1h", 3600), (" 3 S ", 3)]
)
def test_durations_are_read_in_every_spelling(text: str, expected: float) -> None:
    """A bare number is in seconds."""
    assert parse_seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1d", "1 minute", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """The message says how a duration is written."""
    with pytest.raises(ConfigError, match=r"is no duration.*200ms"):
        parse_seconds(text)


def test_options_become_values_of_their_fields() -> None:
    """Each kind of field has its own reading, with or without the unit's suffix in the name."""
    read = merge_options(
        None,
        EveryKind,
        {
            "text": "None",
            "flag": "No",
            "count": "12",
            "ratio": "0.25",
            "length": "4KiB",
            "pause_s": "200ms",
            "mode": "safe",
            "tier": "cold",
            "somebody_elses": "option",
        },
    )
    assert read == EveryKind(
        text="None", flag=False, count=12, ratio=0.25, length_bytes=4096, pause_s=0.2, mode="safe", tier="cold"
    )


@pytest.mark.parametrize(
    ("option", "text", "reason"),
    [
        ("flag", "maybe", "flag='maybe' is neither true nor false"),
        ("count", "many", "count='many' is no number"),
        ("count", "1.5", "count='1.5' is no number"),
        ("ratio", "half", "ratio='half' is no number"),
        ("length", "big", "length: 'big' is no size"),
        ("length_bytes", "big", "length_bytes: 'big' is no size"),
        ("pause", "long", "pause: 'long' is no duration"),
        ("mode", "slow", "mode='slow' is not valid.*fast, safe"),
        ("tier", "warm", "tier='warm' is not valid.*hot, cold"),
    ],
)
def test_a_value_that_cannot_be_read_names_its_option(option: str, text: str, reason: str) -> None:
    """The user learns which option is wrong and what it could be."""
    with pytest.raises(ConfigError, match=f"(?i){reason}"):
        merge_options(None, EveryKind, {option: text})


def test_the_argument_wins_over_the_query_over_the_default() -> None:
    """What the caller set is kept; what is left at its default comes from the query."""
    argument = TransferConfig(max_concurrency=3, retry=RetryConfig(max_attempts=7))
    options = {"max_concurrency": "9", "part_size": "1MiB", "max_attempts": "2", "base_delay": "1s"}
    merged = merge_options(argument, TransferConfig, options)
    assert (merged.max_concurrency, merged.part_size_bytes) == (3, MIB)
    assert (merged.retry.max_attempts, merged.retry.base_delay_s) == (7, 1.0)
    assert merged.max_gap_bytes == TransferConfig().max_gap_bytes
    assert merge_options(None, TransferConfig, {}) == TransferConfig()


def test_values_out_of_range_are_refused_wherever_they_come_from() -> None:
    """A query is checked like an argument."""
    with pytest.raises(ConfigError, match=r"max_concurrency=0 is out of range.*1 to 1024"):
        merge_options(None, TransferConfig, {"max_concurrency": "0"})
    with pytest.raises(ConfigError, match="max_attempts=0 is out of range"):
        merge_options(None, TransferConfig, {"max_attempts": "0"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"part_size_bytes": 0},
        {"part_size_bytes": 16e6},
        {"part_size_bytes": "64MiB"},
        {"max_concurrency": 0},
        {"max_concurrency": 1025},
        {"max_concurrency": None},
        {"max_inflight_bytes": 0},
        {"max_gap_bytes": -1},
        {"max_gap_bytes": 0.5},
    ],
)
def test_a_transfer_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    """Lengths are whole numbers in range; what is not would fail on a thread, much later."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TransferConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": 2.5},
        {"base_delay_s": -1},
        {"base_delay_s": float("nan")},
        {"max_delay_s": 0.01},
        {"total_timeout_s": 0},
        {"total_timeout_s": float("nan")},
    ],
)
def test_retries_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    """No attempt, negative pauses and no time are mistakes."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RetryConfig(**wrong)  # type: ignore[arg-type]


def test_the_edges_of_the_ranges_are_allowed() -> None:
    """Bounds are inclusive."""
    TransferConfig(part_size_bytes=1, max_concurrency=1024, max_inflight_bytes=1, max_gap_bytes=0)
    RetryConfig(max_attempts=1, base_delay_s=0, max_delay_s=0)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("part_sise", "did you mean part_size"),
        ("max_concurency", "did you mean max_concurrency"),
        ("regoin", "did you mean region"),
        ("endpoint", "did you mean endpoint_url"),
        ("zzz", "valid options: .*max_attempts.*region"),
    ],
)
def test_an_unknown_option_names_the_nearest(option: str, hint: str) -> None:
    """A misspelt option is an error that says what was meant, never silently nothing."""
    with pytest.raises(UnknownOptionError, match=f"(?i)unknown option '{option}'.*{hint}") as caught:
        check_options({option: "1"}, [TransferConfig, RetryConfig, S3Config], where="s3://b/p")
    assert caught.value.key == "s3://b/p"


def test_what_only_an_argument_can_say_is_no_option() -> None:
    """Callables and secrets cannot stand in a URI."""
    assert "secret" not in option_fields(EveryKind)
    assert "retry" not in option_fields(TransferConfig)
    with pytest.raises(UnknownOptionError):
        check_options({"credential_factory": "x"}, [AzureConfig], where="az://c")


@pytest.mark.parametrize("config_type", [TransferConfig, RetryConfig, S3Config, AzureConfig])
def test_every_option_passes_the_uri(config_type: type) -> None:
    """No option is called like a secret, which a URI would refuse; and none has two meanings."""
    for option in option_fields(config_type):
        assert StoreURI.parse(f"s3://b?{option}=1").options == {option: "1"}
        check_options({option: "1"}, [config_type], where="s3://b")


@pytest.mark.parametrize("record", [TransferConfig(), RetryConfig(), S3Config(), AzureConfig()])
def test_settings_are_frozen_and_pickle(record: object) -> None:
    """Settings go to other processes and change for nobody."""
    assert pickle.loads(pickle.dumps(record)) == record
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, 1)  # type: ignore[arg-type]
