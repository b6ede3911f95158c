"""The table of commands, and what surrounds every one of them."""

from __future__ import annotations

import inspect as inspectlib
import io
import platform
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from dcp_cloud.cli.bench import bench
from dcp_cloud.cli.config import config_show
from dcp_cloud.cli.convert import convert
from dcp_cloud.cli.cp import cp
from dcp_cloud.cli.demo import demo
from dcp_cloud.cli.diff import diff
from dcp_cloud.cli.doctor import doctor
from dcp_cloud.cli.emulators import serve_emulators
from dcp_cloud.cli.failures import MEANINGS, ExitCode, NotConfirmedError, emit_error, show_error
from dcp_cloud.cli.inspect import inspect
from dcp_cloud.cli.listing import ls
from dcp_cloud.cli.prune import prune
from dcp_cloud.cli.rm import rm
from dcp_cloud.cli.session import JsonOption, OutputError, Session, VerboseOption, new_session, silence, start
from dcp_cloud.cli.sweep import sweep
from dcp_cloud.cli.verify import verify
from dcp_cloud.errors import DcpCloudError

# A new command: a function in a module of its own that imports torch and the like only when it is called, one line
# here, and its examples below. Two words make a group of commands.
_COMMANDS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "ls": ls,
        "inspect": inspect,
        "verify": verify,
        "diff": diff,
        "cp": cp,
        "convert": convert,
        "rm": rm,
        "prune": prune,
        "sweep": sweep,
        "doctor": doctor,
        "config show": config_show,
        "bench": bench,
        "serve-emulators": serve_emulators,
        "demo": demo,
    }
)
_GROUPS: Mapping[str, str] = MappingProxyType({"config": "Look at the settings in force."})
_EXAMPLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ls": (
            "dcp-cloud ls s3://bucket/run",
            "dcp-cloud ls s3://bucket/run --json | jq -r '.checkpoints[-1].uri'",
        ),
        "inspect": (
            "dcp-cloud inspect s3://bucket/run/step-100",
            "dcp-cloud inspect s3://bucket/run/step-100 --module 3",
            "dcp-cloud inspect s3://bucket/run/step-100 --tensors --objects",
            "dcp-cloud inspect s3://bucket/run/step-100 --html report.html --events events-0.jsonl",
        ),
        "verify": (
            "dcp-cloud verify s3://bucket/run/step-100",
            "dcp-cloud verify s3://bucket/run/step-100 --shallow",
            "dcp-cloud verify s3://bucket/run/step-100 --json > report.json || echo damaged",
        ),
        "diff": (
            "dcp-cloud diff s3://bucket/run/step-100 s3://bucket/run/step-200",
            "dcp-cloud diff ./before gs://bucket/after --values",
        ),
        "cp": (
            "dcp-cloud cp s3://bucket/run/step-100 gs://other/run/step-100",
            "dcp-cloud cp s3://bucket/run ./backup --recursive",
        ),
        "convert": (
            "dcp-cloud convert s3://bucket/run/step-100 gs://models/step-100 --only model.",
            "dcp-cloud convert s3://bucket/run/step-100 ./step-100.pt",
            "dcp-cloud convert ./model.pt s3://bucket/run/step-0",
            "dcp-cloud convert s3://bucket/shards s3://bucket/model --to safetensors --max-shard-size 2GiB",
        ),
        "rm": (
            "dcp-cloud rm s3://bucket/run/step-100 --dry-run",
            "dcp-cloud rm s3://bucket/run/step-100 --yes",
            "dcp-cloud rm s3://bucket/run --recursive",
        ),
        "prune": (
            "dcp-cloud prune s3://bucket/run --keep-last 3 --keep-every 1000 --dry-run",
            "dcp-cloud prune s3://bucket/run --keep-last 3 --keep-best loss:min:2 --yes",
        ),
        "sweep": (
            "dcp-cloud sweep s3://bucket/run --dry-run",
            "dcp-cloud sweep s3://bucket/run --older-than 48h",
        ),
        "doctor": ("dcp-cloud doctor s3://bucket/run", "dcp-cloud doctor gs://bucket/run --read-only"),
        "config show": ("dcp-cloud config show", "dcp-cloud config show s3://bucket/run?part_size=64MiB"),
        "bench": (
            "dcp-cloud bench s3://bucket/scratch",
            "dcp-cloud bench 'gs://bucket/scratch?max_concurrency=32' --quick",
            "dcp-cloud bench az://container/scratch --size 2GiB --checkpoint 1TiB --json",
        ),
        "serve-emulators": ("dcp-cloud serve-emulators", "dcp-cloud serve-emulators ceph azurite --bucket models"),
        "demo": ("dcp-cloud demo", "dcp-cloud demo --model small --steps 6"),
    }
)


class _Group(TyperGroup):
    """Turns what goes wrong in any command into a message, a document if one is wanted, and an exit code."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:  # noqa: ANN401 - see invoke
        given = tuple(args)
        try:
            ctx = super().make_context(info_name, args, *rest, **extra)
        except Exception as error:
            if "--json" in given and _is_wrong_usage(error):
                _emit_usage(error)
            raise
        ctx.meta[_WANTS_JSON] = "--json" in given
        return ctx

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer brings its own context class or click's, by version
        try:
            return super().invoke(ctx)
        except DcpCloudError as error:
            raise typer.Exit(show_error(_session(ctx), error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(_end(ctx, "Interrupted", "interrupted", ExitCode.INTERRUPTED, style="red")) from None
        except NotConfirmedError as error:
            raise typer.Exit(_end(ctx, "NotConfirmed", str(error), ExitCode.INTERRUPTED, style="yellow")) from None
        except OutputError as error:
            _session(ctx).err.print(f"error: standard output cannot be written: {error}", style="red", markup=False)
            raise typer.Exit(ExitCode.OUTPUT) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):  # whoever read the output has left: `| head`
            raise
        except Exception as error:
            if _is_wrong_usage(error):  # the library prints it
                if ctx.meta[_WANTS_JSON]:
                    _emit_usage(error)
                raise
            err = _session(ctx).err
            err.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
            message = "this is a defect of dcp-cloud; please report it with the lines above"
            raise typer.Exit(_end(ctx, type(error).__name__, message, ExitCode.INTERNAL, style="red")) from error


_WANTS_JSON = "dcp_cloud.cli.wants_json"


def _is_wrong_usage(error: Exception) -> bool:
    return hasattr(error, "exit_code") and hasattr(error, "format_message")


def _emit_usage(error: Any) -> None:  # noqa: ANN401 - typer's own exception or click's, by version
    session = new_session(json=True, verbose=0)
    emit_error(session, type(error).__name__, error.format_message(), error.exit_code)


def _end(ctx: typer.Context, kind: str, message: str, code: ExitCode, *, style: str) -> ExitCode:
    """Tell how a command ended that did not get to its own document."""
    session = _session(ctx)
    session.err.print(message, style=style)
    if session.json:
        emit_error(session, kind, message, code)
    return code


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    found = {name: _version(name) for name in ("dcp-cloud", "torch")}
    typer.echo(f"dcp-cloud {found['dcp-cloud']} (torch {found['torch']}, Python {platform.python_version()})")
    raise typer.Exit


def _version(package: str) -> str:
    """Read a version without importing the package: torch takes seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _session(ctx: typer.Context) -> Session:
    found = ctx.find_root().obj
    return found if isinstance(found, Session) else start(ctx, json=False, verbose=0)


def _exit_codes() -> str:
    lines = (f"{int(code):>5}  {meaning}" for code, meaning in MEANINGS.items())
    return "\n".join(["[bold]Exit codes[/]", *lines])


def _unwrapped(command: Callable[..., Any]) -> str:
    """Give a docstring with one line for each paragraph; the terminal's width decides where they break."""
    paragraphs = inspectlib.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _examples(examples: tuple[str, ...]) -> str:
    return "\n".join(["[bold]Examples[/]", *(f"  {escape(example)}" for example in examples)])


def build_app() -> typer.Typer:
    """Make the command line from the table of commands."""
    app = typer.Typer(
        name="dcp-cloud",
        cls=_Group,
        rich_markup_mode="rich",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        epilog=_exit_codes(),
    )
    app.callback(help=_unwrapped(_root))(_root)
    groups: dict[str, typer.Typer] = {}
    for name, command in _COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(name=group, rich_markup_mode="rich", no_args_is_help=True)
            app.add_typer(groups[group], help=_GROUPS[group])
        home = groups.get(group, app)
        home.command(last, help=_unwrapped(command), epilog=_examples(_EXAMPLES.get(name, ())))(command)
    return app


def run() -> None:
    """Run the command line with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?" and goes on
    try:
        build_app()(prog_name="dcp-cloud")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich and typer end with 1, which means something else here
            raise SystemExit(int(ExitCode.READER_LEFT)) from None
        raise
    except OSError as error:  # commands raise none: it was a help text, which the library writes
        sys.stderr.write(f"error: standard output cannot be written: {error}\n")
        silence(sys.stdout)
        raise SystemExit(int(ExitCode.OUTPUT)) from None


def _root(
    ctx: typer.Context,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", help="Show the versions and end.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """PyTorch Distributed Checkpoints on S3, Google Cloud Storage, Azure Blob and local disks.

    Look: which checkpoints there are ([bold]ls[/]), what is in one ([bold]inspect[/]), whether every byte of it is
    still what was saved ([bold]verify[/]), what differs between two ([bold]diff[/]).

    Move: to another place ([bold]cp[/]) or into another form ([bold]convert[/]).

    Tidy up: remove one ([bold]rm[/]), the steps that a policy does not keep ([bold]prune[/]), or what crashed saves
    left ([bold]sweep[/]).

    Set up: what is wrong with a place ([bold]doctor[/]), how fast it is ([bold]bench[/]), the settings in force
    ([bold]config show[/]), stores to try things out ([bold]serve-emulators[/]), and all of it at work without a cloud
    ([bold]demo[/]).

    Shell completion: [bold]dcp-cloud --install-completion[/].
    """
    start(ctx, json=json, verbose=verbose)
