"""Which parts of which pages are made from the code, and how they get there.

A page marks the place: ``<!-- generated: s3 -->``, then what is made, then ``<!-- /generated -->``. All around it is
written by hand and left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from docs.tools.commands import all_commands, exit_codes
from docs.tools.errors import error_table, error_tree
from docs.tools.settings import azure, gcs, retry, s3, transfer

_DOCS = Path(__file__).resolve().parents[1]
_PLACE = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_MAKERS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "transfer": transfer,
        "retry": retry,
        "s3": s3,
        "gcs": gcs,
        "azure": azure,
        "commands": all_commands,
        "exit-codes": exit_codes,
        "error-tree": error_tree,
        "errors": error_table,
    }
)
GENERATED_PAGES = tuple(_DOCS / name for name in ("configuration.md", "cli-reference.md", "troubleshooting.md"))
"""The pages that have such places."""


def generated(page: Path) -> str:
    """Make a page anew.

    Args:
        page: One of ``GENERATED_PAGES``.

    Returns:
        Its text, with all generated parts as the code wants them now.
    """
    return _PLACE.sub(
        lambda place: f"{place[1]}\n{_MAKERS[place['name']]()}\n\n{place[3]}", page.read_text(encoding="utf-8")
    )


def written_by_hand(text: str) -> str:
    """Leave out what is generated.

    Args:
        text: The text of a page.

    Returns:
        The rest.
    """
    return _PLACE.sub("", text)
