"""Help, usage, exit codes and options that all commands share."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from dcp_cloud import errors
from dcp_cloud.cli.app import _COMMANDS, _EXAMPLES
from dcp_cloud.cli.failures import MEANINGS, ExitCode, exit_code_of
from dcp_cloud.cli.text import count, duration, safe, size


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_help_teaches_by_example(run, command):
    """The help of every command shows commands that one can copy."""
    ran = run(*command.split(), "--help")
    assert ran.code == 0
    for example in _EXAMPLES[command]:
        assert " ".join(example.split()) in " ".join(ran.out.split())


def test_the_help_names_every_command(run):
    """Before the list of commands, the help says what each of them is for."""
    text = " ".join(run("--help").out.partition("Options")[0].partition("COMMAND")[2].split())
    for command in _COMMANDS:
        assert f"({command}" in text or f" {command})" in text, command


def test_the_help_explains_every_exit_code(run):
    """Scripts rely on exit codes, so the help lists them all."""
    out = run("--help").out
    for code, meaning in MEANINGS.items():
        assert f"{int(code)}  {meaning}" in out
    assert set(MEANINGS) == set(ExitCode)


def test_wrong_use_ends_with_two(run):
    """A missing argument and an unknown option are wrong use; nothing goes to standard output."""
    for args in (
        ("verify",),
        ("ls", "memory://b/p", "--nonsense"),
        ("nonsense",),
        ("inspect", "memory://b", "--module", "0"),
    ):
        ran = run(*args)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err != ""


@pytest.mark.parametrize(
    "args",
    [
        ("verify", "--json"),
        ("--json", "verify"),
        ("ls", "memory://b/p", "--nonsense", "--json"),
        ("--nonsense", "--json", "ls"),
        ("nonsense", "--json"),
        ("--json",),
    ],
)
def test_wrong_use_has_a_document_too(run, args):
    """With --json anywhere, standard output is one document even if the command line makes no sense."""
    ran = run(*args)
    document = json.loads(ran.out)
    assert (ran.code, document["schema"], document["error"]["exit_code"]) == (2, "dcp-cloud/error", 2)
    assert document["error"]["message"]
    assert ran.err != ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidURIError("x"), 2),
        (errors.MissingExtraError("x"), 2),
        (errors.NotFoundError("x"), 3),
        (errors.BucketNotFoundError("x"), 3),
        (errors.CheckpointNotFoundError("x"), 3),
        (errors.PermissionDeniedError("x"), 4),
        (errors.UnauthenticatedError("x"), 4),
        (errors.CorruptCheckpointError("x"), 1),
        (errors.IncompleteCheckpointError("x"), 1),
        (errors.UnsafeCheckpointError("x"), 1),
        (errors.WrongRegionError("x"), 5),
        (errors.TransientError("x"), 5),
        (errors.RetriesExhaustedError("x"), 5),
        (errors.TransferCancelledError("x"), 5),
    ],
)
def test_exit_codes_follow_the_type_of_the_error(error, code):
    """Every kind of error has its exit code."""
    assert exit_code_of(error) == code


def test_shared_options_stand_before_or_after_the_command(bucket, run):
    """``--json`` means the same before and after the command's name."""
    before, after = run("--json", "ls", "memory://bucket/run"), run("ls", "--json", "memory://bucket/run")
    assert before.out == after.out
    assert json.loads(before.out)["schema_version"] == 1


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_every_command_has_a_document(command, run):
    """No command is for people only."""
    assert "--json" in run(*command.split(), "--help").out


@pytest.mark.parametrize(("args", "level"), [((), logging.WARNING), (("-v",), logging.INFO), (("-vv",), logging.DEBUG)])
def test_verbosity_sets_the_level_of_the_log(bucket, run, args, level):
    """``-v`` shows what is done, ``-vv`` everything; without, only warnings."""
    run("ls", "memory://bucket/run", *args)
    assert logging.getLogger("dcp_cloud").level == level


def test_text_for_people():
    """Sizes have at most three digits before the unit, counts have their plural, times their unit."""
    assert [size(n) for n in (0, 999, 1000, 1536, 1024 * 1023, 10 * 2**30)] == [
        "0 B", "999 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "10.0 GiB",
    ]  # fmt: skip
    assert [count(1, "item"), count(1200, "item")] == ["1 item", "1,200 items"]
    assert [duration(0.44), duration(75.2), duration(720)] == ["0.4 s", "75 s", "12 min"]
    assert safe("a\tb\u202e é\n") == "a\\tb\\u202e é\\n"


def unreachable() -> str:
    """A URI of a server that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"s3://bucket/run?endpoint_url=http://127.0.0.1:{port}&region=us-east-1&max_attempts=2&base_delay=1ms"


def test_an_unreachable_store_ends_with_five(run, monkeypatch):
    """A store that cannot be reached is not a missing checkpoint: exit code 5, the reason and the next step."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    for command in ("ls", "inspect", "verify"):
        ran = run(command, unreachable())
        assert (ran.code, ran.out) == (5, "")
        assert "\n  why " in ran.err
        assert "\n  next " in ran.err
        assert "Traceback" not in ran.err


def test_missing_credentials_end_with_four(run):
    """Without credentials nothing is sent: exit code 4, and where to get them."""
    ran = run("ls", unreachable())
    assert (ran.code, ran.out) == (4, "")
    assert "credentials" in ran.err


def test_verbose_errors_show_where_they_come_from(run, tmp_path):
    """With -v an error comes with its traceback and the log; without, with neither."""
    ran = run("-v", "inspect", str(tmp_path))
    assert ran.code == 3
    assert "Traceback" in ran.err
    assert "error: no checkpoint is committed here" in ran.err
    assert "Traceback" not in run("inspect", str(tmp_path)).err
