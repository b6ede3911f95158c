"""Spans and metrics of OpenTelemetry."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from dcp_cloud.errors import MissingExtraError
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, RequestDone, Stalled, TransferEvent

_NAME = "dcp_cloud"


class OpenTelemetryHook:
    """Records a span for each save, load and commit, and counts bytes, requests, repetitions and stalls.

    =================================== ============ =============================================
    instrument                          unit         attributes besides the given ones
    =================================== ============ =============================================
    span ``dcp_cloud.save`` …                        ``dcp_cloud.bytes``, ``dcp_cloud.items``
    counter ``dcp_cloud.bytes``         By           ``phase``
    histogram ``dcp_cloud.request``     s            ``verb``, ``error`` (its type) if it failed
    counter ``dcp_cloud.retries``       {request}    ``verb``, ``error``
    counter ``dcp_cloud.stalls``        {stall}      ``phase``
    =================================== ============ =============================================

    Keys of objects are no attributes: there are too many of them.

    Args:
        attributes: Attributes of everything that is recorded: rank, job, step.
        tracer_provider: Where spans go; without one, the process's.
        meter_provider: Where metrics go; without one, the process's.

    Raises:
        MissingExtraError: OpenTelemetry's API is not installed.
    """

    def __init__(
        self,
        *,
        attributes: Mapping[str, str | int] | None = None,
        tracer_provider: Any = None,  # noqa: ANN401 - the package is an extra
        meter_provider: Any = None,  # noqa: ANN401
    ) -> None:
        try:
            from opentelemetry import metrics, trace  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "OpenTelemetryHook needs the package 'opentelemetry-api'",
                hint="install it in the clone of dcp-cloud: pip install '.[otel]'",
            ) from error
        self._attributes = dict(attributes or {})
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self._bytes = meter.create_counter("dcp_cloud.bytes", unit="By", description="Payload that has arrived")
        self._requests = meter.create_histogram("dcp_cloud.request", unit="s", description="Requests to the store")
        self._retries = meter.create_counter("dcp_cloud.retries", unit="{request}", description="Repeated requests")
        self._stalls = meter.create_counter("dcp_cloud.stalls", unit="{stall}", description="Times without progress")
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[int, int]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        # Providers belong to a process; the copy in another one asks that process for its own.
        return _otel_hook, (self._attributes,)

    def __call__(self, event: TransferEvent) -> None:
        """Record an event."""
        if isinstance(event, RequestDone):
            where: dict[str, str | int] = {**self._attributes, "verb": event.verb}
            if event.error is not None:
                where["error"] = event.error
            self._requests.record(event.duration_s, where)
            if event.will_retry:
                self._retries.add(1, where)
        elif isinstance(event, Progressed):
            self._bytes.add(event.size_bytes, {**self._attributes, "phase": event.phase})
            self._count(event.phase, size_bytes=event.size_bytes)
        elif isinstance(event, Stalled):
            self._stalls.add(1, {**self._attributes, "phase": event.phase})
        elif isinstance(event, Planned):
            self._count(event.phase, items=event.items)
        elif isinstance(event, PhaseDone):
            self._end(event)

    def _count(self, phase: str, *, size_bytes: int = 0, items: int = 0) -> None:
        with self._lock:
            before = self._sums.get(phase, (0, 0))
            self._sums[phase] = (before[0] + size_bytes, before[1] + items)

    def _end(self, event: PhaseDone) -> None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        with self._lock:
            size_bytes, items = self._sums.pop(event.phase, (0, 0))
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            f"dcp_cloud.{event.phase}",
            start_time=ended_ns - round(event.duration_s * 1e9),
            attributes={**self._attributes, "dcp_cloud.bytes": size_bytes, "dcp_cloud.items": items},
        )
        if event.error is not None:
            span.set_status(Status(StatusCode.ERROR, event.error))
        span.end(ended_ns)


def _otel_hook(attributes: Mapping[str, str | int]) -> OpenTelemetryHook:
    return OpenTelemetryHook(attributes=attributes)
