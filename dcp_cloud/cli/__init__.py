"""The command line: ``dcp-cloud``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of the package."""
    try:
        _import_and_run()
    except KeyboardInterrupt:  # while modules are imported, which takes a moment; a command that runs tells it itself
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def _import_and_run() -> None:
    try:
        from dcp_cloud.cli.app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        sys.stderr.write(
            f"dcp-cloud needs the package {package!r}, which is not installed: in its clone, pip install '.[cli]'\n"
        )
        raise SystemExit(2) from None
    run()
