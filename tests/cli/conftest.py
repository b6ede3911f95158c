"""Checkpoints to look at, and the command line in this process or in one of its own."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcp_cloud.cli.app import build_app
from dcp_cloud.stores.memory import MemoryStore
from tests.cli.jobs import save_three_ways
from tests.support.ranks import run_ranks

_ROOT = Path(__file__).resolve().parents[2]
_PATH_CHARS = 120
_GOLDEN = Path(__file__).parent / "golden"
# What differs from run to run.
_VOLATILE = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "0" * 32),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "00000000-0000-0000-0000-000000000000"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "2026-01-02 03:04:05"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "2026-01-02T03:04:05Z"),
    (re.compile(r"in [\d.]+ s \([\d.]+ [KMGT]?i?B/s\)"), "in 1.0 s (1.0 GiB/s)"),
    (re.compile(r'"duration_s": [\d.]+'), '"duration_s": 1.0'),
)

Files = Mapping[str, Mapping[str, bytes]]


@dataclass(frozen=True)
class Ran:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _quiet_logger() -> Iterator[None]:
    """A run of the command line sets up the package's logger; other tests want it as it was."""
    log = logging.getLogger("dcp_cloud")
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.fixture
def run() -> Callable[..., Ran]:
    """Run the command line in this process, 100 columns wide."""

    def call(*args: str) -> Ran:
        result = CliRunner().invoke(build_app(), list(args), prog_name="dcp-cloud", env={"COLUMNS": "100"})
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def run_process() -> Callable[..., Ran]:
    """Run the command line as a user does: in a process of its own."""

    def call(*args: str) -> Ran:
        result = subprocess.run(
            [sys.executable, "-m", "dcp_cloud.cli", *args],
            capture_output=True,
            text=True,
            cwd=_ROOT,
            env=os.environ | {"COLUMNS": "100"},
            timeout=120,
            check=False,
        )
        return Ran(result.returncode, result.stdout, result.stderr)

    return call


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of three checkpoints, each saved on two ranks: checkpoint to name to content."""
    # A path of one length wherever it lies: it is recorded in .metadata, whose length the tools show.
    base = tmp_path_factory.mktemp("cli")
    directory = base / ("x" * (_PATH_CHARS - len(str(base)) - 1))
    directory.mkdir()
    run_ranks(2, save_three_ways, str(directory))
    return {
        checkpoint.name: {file.name: file.read_bytes() for file in checkpoint.iterdir()}
        for checkpoint in directory.iterdir()
    }


@pytest.fixture
def bucket(saved: Files) -> Iterator[MemoryStore]:
    """A bucket ``memory://bucket`` with the three checkpoints below ``run``."""
    store = MemoryStore("bucket")
    for checkpoint, files in saved.items():
        for name, content in files.items():
            store.put(f"run/{checkpoint}/{name}", [memoryview(content)])
    yield store
    store.delete([meta.key for meta in store.list()])


@pytest.fixture
def folder(saved: Files, tmp_path: Path) -> Path:
    """A directory with the three checkpoints."""
    for checkpoint, files in saved.items():
        (tmp_path / checkpoint).mkdir()
        for name, content in files.items():
            (tmp_path / checkpoint / name).write_bytes(content)
    return tmp_path


def compare_golden(name: str, text: str) -> None:
    """Compare an output with the one that was judged readable; ``UPDATE_GOLDEN=1`` stores it to be judged anew."""
    for pattern, replacement in _VOLATILE:
        text = pattern.sub(replacement, text)
    # Tables are padded to their width; whoever reads them does not see it.
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    path = _GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
