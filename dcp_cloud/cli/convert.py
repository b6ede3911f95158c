"""``dcp-cloud convert``: a checkpoint from one form into another."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from dcp_cloud.cli.progress import ProgressDisplay
from dcp_cloud.cli.session import JsonOption, Session, VerboseOption, start
from dcp_cloud.cli.text import count, duration, safe, size
from dcp_cloud.config import parse_bytes

if TYPE_CHECKING:
    from dcp_cloud.convert.run import ConversionSummary


class Form(str, Enum):
    """What can be made."""

    DCP = "dcp"
    TORCH = "torch"
    SAFETENSORS = "safetensors"


def convert(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="A checkpoint's place, or a file; options follow a '?'.")],
    target: Annotated[str, typer.Argument(help="Where it goes, on any store: a place, or a file by its ending.")],
    to: Annotated[
        Form | None, typer.Option("--to", help="The form to make; else the names tell.", show_default=False)
    ] = None,
    only: Annotated[
        str, typer.Option("--only", metavar="PREFIX", help="Convert names that begin with this, and take it off.")
    ] = "",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", metavar="SIZE", help="Begin another object above this length.")
    ] = "5GiB",
    allow_unsafe: Annotated[
        bool,
        typer.Option(
            "--allow-unsafe",
            help="Open pickles that can run code. Only for files of your own.",
            show_default=False,
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at TARGET.", show_default=False)
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Convert a checkpoint: torch's distributed form, a file of torch.save, safetensors files.

    Files end in .pt, .pth, .bin or .ckpt (torch.save) or in .safetensors; every other URI is a place. From a
    distributed checkpoint a place gets safetensors files with an index, from anything else a distributed checkpoint.
    [bold]--to safetensors[/] also merges the files of a sharded safetensors save.

    Bytes are read by ranges and sent in parts; no tensor is ever whole in memory. What is made appears when all of it
    is there; an interruption leaves nothing.
    """
    session = start(ctx, json=json, verbose=verbose)
    max_shard_bytes = parse_bytes(max_shard_size)
    with ProgressDisplay(session.err, "convert") as progress:
        # It brings torch, which takes seconds.
        from dcp_cloud.convert.run import convert_checkpoint

        done = convert_checkpoint(
            source,
            target,
            to=None if to is None else to.value,
            only=only,
            allow_unsafe_pickle=allow_unsafe,
            max_shard_bytes=max_shard_bytes,
            overwrite=overwrite,
            on_event=progress,
        )
    if session.json:
        session.emit("convert", dataclasses.asdict(done))
    else:
        _show(session, done)


def _show(session: Session, done: ConversionSummary) -> None:
    rate = done.size_bytes / done.duration_s if done.duration_s else 0.0
    session.out.print(Text.assemble((safe(done.target), "bold"), ": converted"), soft_wrap=True)
    session.out.print(f"  from     {done.source_form}, {safe(done.source)}", soft_wrap=True)
    session.out.print(f"  to       {done.target_form}")
    session.out.print(
        f"  tensors  {done.tensors:,}" + (f", {count(done.values, 'other value')}" if done.values else "")
    )
    session.out.print(f"  written  {size(done.size_bytes)} in {duration(done.duration_s)} ({size(rate)}/s)")
