"""What every benchmark needs: the sink, the machine's description, repetition, results as JSON."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Elsewhere for trying things out.
RESULTS = Path(os.environ.get("BENCH_RESULTS", ROOT / "benchmarks" / "results"))
MIB = 1024**2
GIB = 1024**3

# What a region's network is taken to be: time to the first byte, and what one connection carries.
LINKS = {"free": (0.0, 0.0), "shaped": (0.030, 90e6)}

VERSIONS = ("torch", "numpy", "boto3", "botocore", "google-cloud-storage", "azure-storage-blob", "isal")


class SinkClient:
    """The sink as its measurer sees it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def stats(self) -> dict:
        return self._control("stats")

    def reset(self) -> dict:
        return self._control("reset")

    def clear(self) -> dict:
        return self._control("clear")

    def shape(self, link: str) -> None:
        first_byte_s, bytes_per_s = LINKS[link]
        self._control(f"shape?first_byte_s={first_byte_s}&bytes_per_s={bytes_per_s}")

    def _control(self, path: str) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", f"/_sink/{path}")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer


@contextmanager
def running_sink(gib: float) -> Iterator[SinkClient]:
    """Run a sink in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sink", "--gib", str(gib)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield SinkClient(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=10)


def client_environment(url: str) -> dict[str, str]:
    """Settings by which every client finds the sink."""
    return {
        "SINK_URL": url,
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def describe_machine() -> dict[str, object]:
    def output(*command: str) -> str:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": output("git", "rev-parse", "--short", "HEAD")
        + ("+" if output("git", "diff", "--stat", "HEAD", "--", "dcp_cloud") else ""),
        "load_average": os.getloadavg()[0],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def available_gib() -> float:
    """Memory that nobody needs."""
    return next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")) / 2**20


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def spread(values: list[float]) -> dict[str, object]:
    """Sum up repeated measurements."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "runs": len(values),
        "values": values,
    }


def cpu_s() -> float:
    """CPU seconds of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_results(name: str, *, settings: dict, rows: list[dict], machine: dict) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {"benchmark": name, "machine": machine, "settings": settings, "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def read_results(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def wait_for_calm(limit: float, *, timeout_s: float) -> None:
    """Wait until the machine has little else to do."""
    deadline = time.monotonic() + timeout_s
    while os.getloadavg()[0] > limit and time.monotonic() < deadline:
        time.sleep(5)


def parser(description: str | None, *, runs: int = 5) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    result.add_argument("--runs", type=int, default=runs, help="repetitions, interleaved over what is compared")
    result.add_argument("--name", help="name of the result file instead of the benchmark's own")
    return result


def summarise(rows: list[dict], by: tuple[str, ...], figures: tuple[str, ...]) -> list[dict]:
    """Turn single measurements into one row for each combination of ``by``, with the spread of each figure."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        dict(zip(by, key, strict=True)) | {figure: spread([row[figure] for row in group]) for figure in figures}
        for key, group in groups.items()
    ]
