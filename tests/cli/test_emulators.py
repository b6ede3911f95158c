"""``dcp-cloud serve-emulators``, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from dcp_cloud.stores.registry import open_store
from tests.cli.conftest import compare_golden


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_servers_serve_until_they_are_told_to_end(monkeypatch, number):
    """The printed URI and environment open the store; Ctrl-C and SIGTERM end every process."""
    with subprocess.Popen(
        [sys.executable, "-m", "dcp_cloud.cli", "serve-emulators", "fake-gcs", "moto", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        servers = json.loads("".join(lines))["servers"]
        assert [server["name"] for server in servers] == ["fake-gcs", "moto"]
        for server in servers:
            for name, value in server["environment"].items():
                monkeypatch.setenv(name, value)
            store = open_store(server["uri"])
            store.put("key", [memoryview(b"value")])
            assert store.get("key", max_bytes=10).data == b"value"
            store.close()
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        process.wait(timeout=60)
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_a_server_that_is_not_installed_says_how_to_install_it(run, monkeypatch):
    """Asked for by name, a missing server is an error with the line that installs it."""
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(os, "getcwd", lambda: os.devnull)
    ran = run("serve-emulators", "azurite")
    assert (ran.code, ran.out) == (2, "")
    assert "npm install" in ran.err


def test_what_people_read():
    """For each server: where it is, the variables to set, and a command to begin with."""
    with subprocess.Popen(
        [sys.executable, "-m", "dcp_cloud.cli", "serve-emulators", "moto"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    compare_golden("serve-emulators.txt", re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:4566", "".join(lines)))
