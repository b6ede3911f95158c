"""What the site does to pages: links to files outside of ``docs/`` lead to the repository."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.repository_links")

_ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"\]\((?P<path>\.\./[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:  # noqa: ANN401 - mkdocs' own types
    """Lead links that leave the pages to the repository; a link to nothing is a warning, so an error of the build."""

    def lead(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link["path"]))
        if not path.startswith("../"):
            return link[0]
        target = path.removeprefix("../")
        if not (_ROOT / target).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
        kind = "tree" if os.path.isdir(_ROOT / target) else "blob"
        return f"]({config.extra['repository']}/{kind}/main/{target}{link['anchor'] or ''})"

    return _LINK.sub(lead, markdown)
