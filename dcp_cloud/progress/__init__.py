"""What a save or load tells while it works, for terminals, logs, telemetry and pictures.

Each of these is a hook for ``on_event=`` of writers and readers::

    CloudStorageWriter("s3://bucket/run/step-100", on_event=LogProgress())

A hook is a function of one event (:mod:`dcp_cloud.transfer.events`); :func:`combine` makes one of several. All can be
used from any thread and pickle as their settings, so they work in ``async_save``'s process too.
"""

from __future__ import annotations

from dcp_cloud.progress.log_lines import LogProgress
from dcp_cloud.progress.meter import Meter, Reading, combine
from dcp_cloud.progress.otel import OpenTelemetryHook
from dcp_cloud.progress.recorder import EventRecorder, Recorded, read_events
from dcp_cloud.progress.rich_bar import RichProgress
from dcp_cloud.progress.tqdm_bar import TqdmProgress

__all__ = [
    "EventRecorder",
    "LogProgress",
    "Meter",
    "OpenTelemetryHook",
    "Reading",
    "Recorded",
    "RichProgress",
    "TqdmProgress",
    "combine",
    "read_events",
]
