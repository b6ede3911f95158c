"""The blocks of code on the pages, and what comments before them say of how they are tested.

``<!-- run -->`` before a block of commands executes it. ``<!-- not run: reason -->`` before a block of Python leaves it
out. ``<!-- run with 20 for 10_000 -->`` runs it with a number that a test has time for.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(
    r"^(?:<!-- (?P<comment>(?:not )?run[^\n]*) -->\n+)?```(?P<language>[a-z]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CALL = re.compile(r"(?:^|[|&;(] ?)dcp-cloud ")
_SWAP = re.compile(r"run with (\S+) for (\S+)")
SHELLS = ("console", "bash", "sh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of code on a page.

    Args:
        page: Path of the page, relative to the repository.
        line: Line of its first line of code, from 1.
        language: What stands behind the fence.
        code: The code, numbers exchanged.
        comment: What the comment before it says, or nothing.
    """

    page: str
    line: int
    language: str
    code: str
    comment: str

    @property
    def why_not_run(self) -> str:
        """The reason for leaving it out, or nothing."""
        return self.comment.partition("not run: ")[2]

    @property
    def commands(self) -> list[str]:
        """The lines of a shell that one would type."""
        lines = self.code.replace("\\\n", " ").splitlines()
        if self.language == "console":
            return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line for line in lines if line.strip() and not line.startswith("#")]

    def dcp_cloud_calls(self) -> Iterator[list[str]]:
        """The arguments of each ``dcp-cloud`` that its commands call."""
        for command in filter(_CALL.search, self.commands):
            lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            call: list[str] = []
            for word in (*lexer, ";"):
                if not set(word) <= set("|&;<>()"):
                    call.append(word)
                    continue
                if call[:1] == ["dcp-cloud"]:
                    yield call[1:]
                call = []


def blocks_of(page: Path) -> tuple[Block, ...]:
    """Find the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        comment, code = match["comment"] or "", match["code"]
        if swap := _SWAP.fullmatch(comment):
            assert swap[2] in code, f"{page}: {comment!r} changes nothing"
            code = code.replace(swap[2], swap[1])
        line = text.count("\n", 0, match.start("code")) + 1
        name = str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page)
        found.append(Block(page=name, line=line, language=match["language"], code=code, comment=comment))
    # A fence that the pattern does not understand would go untested.
    assert text.count("\n```") + text.startswith("```") == 2 * len(found), f"{page} has a fence of another kind"
    return tuple(found)


def is_program(block: Block) -> bool:
    """Whether a block is a whole program of ``examples/``, which are run as they are."""
    programs = (path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py"))
    return block.language == "python" and block.code in programs


def to_execute(page: Path) -> tuple[Block, ...]:
    """The blocks of a page that are executed: Python, and commands that are marked so."""
    return tuple(
        block
        for block in blocks_of(page)
        if (block.language == "python" and not block.why_not_run and not is_program(block))
        or (block.language in SHELLS and block.comment == "run")
    )
