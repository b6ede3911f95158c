"""The page with pictures: what it shows, and that nothing from a checkpoint becomes markup."""

from __future__ import annotations

import html.parser
import math
import uuid

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import example, given

from dcp_cloud import CloudStorageWriter, TransferConfig
from dcp_cloud.progress import EventRecorder
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import Fault, FaultyStore
from dcp_cloud.tools.timeline import make_timeline
from dcp_cloud.tools.treemap import make_treemap, squarify
from tests.cli.conftest import _quiet_logger, bucket, run, saved

__all__ = ["_quiet_logger", "bucket", "run", "saved"]

_SIZES = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=40).map(lambda sizes: sorted(sizes, reverse=True))


@given(_SIZES, st.floats(10, 1000), st.floats(10, 1000))
# The last one's strip is so thin that rounding is a large share of it.
@example([697916.8418210548, 506314.2987912514, 177607.5, 167202.5, 0.01], 85.84138236581107, 187.0)
@example([697914.8418210548, 506314.2987912514, 185249.17719891187, 83729.34765625, 0.01171875], 86.0, 187.0)
def test_areas_are_in_proportion_and_fill_the_map(sizes, width, height):
    """Each part has its share of the area, lies within the map, and overlaps no other."""
    boxes = list(squarify(sizes, 0.0, 0.0, width, height))
    assert len(boxes) == len(sizes)
    for size, (x, y, wide, high) in zip(sizes, boxes, strict=True):
        assert math.isclose(wide * high, width * height * size / sum(sizes), rel_tol=1e-6, abs_tol=1e-6)
        assert -1e-6 <= x <= x + wide <= width + 1e-6
        assert -1e-6 <= y <= y + high <= height + 1e-6
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
            high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
            assert min(wide, high) <= 1e-6


@given(st.dictionaries(st.text(max_size=12), st.integers(0, 2**50), max_size=60))
def test_any_names_and_sizes_can_be_laid_out(sizes):
    """Whatever tensors are called and however long they are, the map is made; outer tiles are the sum of all."""
    tiles = make_treemap(sizes.items(), width=1000, height=500)
    assert math.isclose(sum(tile.size for tile in tiles if tile.depth == 0), sum(sizes.values()), rel_tol=1e-9)
    assert all(math.isfinite(tile.x + tile.y + tile.width + tile.height) for tile in tiles)


class _Page(html.parser.HTMLParser):
    """Collects elements and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend(name for name, _ in attrs)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_shows_what_is_in_a_checkpoint(bucket, run, tmp_path):
    """Tensors, dtypes, ranks and objects stand on it; it is one file that asks for nothing else."""
    page = tmp_path / "report.html"
    ran = run("inspect", "memory://bucket/run/step-100", "--html", str(page))
    assert (ran.code, ran.err) == (0, "")
    assert str(page) in ran.out
    parsed = _Page(page.read_text())
    text = " ".join(parsed.text)
    for wanted in ("embedding", "bfloat16", "memory://bucket/run/step-100", "__0_0.", "__1_0."):
        assert wanted in text
    assert {"script", "link", "img", "iframe"}.isdisjoint(parsed.tags)
    assert {"src", "href", "onload", "onclick"}.isdisjoint(parsed.attributes)
    assert "default-src 'none'" in page.read_text()


def test_hostile_names_stay_text(run, tmp_path):
    """A tensor's name that is markup, or that runs backwards, is shown as what it is."""
    uri = f"memory://{uuid.uuid4().hex}/a"
    names = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\u202eb", "{{ 7 * 7 }}")
    dcp.save({name: torch.ones(9) for name in names}, storage_writer=CloudStorageWriter(uri), no_dist=True)
    page = tmp_path / "report.html"
    assert run("inspect", uri, "--html", str(page)).code == 0
    parsed = _Page(page.read_text())
    assert {"script", "img"}.isdisjoint(parsed.tags)
    assert "\u202e" not in page.read_text()
    assert "{{ 7 * 7 }}" in " ".join(parsed.text)


@pytest.fixture
def recording(tmp_path):
    """A recorded save with three failed parts."""
    uri, path = f"memory://{uuid.uuid4().hex}/a", tmp_path / "events.jsonl"
    recorder = EventRecorder(path)
    store = FaultyStore(open_store(uri), [Fault("fail", verb="put_part", times=3)])
    transfer = TransferConfig(part_size_bytes=2**20)
    writer = CloudStorageWriter(uri, store=store, transfer=transfer, on_event=recorder)
    dcp.save({"w": torch.ones(3 * 2**20)}, storage_writer=writer, no_dist=True)
    return uri, path, recorder


def test_a_timeline_of_a_save(recording, run, tmp_path):
    """Each request is a bar in the row of its thread, failed ones stand out, and the phases are there."""
    uri, path, recorder = recording
    timeline = make_timeline("save", recorder.events)
    assert sum(bar.is_failed for bar in timeline.requests) == 3
    assert {bar.kind for bar in timeline.phases} == {"save", "commit"}
    assert {bar.lane for bar in timeline.requests} == set(range(timeline.lanes))
    assert all(0 <= bar.start_s <= bar.stop_s <= timeline.duration_s + 1e-6 for bar in timeline.requests)
    assert sum(timeline.rates) * timeline.duration_s / len(timeline.rates) == pytest.approx(12 * 2**20, rel=0.01)
    page = tmp_path / "report.html"
    assert run("inspect", uri, "--html", str(page), "--events", str(path)).code == 0
    assert "Timeline: events.jsonl" in page.read_text()


def test_a_file_without_events_is_refused(recording, run, tmp_path):
    """Another file in place of a recording is wrong use."""
    uri = recording[0]
    (tmp_path / "other").write_text("x")
    ran = run("inspect", uri, "--html", str(tmp_path / "page"), "--events", str(tmp_path / "other"))
    assert ran.code == 2
    assert "EventRecorder" in ran.err


@pytest.mark.parametrize(
    "line",
    [
        '{"at_s": 1, "lane": 0, "kind": "Progressed", "phase": "save", "size_bytes": "x"}',
        '{"at_s": 1e999, "lane": 0, "kind": "Progressed", "phase": "save", "size_bytes": 1}',
        '{"at_s": 1, "lane": 0, "kind": "Progressed", "phase": "save", "size_bytes": 1e999}',
        '{"at_s": 1, "lane": 1e999, "kind": "Progressed", "phase": "save", "size_bytes": 1}',
        '{"at_s": 1, "lane": 0, "kind": "Progressed", "phase": "save"}',
        '"text"',
    ],
)
def test_damaged_events_are_refused(recording, run, tmp_path, line):
    """A line that no recorder wrote is wrong use, not a defect."""
    (tmp_path / "other").write_text(line)
    ran = run("inspect", recording[0], "--html", str(tmp_path / "page"), "--events", str(tmp_path / "other"))
    assert ran.code == 2
    assert "EventRecorder" in ran.err


def test_events_without_a_page_are_refused(recording, run):
    """--events does nothing without --html, and says so."""
    ran = run("inspect", recording[0], "--events", str(recording[1]))
    assert ran.code == 2
    assert "--html" in ran.err


def test_many_and_deep_names_make_a_small_map():
    """Names by the hundred thousand, or of as many segments, take neither minutes nor a page of megabytes."""
    tiles = make_treemap([(f"w{number}", 1 + number % 7) for number in range(300_000)], width=1160, height=560)
    assert len(tiles) < 200_000
    assert sum(tile.leaves for tile in tiles) == 300_000
    (first,) = make_treemap([(".".join("x" * 100_000), 1)], width=1160, height=560)[:1]
    assert first.leaves == 1
