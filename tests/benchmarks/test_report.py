"""Tables, targets and profiles are made of the results and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import harness, profile, tables, targets

ROOT = Path(__file__).resolve().parents[2]


def figure(*values: float) -> dict:
    return harness.spread(list(values))


def write(directory: Path, name: str, rows: list[dict]) -> None:
    (directory / f"{name}.json").write_text(json.dumps({"rows": rows, "machine": {}}))


def save_load_row(peer: str, link: str, verb: str, *, ranks: int, wall_s: float, cpu_s: float) -> dict:
    figures = {"wall_s": figure(wall_s, 2 * wall_s), "cpu_s_per_gib": figure(cpu_s, cpu_s)}
    return {
        "peer": peer,
        "link": link,
        "verb": verb,
        "ranks": ranks,
        "gib": 1,
        "rss_growth_mib": figure(3.0),
        **figures,
    }


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results in which others take twice as long with four threads, thrice with one, and twelve times with s3fs."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    factors = {"ours": 1, "socket+crc32": 0.5, "s3torch-1": 3, "s3torch-4": 2, "s3fs-4": 12, "msc-4": 4}
    rows = [
        save_load_row(peer, link, verb, ranks=ranks, wall_s=factor, cpu_s=factor)
        for peer, factor in factors.items()
        for link in ("free", "shaped")
        for verb in ("save", "load")
        for ranks in (1, 4)
    ]
    write(tmp_path, "save_load", rows)
    write(tmp_path, "clouds", [])
    write(tmp_path, "reshard", [{"peer": "ours", "slices": "dim 0", "amplification": figure(1.0)}])
    small = {"peer": "ours", "case": "10,000 of 4 KiB"}
    write(tmp_path, "small", [{**small, "verb": verb, "requests": figure(20.0)} for verb in ("save", "load")])
    write(tmp_path, "memory", [{"peer": "ours", "rss_growth_mib": figure(600.0)}])
    return tmp_path


@pytest.mark.usefixtures("results")
def test_targets_say_what_was_reached() -> None:
    """Factors are those to the best number of threads, and what misses its target is said to."""
    lines = {line.split(" | ")[0].strip("| "): line for line in targets.targets().splitlines()[2:]}
    assert "| 2.00x | **no** |" in lines["save, CPU ≤ 1.3x a bare socket with checksums"]
    assert "| 0.50x | yes |" in lines["save, CPU ≤ 0.5x `s3torchconnector`"]
    assert "| 0.50x | **no** |" in lines["load, CPU ≤ 0.4x `s3torchconnector`"]
    assert "| 2.0x | yes |" in lines["shaped link, save ≥ 2x faster than `s3torchconnector` at its best"]
    assert "| 12.0x | yes |" in lines["shaped link, load ≥ 10x faster than `FsspecWriter` + `s3fs`"]
    assert "| at most 600 MiB | **no** |" in lines["extra memory ≤ `max_inflight_bytes` + 64 MiB (576 MiB)"]
    assert "2.0 and 2.0 times as long" in targets.short()


def test_without_all_results_the_summary_stays(results: Path) -> None:
    """A summary is not made of half of the results."""
    (results / "small.json").unlink()
    assert targets.make_summaries() == {}


def test_every_table_has_its_place_in_the_page() -> None:
    """The page has marks for all that is generated, and nothing is generated for other marks."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in (*tables.make_tables(), "targets", "short"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


def test_samples_are_put_down_to_the_innermost_function_of_the_package() -> None:
    """What an SDK does counts for the function that called it; threads that wait do not count."""
    collapsed = (
        "run (threading.py:1);Wire.send (/x/dcp_cloud/stores/wire.py:7);sendall (socket.py:3) 30\n"
        "run (threading.py:1);Wire.send (dcp_cloud/stores/wire.py:9) 5\n"
        "run (threading.py:1);Pace.acquire (dcp_cloud/transfer/pace.py:9);Condition.wait (threading.py:5) 90\n"
        "main (torch/x.py:1) 5\n"
    )
    found = profile.places(collapsed)
    assert found == {
        ("stores/wire.py:Wire.send", "socket.py:sendall"): 30,
        ("stores/wire.py:Wire.send", "stores/wire.py:Wire.send"): 5,
        ("elsewhere", "x.py:main"): 5,
    }
    rows = profile.summarise("save", found, 0.8, top=1)
    assert [(row["place"], row["cpu_s_per_gib"]) for row in rows] == [
        ("stores/wire.py:Wire.send", pytest.approx(0.6)),
        ("all others", pytest.approx(0.2)),
    ]
