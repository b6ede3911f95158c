"""What ``dcp-cloud bench`` measures, and what it concludes from it. Pure: nothing is sent here."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dcp_cloud.config import KIB, MIB, TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.stores.base import StoreLimits
from dcp_cloud.transfer.ranges import upload_part_bytes

SMALL_BYTES = 4 * KIB
"""Length of the objects by which latency is measured, bytes."""
DEFAULT_SIZE_BYTES = 512 * MIB
QUICK_SIZE_BYTES = 128 * MIB

_PART_SIZES = (8 * MIB, 16 * MIB, 32 * MIB)
_CONCURRENCIES = (8, 16, 32, 64)
# Rates of the same settings differ by so much from minute to minute.
_NOISE = 1.05
# Less than this is not worth a setting.
_WORTHWHILE = 1.10


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Setting:
    """What is tried.

    Args:
        part_size_bytes: Length of parts and of ranged reads, bytes.
        max_concurrency: Requests in flight at most.
    """

    part_size_bytes: int
    max_concurrency: int

    @property
    def inflight_bytes(self) -> int:
        """Bytes of all requests that may be in flight."""
        return self.part_size_bytes * self.max_concurrency

    def apply(self, transfer: TransferConfig) -> TransferConfig:
        """Give a configuration with this setting.

        Args:
            transfer: The rest of the configuration.
        """
        return replace(transfer, part_size_bytes=self.part_size_bytes, max_concurrency=self.max_concurrency)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """What will be measured.

    Args:
        transfer: The configuration that was asked for; its part length and concurrency are tried first.
        size_bytes: Bytes that each measurement moves, and memory that it takes.
        settings: What to try, the configured setting first.
        confirmations: Measurements more of the configured and of the best setting, in turns.
        small_objects: Small objects to write and read, one after the other.
        limits: The store's limits.
    """

    transfer: TransferConfig
    size_bytes: int
    settings: tuple[Setting, ...]
    confirmations: int
    small_objects: int
    limits: StoreLimits

    @property
    def configured(self) -> Setting:
        """The setting that was asked for, or the default."""
        return self.settings[0]

    @property
    def measurements(self) -> int:
        """How many times ``size_bytes`` are written and read at most."""
        return len(self.settings) + 2 * self.confirmations

    @property
    def moved_bytes(self) -> int:
        """Bytes that are written at most; as many are read."""
        return self.measurements * self.size_bytes + self.small_objects * SMALL_BYTES

    @property
    def write_requests(self) -> int:
        """Requests that write, at most and without repetitions."""
        parts = [-(-self.size_bytes // self._part_bytes(setting)) for setting in self.settings]
        # To begin and to complete an upload are requests too.
        return sum(parts) + 2 * self.confirmations * max(parts) + 2 * self.measurements + self.small_objects

    @property
    def read_requests(self) -> int:
        """Requests that read, at most and without repetitions."""
        # A load that is short for its concurrency is cut into smaller ranges than parts.
        ranges = [
            max(-(-self.size_bytes // setting.part_size_bytes), setting.max_concurrency) for setting in self.settings
        ]
        return sum(ranges) + 2 * self.confirmations * max(ranges) + self.small_objects

    def _part_bytes(self, setting: Setting) -> int:
        return upload_part_bytes(self.size_bytes, part_size_bytes=setting.part_size_bytes, limits=self.limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a setting brought.

    Args:
        setting: Which.
        save_rates: Bytes per second of each upload.
        load_rates: Bytes per second of each download.
    """

    setting: Setting
    save_rates: tuple[float, ...]
    load_rates: tuple[float, ...]

    @property
    def save_rate(self) -> float:
        """Median of the uploads, bytes per second."""
        return statistics.median(self.save_rates)

    @property
    def load_rate(self) -> float:
        """Median of the downloads, bytes per second."""
        return statistics.median(self.load_rates)

    def gain_over(self, other: Measurement) -> float:
        """Compare with another setting: above 1 is faster. One set of options serves saves and loads alike.

        Args:
            other: Measurement of the other setting.

        Returns:
            The geometric mean of the two ratios.
        """
        return float(((self.save_rate / other.save_rate) * (self.load_rate / other.load_rate)) ** 0.5)


def plan_bench(
    transfer: TransferConfig, limits: StoreLimits, *, size_bytes: int | None = None, quick: bool = False
) -> BenchPlan:
    """Decide what to measure.

    Args:
        transfer: The configuration that was asked for.
        limits: The store's limits.
        size_bytes: Bytes that each measurement moves; None for a default.
        quick: Whether to be content with fewer settings, each measured once.

    Returns:
        The plan.

    Raises:
        ConfigError: The size is too small to measure anything.
    """
    size_bytes = size_bytes if size_bytes is not None else QUICK_SIZE_BYTES if quick else DEFAULT_SIZE_BYTES
    if size_bytes < MIB:
        raise ConfigError(f"{size_bytes} bytes are too few to measure a rate", hint="--size takes 1MiB and more")
    configured = Setting(part_size_bytes=transfer.part_size_bytes, max_concurrency=transfer.max_concurrency)
    others = sorted(set(_grid(configured, limits, size_bytes)) - {configured})
    if quick:
        others = [one for one in others if one.part_size_bytes <= 16 * MIB and one.max_concurrency <= 32]
    return BenchPlan(
        transfer=transfer,
        size_bytes=size_bytes,
        settings=(configured, *others),
        confirmations=0 if quick or not others else 2,
        small_objects=8 if quick else 20,
        limits=limits,
    )


def choose(measurements: Sequence[Measurement]) -> Measurement:
    """Choose the setting to recommend.

    Args:
        measurements: All of them, the configured setting first.

    Returns:
        Of those that are as fast as the fastest the one with the least in flight; the configured one unless another
        is faster by more than a tenth.
    """
    configured = measurements[0]
    fastest = max(measurements, key=lambda one: one.gain_over(configured))
    equals = [one for one in measurements if fastest.gain_over(one) <= _NOISE]
    best = min(equals, key=lambda one: (one.setting.inflight_bytes, one.setting.max_concurrency))
    return best if best.gain_over(configured) >= _WORTHWHILE else configured


def options_for(setting: Setting, transfer: TransferConfig) -> Mapping[str, str]:
    """Write what has to be set for a setting.

    Args:
        setting: The setting.
        transfer: What is in force without it.

    Returns:
        Options of the URI: name to value; empty if nothing has to be set.
    """
    options: dict[str, str] = {}
    if setting.part_size_bytes != transfer.part_size_bytes:
        options["part_size"] = _size(setting.part_size_bytes)
    if setting.max_concurrency != transfer.max_concurrency:
        options["max_concurrency"] = str(setting.max_concurrency)
    return options


def _grid(configured: Setting, limits: StoreLimits, size_bytes: int) -> Iterator[Setting]:
    for part_size_bytes in {*_PART_SIZES, configured.part_size_bytes}:
        if not limits.min_part_bytes <= part_size_bytes <= limits.max_part_bytes:
            continue
        for max_concurrency in {*_CONCURRENCIES, configured.max_concurrency}:
            setting = Setting(part_size_bytes=part_size_bytes, max_concurrency=max_concurrency)
            if setting.inflight_bytes <= size_bytes:  # with fewer parts than requests there is nothing to see
                yield setting


def _size(nbytes: int) -> str:
    return f"{nbytes // MIB}MiB" if nbytes % MIB == 0 else str(nbytes)
