"""The pages of the doors show the programs that are run."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "example"),
    [
        ("convert", "convert"),
        ("experimental", "experimental"),
        ("huggingface", "huggingface"),
        ("install", "install"),
        ("state-dicts", "state_dict"),
    ],
)
def test_a_page_holds_the_example_that_is_run(page: str, example: str) -> None:
    """The code of a page is the file in examples/, all of it, in less than 40 lines."""
    program = (ROOT / "examples" / f"{example}.py").read_text(encoding="utf-8").rstrip()
    assert f"```python\n{program}\n```" in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert len(program.splitlines()) < 40
