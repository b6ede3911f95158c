"""Plots and tables from the results.

    python -m benchmarks.report [--images DIR] [--page FILE]

Writes ``bench-*.png`` and, between the marks in ``docs/performance.md``, the tables, the targets and the summary.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.plots import make_plots
from benchmarks.tables import make_tables
from benchmarks.targets import make_summaries

PAGE = ROOT / "docs" / "performance.md"


def fill(text: str, tables: dict[str, str]) -> str:
    """Put each table between ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, table in tables.items():
        text, places = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
        if not places:
            raise SystemExit(f"{PAGE.name} has no place for <!-- {name} -->")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="where plots go")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page goes")
    options = parser.parse_args()
    options.page.write_text(fill(PAGE.read_text(), make_tables() | make_summaries()))
    print(f"wrote {options.page}")
    make_plots(options.images)


if __name__ == "__main__":
    main()
