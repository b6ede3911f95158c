"""A page that shows what is in a checkpoint: one file, without a script, that opens in any browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from dcp_cloud.checkpoint.entries import CheckpointContents
from dcp_cloud.errors import MissingExtraError
from dcp_cloud.tools.timeline import Timeline
from dcp_cloud.tools.treemap import make_treemap

_WIDTH, _HEIGHT = 1160, 560
_LARGEST = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """What one rank has stored.

    Args:
        rank: The rank; None if the names do not tell.
        shards: Chunks of tensors and values.
        size_bytes: Their length.
        objects: Objects that they are in.
    """

    rank: int | None
    shards: int
    size_bytes: int
    objects: int


def make_report(contents: CheckpointContents, timelines: Sequence[Timeline] = ()) -> str:
    """Make the page.

    Args:
        contents: What is in the checkpoint.
        timelines: Recordings of its saves or loads.

    Returns:
        HTML. Names come from the checkpoint and are escaped; the page forbids itself scripts and requests.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the report needs the package 'jinja2'", hint="install it in the clone of dcp-cloud: pip install '.[cli]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=_size, shown=_shown)
    template = environment.from_string(resources.files("dcp_cloud.tools").joinpath("report.html.j2").read_text("utf-8"))
    tensors = sorted(contents.tensors, key=lambda tensor: (-tensor.size_bytes, tensor.fqn))
    return template.render(
        contents=contents,
        tiles=make_treemap([(one.fqn, one.size_bytes) for one in contents.tensors], width=_WIDTH, height=_HEIGHT),
        width=_WIDTH,
        height=_HEIGHT,
        dtypes=contents.by_dtype(),
        modules=contents.by_module(1),
        ranks=rank_shares(contents),
        largest=tensors[:_LARGEST],
        timelines=timelines,
    )


def rank_shares(contents: CheckpointContents) -> list[RankShare]:
    """Sum up what each rank has stored.

    Args:
        contents: What is in the checkpoint.

    Returns:
        A share for each rank, by rank; what no rank is known of comes last.
    """
    sums: dict[int | None, tuple[int, int, set[str]]] = {}
    for shard in contents.shards():
        shards, size_bytes, keys = sums.get(shard.rank, (0, 0, set()))
        if shard.stored is not None:
            keys.add(shard.stored.key)
        sums[shard.rank] = (shards + 1, size_bytes + shard.size_bytes, keys)
    shares = [
        RankShare(rank=rank, shards=shards, size_bytes=size_bytes, objects=len(keys))
        for rank, (shards, size_bytes, keys) in sums.items()
    ]
    return sorted(shares, key=lambda share: (share.rank is None, share.rank or 0))


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.2f} TiB"


def _shown(text: object) -> str:
    """Replace what cannot be seen; text that runs backwards could show another name than it is."""
    return "".join(char if char.isprintable() else "\ufffd" for char in str(text))
