"""``dcp-cloud inspect``: what is in a checkpoint."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dcp_cloud.checkpoint.location import Location
from dcp_cloud.cli.session import JsonOption, Session, UriArgument, VerboseOption, start
from dcp_cloud.cli.text import count, iso, moment, safe, size, some
from dcp_cloud.errors import ConfigError

if TYPE_CHECKING:
    from dcp_cloud.checkpoint.entries import CheckpointContents, Shard, TensorEntry, Total

_STATES = {"complete": "complete", "rank-local": "rank-local (each rank has committed its own part)"}


def inspect(
    ctx: typer.Context,
    uri: UriArgument,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor: shape, dtype, size, shards.", show_default=False)
    ] = False,
    objects: Annotated[
        bool, typer.Option("--objects", help="List every data object: length, items.", show_default=False)
    ] = False,
    module: Annotated[
        int, typer.Option("--module", min=1, metavar="DEPTH", help="Segments of a name that sums are made by.")
    ] = 1,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with pictures of it.", show_default=False),
    ] = None,
    events: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Recorded events of a save or load, for the page's timeline; repeatable."),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show what is in a checkpoint: tensors, dtypes, modules, objects. No tensor is loaded.

    [bold]--html[/] writes a page that opens in any browser: sizes by module as a map, dtypes, shards by rank, and with
    [bold]--events[/] a timeline of what [bold]EventRecorder[/] recorded.

    Works for checkpoints of torch's own and other writers of its layout. [bold]--json[/] holds everything, down to the
    place of each shard.
    """
    session = start(ctx, json=json, verbose=verbose)
    if events and html is None:
        raise ConfigError("--events is for the page", hint="name the page, too: --html report.html")
    location = Location(uri, transfer=None, store=None, config=None, schemes=None)
    # It brings torch, which takes seconds.
    from dcp_cloud.checkpoint.contents import read_contents

    try:
        contents = read_contents(location.store, transfer=location.transfer)
    finally:
        location.store.close()
    if html is not None:
        _write_page(session, html, contents, events or [])
        return
    if session.json:
        session.emit("inspect", _document(location.uri.root, contents, module))
        return
    _show_summary(session, location.uri.root, contents)
    _show_totals(session, "Dtype", contents.by_dtype())
    _show_totals(session, "Module", contents.by_module(module))
    if tensors:
        _show_tensors(session, contents)
    if objects:
        _show_objects(session, contents)
    if contents.damage:
        session.out.print(
            Text(f"\nIt is damaged. dcp-cloud verify {shlex.quote(str(location.uri))}", "red"), soft_wrap=True
        )


def _write_page(session: Session, path: Path, contents: CheckpointContents, events: Sequence[Path]) -> None:
    from dcp_cloud.progress.recorder import read_events
    from dcp_cloud.tools.report import make_report
    from dcp_cloud.tools.timeline import make_timeline

    page = make_report(contents, [make_timeline(one.name, read_events(one)) for one in events])
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}", cause=error.strerror, hint="name a file that can be written"
        ) from error
    if session.json:
        session.emit("page", {"path": str(path), "size_bytes": len(page.encode())})
        return
    session.out.print(f"wrote {path}: open it in a browser", soft_wrap=True, markup=False)


def _document(uri: str, contents: CheckpointContents, depth: int) -> dict[str, Any]:
    return {
        "uri": uri,
        "state": contents.state,
        "committed_at": iso(contents.committed_at),
        "save_id": contents.save_id,
        "version": contents.version,
        "commits": list(contents.commits),
        "commit_bytes": contents.commit_bytes,
        "data_bytes": contents.data_bytes,
        "dtypes": [_total(total) for total in contents.by_dtype()],
        "modules": [_total(total) for total in contents.by_module(depth)],
        "tensors": [
            {
                "fqn": tensor.fqn,
                "shape": list(tensor.shape),
                "dtype": tensor.dtype_name,
                "size_bytes": tensor.size_bytes,
                "commit_rank": tensor.commit_rank,
                "shards": [
                    {"offsets": list(shard.offsets), "sizes": list(shard.sizes), **_stored(shard)}
                    for shard in tensor.shards
                ],
            }
            for tensor in contents.tensors
        ],
        "values": [{"fqn": value.fqn, **_stored(value)} for value in contents.values],
        "objects": [
            {
                "key": entry.key,
                "size_bytes": entry.size_bytes,
                "items": entry.items,
                "items_bytes": entry.items_bytes,
            }
            for entry in contents.objects
        ],
        "unnamed": [{"key": meta.key, "size_bytes": meta.size_bytes} for meta in contents.unnamed],
        "damage": [{"fqn": one.fqn, "object": one.key, "cause": one.cause} for one in contents.damage],
    }


def _total(total: Total) -> dict[str, Any]:
    return {
        "name": total.name,
        "tensors": total.tensors,
        "elements": total.elements,
        "size_bytes": total.size_bytes,
    }


def _stored(shard: Shard) -> dict[str, Any]:
    stored = shard.stored
    return {
        "rank": shard.rank,
        "object": stored.key if stored else None,
        "offset": stored.offset if stored else None,
        "size_bytes": stored.size_bytes if stored else None,
        "transforms": list(stored.transforms) if stored else [],
        "has_checksum": bool(stored and (stored.raw or stored.crc32 is not None)),
    }


def _show_summary(session: Session, uri: str, contents: CheckpointContents) -> None:
    shards = list(contents.shards())
    ranks = tuple(str(rank) for rank in sorted({shard.rank for shard in shards if shard.rank is not None}))
    elements = sum(math.prod(shard.sizes) for tensor in contents.tensors for shard in tensor.shards)
    tensor_bytes = sum(tensor.size_bytes for tensor in contents.tensors)
    recorded = sum(1 for shard in shards if _stored(shard)["has_checksum"])
    unnamed_bytes = sum(meta.size_bytes for meta in contents.unnamed)
    rows = {
        "state": f"{_STATES[contents.state]}, committed {moment(contents.committed_at)} UTC",
        "save": contents.save_id or "–",
        "layout": f"torch DCP {contents.version}" if contents.version else "torch DCP, version not stated",
        "tensors": f"{len(contents.tensors):,}, {elements:,} elements, {size(tensor_bytes)}",
        "values": f"{len(contents.values):,} (everything that is no tensor)",
        "objects": f"{len(contents.objects):,}, {size(contents.data_bytes)}; commit {size(contents.commit_bytes)}",
        "ranks": some(ranks, 8) or "not told by the names of the objects",
        "checksums": f"recorded in the commit for {recorded:,} of {count(len(shards), 'item')}"
        if recorded
        else "none in the commit; verify uses those inside of the items",
    }
    session.out.print(Text(safe(uri), "bold"), soft_wrap=True)
    for name, value in rows.items():
        session.out.print(Text.assemble((f"  {name:<10}", "dim"), safe(value)), soft_wrap=True)
    if contents.unnamed:
        line = f"{count(len(contents.unnamed), 'object')}, {size(unnamed_bytes)}, not part of this checkpoint"
        session.out.print(Text.assemble(("  besides   ", "dim"), (line, "yellow")))
    missing = sum(1 for entry in contents.objects if entry.size_bytes is None)
    if missing:
        session.out.print(Text.assemble(("  missing   ", "dim"), (count(missing, "object"), "bold red")))
    for one in contents.damage:
        line = f"{safe(one.fqn)}: {safe(one.cause)}"
        session.out.print(Text.assemble(("  damage    ", "dim"), (line, "bold red")), soft_wrap=True)


def _show_totals(session: Session, title: str, totals: list[Total]) -> None:
    if not totals:
        return
    table = _table(title, "Tensors", "Elements", "Size", "Share")
    whole = sum(total.size_bytes for total in totals) or 1
    for total in totals:
        share = f"{100 * total.size_bytes / whole:.1f} %"
        table.add_row(
            Text(safe(total.name)), f"{total.tensors:,}", f"{total.elements:,}", size(total.size_bytes), share
        )
    session.out.print()
    session.out.print(table)


def _show_tensors(session: Session, contents: CheckpointContents) -> None:
    table = _table("Tensor", "Shape", "Dtype", "Size", "Stored by")
    for tensor in contents.tensors:
        shape = "×".join(map(str, tensor.shape)) or "scalar"
        table.add_row(Text(safe(tensor.fqn)), shape, tensor.dtype_name, size(tensor.size_bytes), _storers(tensor))
    for value in contents.values:
        rank = f"rank {value.rank}" if value.rank is not None else "–"
        table.add_row(Text(safe(value.fqn)), "value", "–", size(value.size_bytes), rank)
    session.out.print()
    session.out.print(table)


def _storers(tensor: TensorEntry) -> str:
    ranks = sorted({shard.rank for shard in tensor.shards if shard.rank is not None})
    noun = "rank" if len(ranks) == 1 else "ranks"
    where = f"{noun} {some(tuple(map(str, ranks)), 4)}" if ranks else "–"
    return where if len(tensor.shards) == 1 else f"{count(len(tensor.shards), 'shard')}, {where}"


def _show_objects(session: Session, contents: CheckpointContents) -> None:
    table = _table("Object", "Items", "Of items", "Length")
    for entry in contents.objects:
        length = Text("missing", "bold red") if entry.size_bytes is None else Text(size(entry.size_bytes))
        table.add_row(Text(safe(entry.key)), f"{entry.items:,}", size(entry.items_bytes), length)
    for meta in contents.unnamed:
        table.add_row(Text(safe(meta.key), "yellow"), "–", "–", Text(size(meta.size_bytes)))
    session.out.print()
    session.out.print(table)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for other in others:
        table.add_column(other, justify="left" if other in ("Dtype", "Stored by") else "right")
    return table
