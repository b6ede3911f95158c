"""Tables and text in Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence

_ARGUMENT = re.compile(r"^    (\w+): ", re.MULTILINE)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table.

    Args:
        head: Titles of the columns.
        rows: The cells.

    Returns:
        Lines of Markdown.
    """
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(text: str) -> str:
    """Turn the text of a docstring into Markdown on one line.

    Args:
        text: A paragraph of a docstring.

    Returns:
        The same with Markdown's quotes.
    """
    text = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("(docs/performance.md)", "([performance](performance.md))")


def summary(thing: object) -> str:
    """Give the first line of a docstring."""
    return markdown((inspect.getdoc(thing) or "").partition("\n\n")[0])


def arguments(thing: object) -> dict[str, str]:
    """Read the ``Args:`` of a docstring in Google's style.

    Args:
        thing: What has the docstring.

    Returns:
        Name to text.
    """
    _, _, rest = (inspect.getdoc(thing) or "").partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest)[0]
    pieces = _ARGUMENT.split(section)[1:]
    return {name: markdown(text) for name, text in zip(pieces[::2], pieces[1::2], strict=True)}
