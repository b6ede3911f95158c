"""The tree of errors, made from the classes."""

from __future__ import annotations

from collections.abc import Iterator

from dcp_cloud.cli.failures import exit_code_of
from dcp_cloud.errors import DcpCloudError
from docs.tools.text import summary, table


def error_classes() -> tuple[type[DcpCloudError], ...]:
    """Every error of the package, parents first."""
    return tuple(error for error, _ in _walk(DcpCloudError, 0))


def error_tree() -> str:
    """The tree, as text."""
    lines = (f"{'    ' * depth}{error.__name__}{_builtin(error)}" for error, depth in _walk(DcpCloudError, 0))
    return "```text\n" + "\n".join(lines) + "\n```"


def error_table() -> str:
    """Every error, what it means, and the exit code of a command that ends with it."""
    rows = (
        [f"`{error.__name__}`", summary(error), str(int(exit_code_of(error("-"))))] for error in error_classes()[1:]
    )
    return table(["Error", "Meaning", "Exit code"], rows)


def _walk(error: type[DcpCloudError], depth: int) -> Iterator[tuple[type[DcpCloudError], int]]:
    yield error, depth
    for child in error.__subclasses__():
        if child.__module__ == DcpCloudError.__module__:
            yield from _walk(child, depth + 1)


def _builtin(error: type[DcpCloudError]) -> str:
    names = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
    return f" ({', '.join(names)})" if names else ""
