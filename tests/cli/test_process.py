"""The command line as its users start it: a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dcp_cloud.cli.app import _COMMANDS
from dcp_cloud.testing.proxy import FaultProxy, NetworkFault
from tests.cli.conftest import Ran

_ROOT = Path(__file__).resolve().parents[2]


def test_the_installed_script_is_this_command_line():
    """The script that pip installs runs the function that these tests run."""
    text = (_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    target = re.search(r'^dcp-cloud = "(?P<module>[\w.]+):(?P<name>\w+)"$', text, re.MULTILINE)
    assert target is not None
    main = getattr(importlib.import_module(target["module"]), target["name"])
    assert main is importlib.import_module("dcp_cloud.cli").main


def test_ls_and_verify_of_files(folder, run_process):
    """The tools work on a directory, and end with 0; progress does not mix with the report."""
    listed = json.loads(run_process("ls", str(folder), "--json").out)
    assert [(entry["step"], entry["state"]) for entry in listed["checkpoints"]] == [
        (50, "rank-local"),
        (100, "complete"),
        (200, "complete"),
    ]
    verified = run_process("verify", listed["checkpoints"][2]["uri"])
    assert verified.code == 0
    assert ": intact\n" in verified.out
    assert verified.err == "verify: 14 items, 16.2 MiB to read\n"


@pytest.mark.parametrize(
    ("kind", "code", "args"),
    [
        ("inspect", 0, ("inspect", "{folder}/step-100")),
        ("diff", 1, ("diff", "{folder}/step-100", "{folder}/step-200")),
        ("cp", 0, ("cp", "{folder}/step-100", "{folder}/copy/step-100")),
        ("convert", 0, ("convert", "{folder}/step-100", "{folder}/model.pt")),
        ("rm", 0, ("rm", "{folder}/step-100", "--yes")),
        ("prune", 0, ("prune", "{folder}", "--keep-last", "1", "--yes")),
        ("sweep", 0, ("sweep", "{folder}", "--dry-run")),
        ("doctor", 0, ("doctor", "{folder}")),
        ("config", 0, ("config", "show")),
        ("bench", 0, ("bench", "{folder}/scratch", "--quick", "--size", "1MiB")),
    ],
)
def test_every_other_command_in_a_process_of_its_own(folder, run_process, kind, code, args):
    """Standard output is one JSON document, whatever else is told on standard error."""
    ran = run_process(*(arg.format(folder=folder) for arg in args), "--json")
    assert ran.code == code, ran.err
    assert json.loads(ran.out)["schema"] == f"dcp-cloud/{kind}"


def test_no_command_is_left_out():
    """Each command has a test that starts it in a process: here, or where its servers are."""
    elsewhere = {"serve-emulators": "test_emulators.py", "demo": "../demo/test_demo.py"}
    here = Path(__file__).read_text(encoding="utf-8")
    for command in _COMMANDS:
        name, _, _ = command.partition(" ")
        assert (f'("{name}", ' in here) or f'run_process("{name}"' in here or command in elsewhere, command
    for command, file in elsewhere.items():
        assert f'"{command}"' in (Path(__file__).parent / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell):
    """The script for each shell asks for completions, and these are the commands that begin so."""
    env = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "import sys; from dcp_cloud.cli import main; sys.argv[0] = 'dcp-cloud'; main()"]
    script = subprocess.run([*command, "--show-completion", shell], capture_output=True, text=True, env=env, check=True)
    assert "_DCP_CLOUD_COMPLETE" in script.stdout
    asked = {
        "bash": {"COMP_WORDS": "dcp-cloud in", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "dcp-cloud in"},
        "fish": {"_TYPER_COMPLETE_ARGS": "dcp-cloud in", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=env | asked[shell] | {"_DCP_CLOUD_COMPLETE": f"complete_{shell}"},
        check=False,
    )
    assert "inspect" in found.stdout
    assert "verify" not in found.stdout


def without_a_reader(*args, stream):
    """Run a command whose standard output or standard error is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writing}
    try:
        return subprocess.run(
            [sys.executable, "-m", "dcp_cloud.cli", *args], text=True, cwd=_ROOT, timeout=60, check=False, **streams
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("args", [("ls", "{folder}", "--json"), ("verify", "{folder}/step-100"), ("--help",)])
def test_a_reader_that_leaves_is_no_defect(folder, args):
    """``dcp-cloud … | head``: output that nobody reads any more ends the command as SIGPIPE would, and says no more."""
    done = without_a_reader(*(arg.format(folder=folder) for arg in args), stream="stdout")
    assert done.returncode == 141
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_copy_goes_on_when_nobody_watches(folder, run_process):
    """``dcp-cloud cp … |& head -1``: neither progress nor a log that cannot be written ends the work."""
    args = ("cp", f"{folder}/step-100", f"{folder}/copy/step-100", "-vv", "--json")
    done = without_a_reader(*args, stream="stderr")
    assert done.returncode == 0
    assert json.loads(done.stdout)["schema"] == "dcp-cloud/cp"
    assert run_process("verify", f"{folder}/copy/step-100").code == 0


@pytest.mark.parametrize("args", [("ls", "{folder}", "--json"), ("ls", "{folder}"), ("--help",)])
def test_a_full_disk_below_standard_output_is_no_defect(folder, args):
    """Output that cannot be written is one line on standard error, with an exit code of its own."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "dcp_cloud.cli", *(arg.format(folder=folder) for arg in args)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            timeout=60,
            check=False,
        )
    assert done.returncode == 74
    assert re.fullmatch(r"error: standard output cannot be written: .*No space left on device\n", done.stderr)


def test_a_terminal_that_lacks_characters_gets_question_marks(folder):
    """A dash or a box that standard output cannot encode does not end the command."""
    done = subprocess.run(
        [sys.executable, "-m", "dcp_cloud.cli", "inspect", f"{folder}/step-100", "--tensors"],
        capture_output=True,
        cwd=_ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout


def test_damage_ends_with_one(folder, run_process):
    """A flipped byte makes verify end with 1; the report still goes to standard output."""
    (path,) = (folder / "step-100").glob("__0_0.*.distcp")
    data = bytearray(path.read_bytes())
    data[6_000_000] ^= 1
    path.write_bytes(data)
    ran = run_process("--json", "verify", f"file://{folder}/step-100")
    assert ran.code == 1
    report = json.loads(ran.out)
    assert not report["ok"]
    assert [(one["kind"], one["tensors"]) for one in report["problems"]] == [("checksum", ["embedding"])]


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["ls", "--help"], ["ls", "{folder}"], []])
def test_help_and_listing_do_without_torch(folder, args):
    """Whatever needs no tensor does not wait seconds for torch to be imported."""
    script = (
        "import sys\n"
        "from dcp_cloud.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    sys.stderr.write(f'torch: {\"torch\" in sys.modules}')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *(arg.format(folder=folder) for arg in args)],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=60,
        check=False,
    )
    assert result.stdout != "" or args == []
    assert result.stderr.endswith("torch: False")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_is_one_clear_line(package):
    """Without the packages of the extra the user reads which command installs them."""
    script = f"import sys; sys.modules[{package!r}] = None\nfrom dcp_cloud.cli import main\nmain()"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=_ROOT, timeout=60, check=False
    )
    assert result.returncode == 2
    assert result.stderr == (
        f"dcp-cloud needs the package '{package}', which is not installed: in its clone, pip install '.[cli]'\n"
    )


def interrupt(args, *, when, env=None):
    """Run a command, send it Ctrl-C as soon as something is true, and give what it left."""
    with subprocess.Popen(
        [sys.executable, "-m", "dcp_cloud.cli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=env,
    ) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not when():
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    return Ran(process.returncode, out, err)


@pytest.mark.parametrize("command", ["cp", "prune"])
def test_ctrl_c_in_mid_work_ends_with_130_and_the_next_run_finishes(command, folder, bucket_uri, servers, run_process):
    """A copy or a removal that the network holds up ends at Ctrl-C; there is no half checkpoint, and it can go on."""
    uri, server = bucket_uri("moto"), servers("moto")
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if command == "prune":
        for step in ("step-100", "step-200"):
            assert run_process("cp", f"{folder}/{step}", server.uri(bucket, f"run/{step}")).code == 0
    fault = {
        "cp": NetworkFault("stall", method="PUT", path="*.distcp", times=None),
        "prune": NetworkFault("stall", method="DELETE", path="*.metadata", times=None),
    }
    with FaultProxy(server.endpoint_url) as proxy:
        behind = proxy.in_front_of(server)
        proxy.set_faults(fault[command])
        args = {
            "cp": ["cp", f"{folder}/step-100", behind.uri(bucket, "run/step-100"), "--json"],
            "prune": ["prune", behind.uri(bucket, "run"), "--keep-last", "1", "--yes", "--json"],
        }
        ran = interrupt(args[command], when=lambda: bool(proxy.strikes), env=os.environ | behind.environment)
    assert ran.code == 130, ran.err
    assert json.loads(ran.out)["error"]["type"] == "Interrupted"
    assert "Traceback" not in ran.err
    states = json.loads(run_process("ls", uri, "--json").out or "{}").get("checkpoints", [])
    whole = sorted(entry["step"] for entry in states if entry["state"] == "complete")
    assert whole == {"cp": [], "prune": [100, 200]}[command]
    again = {
        "cp": ("cp", f"{folder}/step-100", server.uri(bucket, "run/step-100")),
        "prune": ("prune", uri, "--keep-last", "1", "--older-than", "0s", "--yes"),
    }
    assert run_process(*again[command]).code == 0
    left = json.loads(run_process("ls", uri, "--json").out)["checkpoints"]
    assert [entry["step"] for entry in left if entry["state"] == "complete"] == {"cp": [100], "prune": [200]}[command]


def test_ctrl_c_while_modules_are_imported_ends_with_130():
    """Ctrl-C in the first moments, before there is a command, shows no traceback either."""
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from dcp_cloud.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=_ROOT, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_ctrl_c_ends_with_130():
    """Ctrl-C while a store does not answer ends the command at once, with 130 and without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        uri = f"s3://bucket/run?endpoint_url=http://127.0.0.1:{server.getsockname()[1]}&region=us-east-1"
        process = subprocess.Popen(
            [sys.executable, "-m", "dcp_cloud.cli", "ls", uri, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=os.environ | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"},
        )
        try:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1) == b"G"
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, err) == (130, "interrupted\n")
    document = json.loads(out)
    assert (document["schema"], document["error"]["exit_code"]) == ("dcp-cloud/error", 130)
