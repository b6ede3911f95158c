"""Progress adapters, fed by real saves and loads."""

from __future__ import annotations

import io
import logging
import pickle
import uuid

import pytest
import torch
import torch.distributed.checkpoint as dcp
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from rich.console import Console
from rich.progress import Progress
from torch.distributed.checkpoint.api import CheckpointException

from dcp_cloud import CloudStorageReader, CloudStorageWriter, RetryConfig, TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.progress import (
    EventRecorder,
    LogProgress,
    Meter,
    OpenTelemetryHook,
    RichProgress,
    TqdmProgress,
    combine,
    read_events,
)
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import Fault, FaultyStore
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, RequestDone, Stalled

_STATE = {"a": torch.arange(3_000_000, dtype=torch.float32), "b": torch.ones(10)}
_BYTES = 12_000_040
_QUICK = TransferConfig(part_size_bytes=2**20, retry=RetryConfig(max_attempts=3, base_delay_s=0, max_delay_s=0))


@pytest.fixture
def uri():
    return f"memory://{uuid.uuid4().hex}/step-1"


def _save(uri, hook, *faults):
    store = FaultyStore(open_store(uri), faults)
    dcp.save(_STATE, storage_writer=CloudStorageWriter(uri, store=store, transfer=_QUICK, on_event=hook), no_dist=True)


def _load(uri, hook):
    state = {name: torch.zeros_like(tensor) for name, tensor in _STATE.items()}
    dcp.load(state, storage_reader=CloudStorageReader(uri, transfer=_QUICK, on_event=hook), no_dist=True)


def test_a_meter_adds_up(uri):
    """Bytes, items, requests, repetitions and the slowest request are those of the transfer; a load begins anew."""
    meter = Meter()
    _save(uri, meter, Fault("fail", verb="put_part", times=2))
    saved = meter.read()
    assert (saved.phase, saved.items, saved.retries, saved.error) == ("save", 2, 2, None)
    assert saved.done_bytes == saved.total_bytes > _BYTES
    assert saved.slowest_s > 0
    assert saved.slowest_key
    assert saved.left_s == 0
    _load(uri, meter)
    loaded = meter.read()
    assert (loaded.phase, loaded.retries, loaded.done_bytes) == ("load", 0, loaded.total_bytes)


def test_a_meter_tells_a_stall_until_something_arrives():
    """A transfer that says it is stuck counts as stalled until the next bytes."""
    meter = Meter(clock=lambda: 7.0)
    meter(Planned(phase="save", size_bytes=10, items=1))
    assert meter.read().left_s is None
    meter(Stalled(phase="save", idle_s=60.0, requests=1))
    assert meter.read().stalled_s == 60.0
    meter(Progressed(phase="save", size_bytes=10))
    assert meter.read().stalled_s == 0.0


def test_log_lines(uri, caplog):
    """The plan, progress, the end and the commit are lines; a failure is a warning."""
    caplog.set_level(logging.INFO, "dcp_cloud.progress")
    _save(uri, LogProgress(every_s=0.0))
    lines = [record.getMessage() for record in caplog.records if record.name == "dcp_cloud.progress"]
    assert lines[0].startswith("save: 2 items, 11.5 MiB")
    assert any("MiB of 11.5 MiB" in line and "left" in line for line in lines)
    assert any(line.startswith("save done: 11.4 MiB in") for line in lines)
    assert lines[-1].startswith("commit done in")
    caplog.clear()
    with pytest.raises(CheckpointException):
        _save(uri, LogProgress(), Fault("refuse", verb="put*", times=None))
    (warning,) = [one for one in caplog.records if one.name == "dcp_cloud.progress" and one.levelno == logging.WARNING]
    assert "save failed" in warning.getMessage()
    assert "PermissionDeniedError" in warning.getMessage()


def test_log_lines_come_no_more_often_than_asked(caplog):
    """Between two lines lies the chosen time, however many events there are."""
    caplog.set_level(logging.INFO, "chosen")
    now = [0.0]
    hook = LogProgress(logger="chosen", every_s=10.0, clock=lambda: now[0])
    hook(Planned(phase="load", size_bytes=100 * 2**20, items=3))
    for _ in range(100):
        now[0] += 0.5
        hook(Progressed(phase="load", size_bytes=2**20))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[1:] == [
        f"load: {done:.1f} MiB of 100.0 MiB ({done:.0f}%), 2.0 MiB/s, about {50 - done / 2:.0f} s left"
        for done in (20, 40, 60, 80, 100)
    ]


def test_log_lines_of_a_stall(caplog):
    """A stall names the oldest request, or whatever else the transfer waits for."""
    hook = LogProgress()
    hook(Stalled(phase="save", idle_s=61.0, requests=2, verb="put_part", key="__0_0.distcp", pending_s=61.0))
    hook(Stalled(phase="save", idle_s=61.0, requests=0, waits_for_memory=True))
    assert "the oldest put_part __0_0.distcp for 61 s" in caplog.text
    assert "waiting for memory" in caplog.text


def test_a_rich_bar(uri):
    """A bar runs to its end and goes with the transfer; one display can hold the bars of several."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress(console=console) as display:
        hook = RichProgress(display, title="step 1")
        _save(uri, hook)
        _load(uri, hook)
        assert [(task.description, task.completed == task.total) for task in display.tasks] == [("step 1", True)] * 2
    own = RichProgress()
    _save(uri, own)
    assert own._display is None


def test_a_tqdm_bar(uri):
    """A bar runs to its end, and counts repeated requests."""
    out = io.StringIO()
    _save(uri, TqdmProgress(file=out, mininterval=0), Fault("fail", verb="put_part"))
    assert "save: 100%" in out.getvalue()
    assert "retries=1" in out.getvalue()


def test_spans_and_metrics(uri):
    """A save is a span with its bytes, a commit another; requests are measured by verb, repetitions are counted."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(spans))
    hook = OpenTelemetryHook(
        attributes={"rank": 3}, tracer_provider=traces, meter_provider=MeterProvider(metric_readers=[reader])
    )
    _save(uri, hook, Fault("fail", verb="put_part"))
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"dcp_cloud.save", "dcp_cloud.commit"}
    save = found["dcp_cloud.save"]
    assert (save.attributes["rank"], save.attributes["dcp_cloud.items"]) == (3, 2)
    assert save.end_time > save.start_time
    points = {
        metric.name: metric.data.data_points
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert sum(point.value for point in points["dcp_cloud.bytes"]) == save.attributes["dcp_cloud.bytes"]
    assert [(point.attributes["verb"], point.value) for point in points["dcp_cloud.retries"]] == [("put_part", 1)]
    assert {point.attributes["verb"] for point in points["dcp_cloud.request"]} >= {"put_part", "put", "complete"}


def test_a_failed_save_is_a_span_in_error(uri):
    """What ended the save stands in its span."""
    spans, traces = InMemorySpanExporter(), TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(spans))
    with pytest.raises(CheckpointException):
        _save(uri, OpenTelemetryHook(tracer_provider=traces), Fault("refuse", verb="put*", times=None))
    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "PermissionDeniedError")


def test_recorded_events_are_read_back(uri, tmp_path, monkeypatch):
    """What the file holds is what was told, in order, with times and threads."""
    monkeypatch.setenv("RANK", "5")
    recorder = EventRecorder(tmp_path / "events-{rank}.jsonl")
    _save(uri, recorder)
    _load(uri, recorder)
    found = read_events(tmp_path / "events-5.jsonl")
    assert [one.event for one in found] == [one.event for one in recorder.events]
    assert [one.at_s for one in found] == sorted(one.at_s for one in found)
    kinds = {type(one.event) for one in found}
    assert kinds == {RequestDone, Planned, Progressed, PhaseDone}
    assert len({one.lane for one in found}) > 1


@pytest.mark.parametrize("text", ["no json\n", '{"at_s": 1}\n', '{"at_s": 1, "lane": 0, "kind": "os.system"}\n'])
def test_other_files_hold_no_events(tmp_path, text):
    """A file of another kind is refused."""
    (tmp_path / "file").write_text(text)
    with pytest.raises(ConfigError, match="no recorded events"):
        read_events(tmp_path / "file")


@pytest.mark.parametrize(
    "hook", [Meter(), LogProgress(), RichProgress(), TqdmProgress(desc="x"), OpenTelemetryHook(), EventRecorder("x")]
)
def test_hooks_travel_to_another_process(hook):
    """Every hook pickles as its settings, also after use, as a process that saves in the background needs."""
    if not isinstance(hook, (EventRecorder, TqdmProgress)):
        hook(RequestDone(verb="put", key="k", size_bytes=1, duration_s=0.1))
    copy = pickle.loads(pickle.dumps(combine(hook, Meter())))
    assert [type(one) for one in copy.hooks] == [type(hook), Meter]


def test_a_recording_that_cannot_be_written_does_not_end_a_save(uri, tmp_path, caplog):
    """A full disk or a wrong path is a warning; the checkpoint is committed."""
    _save(uri, EventRecorder(tmp_path / "missing" / "events.jsonl"))
    assert "cannot write the recorded events" in caplog.text
    _load(uri, Meter())
