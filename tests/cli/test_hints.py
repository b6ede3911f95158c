"""Hints and documents name only commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcp_cloud.cli.app import _COMMANDS

_ROOT = Path(__file__).resolve().parents[2]
# In code and documents a command is quoted, follows a colon, or stands at the beginning of a line.
_COMMAND = re.compile(r"(?:['`\"$:>] ?|^\s*)dcp-cloud ([a-z]+)", re.MULTILINE)
_SOURCES = sorted((*(_ROOT / "dcp_cloud").rglob("*.py"), *(_ROOT / "docs").rglob("*.md"), *_ROOT.glob("*.md")))


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_every_command_that_is_named_exists(path: Path) -> None:
    """Whoever follows a hint finds the command."""
    named = set(_COMMAND.findall(path.read_text(encoding="utf-8"))) - {"needs"}
    assert named <= set(_COMMANDS)


def test_the_pattern_finds_commands() -> None:
    """The rule above looks at something."""
    text = "x `dcp-cloud ls` y 'dcp-cloud rm s3://b'\n$ dcp-cloud sweep\nfirst: dcp-cloud inspect"
    assert _COMMAND.findall(text) == ["ls", "rm", "sweep", "inspect"]
