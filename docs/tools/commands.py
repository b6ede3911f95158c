"""The reference of the command line, made from the command line itself."""

from __future__ import annotations

import re
from typing import Any

import typer

from dcp_cloud.cli.app import _EXAMPLES, build_app
from dcp_cloud.cli.failures import MEANINGS
from docs.tools.text import table

# Rich's markup in the help texts: what is bold on a terminal is the name of a command, an option or a variable.
_BOLD, _STYLED = re.compile(r"\[bold\](.*?)\[/\]"), re.compile(r"\[[a-z ]+\](.*?)\[/\]")
_COMMON = {"json", "verbose"}  # explained once for all commands


def all_commands() -> str:
    """Every command: what it does, its arguments, options and examples."""
    group: Any = typer.main.get_command(build_app())
    return "\n\n".join(_section(name, command) for name, command in _walk("", group))


def exit_codes() -> str:
    """The exit codes of all commands."""
    return table(["Code", "Meaning"], ([str(int(code)), meaning] for code, meaning in MEANINGS.items()))


# Commands whose examples a test executes; the others ask, need files that somebody has, or take minutes.
_RUN = ("ls", "verify", "diff", "cp", "prune", "sweep", "doctor", "config show")


def _walk(before: str, group: Any) -> list[tuple[str, Any]]:  # noqa: ANN401 - typer brings its own classes or click's
    found = []
    for name, command in group.commands.items():
        full = f"{before} {name}".strip()
        found += _walk(full, command) if hasattr(command, "commands") else [(full, command)]
    return found


def _section(name: str, command: Any) -> str:  # noqa: ANN401
    arguments = [one for one in command.params if not _is_option(one)]
    options = [one for one in command.params if _is_option(one) and one.name not in _COMMON]
    usage = " ".join(["dcp-cloud", name, *(["[OPTIONS]"] if options else []), *map(_metavar, arguments)])
    parts = [f"## `{name}`", _plain(command.help), f"```text\n{usage}\n```"]
    if arguments or options:
        rows = [[f"`{_metavar(one)}`", _plain(one.help)] for one in arguments]
        rows += [[_spelling(one), _plain(one.help) + _default(one)] for one in options]
        parts.append(table(["Argument, option", "Meaning"], rows))
    if name in _EXAMPLES:
        run = "<!-- run -->\n\n" if name in _RUN else ""
        parts.append(f"{run}```console\n" + "\n".join(f"$ {line}" for line in _EXAMPLES[name]) + "\n```")
    return "\n\n".join(parts)


def _is_option(parameter: Any) -> bool:  # noqa: ANN401
    return bool(parameter.opts[0].startswith("-"))


def _metavar(argument: Any) -> str:  # noqa: ANN401
    text = str(argument.metavar or argument.name).upper()
    return text if argument.required or text.startswith("[") else f"[{text}]"


def _spelling(option: Any) -> str:  # noqa: ANN401
    value = "" if option.is_flag or option.count else f" {option.metavar or option.name.upper()}"
    names = [*option.opts, *option.secondary_opts]
    return ", ".join(f"`{name}{value if name == names[0] else ''}`" for name in names)


def _default(option: Any) -> str:  # noqa: ANN401
    if not option.show_default or option.is_flag or option.default is None:
        return ""
    return f" Default: `{option.default}`."


def _plain(text: str | None) -> str:
    marked = _STYLED.sub(r"\1", _BOLD.sub(r"`\1`", text or ""))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in marked.split("\n\n"))
