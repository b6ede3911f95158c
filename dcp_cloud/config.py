"""Settings: frozen records with checked values, and the one rule by which text becomes a value.

A setting can be given as an argument, as a query option of the URI, or left to its default. An option is called like
the field; the unit suffix of a field (``_bytes``, ``_s``) may be left out because the value carries its unit:
``part_size=64MiB``, ``connect_timeout=5s``. Fields of an argument that differ from their default win over the query.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from dcp_cloud.errors import ConfigError, UnknownOptionError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_UNITS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|)\s*$", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

ConfigT = TypeVar("ConfigT")


def _require(ok: bool, name: str, value: object, rule: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not ok:
        raise ConfigError(f"{name}={value!r} is out of range", hint=f"it must be {rule}")


def _require_whole(record: object, *names: str) -> None:
    """Refuse 16e6 and "64MiB" here; as lengths of memory they would fail much later."""
    for name in names:
        value = getattr(record, name)
        if not isinstance(value, int):
            raise ConfigError(f"{name}={value!r} is no whole number", hint="write for example 64 * 1024**2")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """How long to believe that a failure will pass.

    Args:
        max_attempts: Tries of one request in all, at least 1.
        base_delay_s: Upper bound of the first pause, seconds; it doubles with each try. The pause itself is drawn
            evenly between zero and the bound (full jitter), so that many ranks do not come back together.
        max_delay_s: Upper bound of any pause, seconds. A longer ``Retry-After`` of the provider is honoured.
        total_timeout_s: Time for all tries of one request, seconds.
    """

    max_attempts: int = 10
    base_delay_s: float = 0.1
    max_delay_s: float = 20.0
    total_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        _require_whole(self, "max_attempts")
        _require(self.max_attempts >= 1, "max_attempts", self.max_attempts, "at least 1")
        _require(self.base_delay_s >= 0, "base_delay_s", self.base_delay_s, "not negative")
        _require(self.max_delay_s >= self.base_delay_s, "max_delay_s", self.max_delay_s, "at least base_delay_s")
        _require(self.total_timeout_s > 0, "total_timeout_s", self.total_timeout_s, "above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferConfig:
    """How bytes are cut and how many move at once.

    Args:
        part_size_bytes: Length of an upload part and of the largest ranged read, bytes. Raised for objects that
            would otherwise need more parts than the provider takes. 16 MiB lies in the 8–16 MB that the providers'
            performance guides recommend.
        max_concurrency: Most requests in flight at once, per save or load of one rank. On a link of 30 ms to the
            first byte and 90 MB/s per connection, 1 GiB takes a quarter less time with 32 than with 16, for the same
            CPU (docs/performance.md).
        max_inflight_bytes: Bound for all bytes that are not the caller's own memory: staging copies of accelerator
            tensors, temporaries of converting loads, serialised objects. Saves and loads that run at the same time in
            one process share it: one waits while what all of them hold would exceed its own bound.
        max_gap_bytes: Largest stretch of unwanted bytes that a ranged read carries along to save a request. None: a
            load takes what one connection brings in the time that a request needs for its first byte, as it saw when
            it read ``.metadata``.
        stall_warning_s: Time without a request that succeeds after which a save or load logs a warning and emits a
            ``Stalled`` event that say what it waits for, seconds; 0 for never.
        retry: How long to believe that a failure will pass.
    """

    part_size_bytes: int = 16 * MIB
    max_concurrency: int = 32
    max_inflight_bytes: int = 512 * MIB
    max_gap_bytes: int | None = None
    stall_warning_s: float = 60.0
    retry: RetryConfig = RetryConfig()

    def __post_init__(self) -> None:
        _require_whole(self, "part_size_bytes", "max_concurrency", "max_inflight_bytes")
        _require(self.part_size_bytes >= 1, "part_size_bytes", self.part_size_bytes, "at least 1")
        _require(1 <= self.max_concurrency <= 1024, "max_concurrency", self.max_concurrency, "1 to 1024")
        _require(self.max_inflight_bytes >= 1, "max_inflight_bytes", self.max_inflight_bytes, "at least 1")
        _require(self.stall_warning_s >= 0, "stall_warning_s", self.stall_warning_s, "not negative")
        if self.max_gap_bytes is not None:
            _require_whole(self, "max_gap_bytes")
            _require(self.max_gap_bytes >= 0, "max_gap_bytes", self.max_gap_bytes, "not negative")

    @property
    def gap_bytes(self) -> int:
        """``max_gap_bytes``, or 512 KiB where nothing was set or measured."""
        return 512 * KIB if self.max_gap_bytes is None else self.max_gap_bytes


def parse_bytes(text: str) -> int:
    """Read a size: ``67108864``, ``64MiB``, ``64MB`` and ``64m`` are the same.

    Args:
        text: The size. Units are powers of 1024, with or without ``i``.

    Returns:
        The size in bytes.

    Raises:
        ConfigError: The text is no size.
    """
    match = _SIZE.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is no size", hint="write for example 64MiB, 1GiB or a number of bytes")
    return int(Decimal(match[1]) * _UNITS[match[2].lower()])  # a float would round long numbers


def parse_seconds(text: str) -> float:
    """Read a duration: ``1.5``, ``1.5s``, ``200ms``, ``2m``, ``1h``.

    Args:
        text: The duration; a bare number is in seconds.

    Returns:
        Seconds.

    Raises:
        ConfigError: The text is no duration.
    """
    match = _DURATION.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is no duration", hint="write for example 30s, 200ms, 5m")
    return float(match[1]) * _SECONDS[match[2].lower()]


def option_fields(config_type: type[Any]) -> dict[str, str]:
    """List the option names that a settings record understands.

    Args:
        config_type: A settings dataclass.

    Returns:
        Option name to field name; a field with a unit suffix answers to both spellings.
    """
    names: dict[str, str] = {}
    for field in dataclasses.fields(config_type):
        if field.metadata.get("argument_only") or field.name == "retry":
            continue
        names[field.name] = field.name
        for suffix in ("_bytes", "_s"):
            if field.name.endswith(suffix):
                names[field.name.removesuffix(suffix)] = field.name
    return names


def merge_options(argument: ConfigT | None, config_type: type[ConfigT], options: Mapping[str, str]) -> ConfigT:
    """Put an argument over query options over defaults.

    Args:
        argument: Settings that the caller passed, or None.
        config_type: The settings dataclass.
        options: Query options; those that belong to other records are passed over.

    Returns:
        The settings in force.

    Raises:
        ConfigError: A value cannot be read or is out of range.
    """
    base = argument if argument is not None else config_type()
    hints = typing.get_type_hints(config_type)
    defaults = config_type()
    changes: dict[str, Any] = {}
    for option, name in option_fields(config_type).items():
        if option in options and getattr(base, name) == getattr(defaults, name):
            changes[name] = _convert(option, name, options[option], hints[name])
    if isinstance(base, TransferConfig):
        changes["retry"] = merge_options(base.retry, RetryConfig, options)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]  # ConfigT is a dataclass in every call


def check_options(options: Mapping[str, str], config_types: Iterable[type[Any]], *, where: str) -> None:
    """Refuse options that nobody reads.

    Args:
        options: Query options of a URI.
        config_types: The records that read them.
        where: The URI without options, for the message.

    Raises:
        UnknownOptionError: An option is unknown; the message names the nearest valid ones.
    """
    valid = sorted({name for config_type in config_types for name in option_fields(config_type)})
    for option in options:
        if option not in valid:
            near = difflib.get_close_matches(option, valid, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"valid options: {', '.join(valid)}"
            raise UnknownOptionError(f"unknown option {option!r}", key=where, hint=hint)


def _convert(option: str, name: str, text: str, hint: Any) -> Any:  # noqa: ANN401 - any field type
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if text not in choices:
            raise ConfigError(f"{option}={text!r} is not valid", hint=f"use one of {', '.join(map(str, choices))}")
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ConfigError(f"{option}={text!r} is neither true nor false", hint="write true or false")
        return text.lower() in ("true", "1", "yes")
    if hint is int:
        return _read(option, text, parse_bytes) if name.endswith("_bytes") else _number(option, text, int)
    if hint is float:
        return _read(option, text, parse_seconds) if name.endswith("_s") else _number(option, text, float)
    return text


def _read(option: str, text: str, parse: Callable[[str], ConfigT]) -> ConfigT:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error.message}", hint=error.hint) from None


def _number(option: str, text: str, kind: type[int | float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{option}={text!r} is no number", hint="write digits only") from None
