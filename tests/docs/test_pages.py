"""Pages say what the code says, and can be found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dcp_cloud.tools.permissions import _PERMISSIONS
from docs.tools.errors import error_classes
from docs.tools.pages import GENERATED_PAGES, generated, written_by_hand
from tests.docs.blocks import PAGES, ROOT, blocks_of

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<path>[^)#\s:]*)(?:#(?P<anchor>[^)\s]*))?\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", GENERATED_PAGES, ids=lambda page: page.name)
def test_what_is_made_from_the_code_is_fresh(page: Path) -> None:
    """The tables of settings, commands and errors are those of this code; ``./scripts/docs`` writes them."""
    assert page.read_text(encoding="utf-8") == generated(page), "run ./scripts/docs"


def test_every_error_comes_with_advice() -> None:
    """Whoever meets an error finds its name beside what to do, written by a person."""
    advice = written_by_hand((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", advice, re.MULTILINE))
    assert {error.__name__ for error in error_classes()} == set(rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A link within the repository names a file that there is, and an anchor that this file has."""
    for link in _LINK.finditer(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        assert target.exists(), link[0]
        if link["anchor"] and target.suffix == ".md":
            assert link["anchor"] in _anchors(target), link[0]


def test_every_page_can_be_found() -> None:
    """The site's table of contents names every page."""
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    missing = {page for page in pages if f": {page}" not in contents}
    assert not missing


def test_the_policy_for_s3_is_exactly_what_the_doctor_asks_for() -> None:
    """The policy to copy has the actions that ``dcp-cloud doctor`` names, and no others."""
    granted = {action for statement in _json("s3", "Statement")["Statement"] for action in statement["Action"]}
    assert granted == {name for fix in _PERMISSIONS["s3"].values() for name in re.findall(r"s3:\w+", fix)}


def test_the_role_for_google_is_exactly_what_the_doctor_asks_for() -> None:
    """The role to copy has the permissions that ``dcp-cloud doctor`` names, and no others."""
    wanted, resource = set(), ""
    for fix in _PERMISSIONS["gs"].values():
        # "storage.objects.create, .get and .delete"
        for kind, verb in re.findall(r"(storage\.\w+)?\.(\w+)", fix):
            resource = kind or resource
            wanted.add(f"{resource}.{verb}")
    assert set(_json("gcs", "includedPermissions")["includedPermissions"]) == wanted


def test_the_role_for_azure_allows_what_the_doctor_asks_for() -> None:
    """The role to copy allows what the letters of a shared access signature mean that ``dcp-cloud doctor`` names."""
    meaning = {"r": "read", "l": "read", "c": "write", "w": "write", "d": "delete"}
    letters = {
        letter
        for fix in _PERMISSIONS["az"].values()
        for letter in re.findall(r"\b\w\b", fix.partition("signature:")[2])
    }
    assert {action.rpartition("/")[2] for action in _json("azure", "DataActions")["DataActions"]} == {
        meaning[letter] for letter in letters
    }


def _json(page: str, key: str) -> Any:
    blocks = blocks_of(ROOT / "docs" / "clouds" / f"{page}.md")
    (found,) = (block for block in blocks if block.language == "json" and f'"{key}"' in block.code)
    return json.loads(found.code)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
