"""Hints and documents name only commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dcp_cloud.cli.app import _COMMANDS

_ROOT = Path(__file__).resolve().parents[2]
# A command is quoted, follows a prompt or a colon, or stands at the beginning of a line of code; prose may begin a line
# with the package's name.
_COMMAND = re.compile(r"['`\"$:>] ?dcp-cloud ([a-z][a-z-]*)")
_LINE = re.compile(r"^\s*dcp-cloud ([a-z][a-z-]*)", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SOURCES = sorted((*(_ROOT / "dcp_cloud").rglob("*.py"), *(_ROOT / "docs").rglob("*.md"), *_ROOT.glob("*.md")))


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: str(path.relative_to(_ROOT)))
def test_every_command_that_is_named_exists(path: Path) -> None:
    """Whoever follows a hint finds the command."""
    names = {name.partition(" ")[0] for name in _COMMANDS}
    assert _named(path.read_text(encoding="utf-8"), is_code=path.suffix == ".py") - {"needs"} <= names


def test_the_pattern_finds_commands() -> None:
    """The rule above looks at something."""
    text = "x `dcp-cloud ls` y 'dcp-cloud rm s3://b'\n$ dcp-cloud sweep\nfirst: dcp-cloud inspect\ndcp-cloud asks"
    assert _named(text, is_code=False) == {"ls", "rm", "sweep", "inspect"}
    assert _named("```bash\ndcp-cloud demo\n```", is_code=False) == {"demo"}


def _named(text: str, *, is_code: bool) -> set[str]:
    code = text if is_code else "\n".join(_FENCED.findall(text))
    return {*_COMMAND.findall(text), *_LINE.findall(code)}
