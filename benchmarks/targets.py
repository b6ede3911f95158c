"""What was aimed at and what was reached, and the figures that say it in short: made of the results."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import read_results
from benchmarks.tables import ratio, rows_of, table

_MEMORY_MIB = 512 + 64
# By bytes and not by item: 56 MiB of records are four parts and as many connections' shares.
_HANDFUL = 40


def make_summaries() -> dict[str, str]:
    """Give the table of targets and the sentences at the top of the page."""
    if not all(read_results(name) for name in ("save_load", "clouds", "reshard", "small", "memory")):
        return {}
    return {"targets": targets(), "short": short()}


class Figures:
    """Looks up what the targets compare. Factors are medians of ratios within a round."""

    def __init__(self, ranks: int) -> None:
        self._rows = {
            (row["link"], row["peer"], row["verb"]): row for row in rows_of("save_load") if row["ranks"] == ranks
        }

    def factor(self, figure: str, link: str, verb: str, peer: str, base: str) -> float:
        return ratio(self._rows[link, peer, verb][figure], self._rows[link, base, verb][figure])

    def best(self, figure: str, link: str, verb: str, library: str) -> str:
        """Name the number of threads with which a library is best."""
        names = {peer for at, peer, _ in self._rows if at == link and peer.startswith(library)}
        return min(names, key=lambda peer: self._rows[link, peer, verb][figure]["median"])

    def to_best(self, figure: str, link: str, verb: str, library: str) -> float:
        """Say how many times as much the best of a library takes as we do."""
        return self.factor(figure, link, verb, self.best(figure, link, verb, library), "ours")

    def memory_mib(self, library: str) -> float:
        """Give the largest growth of memory."""
        rows = [row for (_, peer, _), row in self._rows.items() if peer.startswith(library)]
        return max(row["rss_growth_mib"]["max"] for row in rows)


def targets() -> str:
    figures = Figures(1)
    rows = []

    def add(what: str, measured: str, *, is_reached: bool) -> None:
        rows.append([what, measured, "yes" if is_reached else "**no**"])

    for verb, limit in (("save", 0.5), ("load", 0.4)):
        floor = figures.factor("cpu_s_per_gib", "free", verb, "ours", "socket+crc32")
        add(f"{verb}, CPU ≤ 1.3x a bare socket with checksums", f"{floor:.2f}x", is_reached=floor <= 1.3)
        share = 1 / figures.to_best("cpu_s_per_gib", "free", verb, "s3torch")
        add(f"{verb}, CPU ≤ {limit}x `s3torchconnector`", f"{share:.2f}x", is_reached=share <= limit)
    for library, name, limit in (
        ("s3torch", "`s3torchconnector` at its best", 2),
        ("s3fs", "`FsspecWriter` + `s3fs`", 10),
    ):
        for verb in ("save", "load"):
            faster = figures.to_best("wall_s", "shaped", verb, library)
            add(f"shaped link, {verb} ≥ {limit}x faster than {name}", f"{faster:.1f}x", is_reached=faster >= limit)
    growth = _own_growth_mib()
    what = f"extra memory ≤ `max_inflight_bytes` + 64 MiB ({_MEMORY_MIB} MiB)"
    add(what, f"at most {growth:.0f} MiB", is_reached=growth <= _MEMORY_MIB)
    extra = _first("reshard", lambda row: row["peer"] == "ours" and row["slices"] == "dim 0")["amplification"]["max"]
    add("bytes fetched / needed for a slice along dimension 0 ≤ 1.05", f"{extra:.3f}", is_reached=extra <= 1.05)
    saves, loads = (
        _first("small", lambda row, verb=verb: _is_10k(row, verb))["requests"]["median"] for verb in ("save", "load")
    )
    what = "10,000 tensors of 4 KiB: requests by bytes, not by item"
    add(what, f"{saves:.0f} to save, {loads:.0f} to load", is_reached=max(saves, loads) <= _HANDFUL)
    return table(["target", "measured", "reached"], rows)


def short() -> str:
    one, four = Figures(1), Figures(4)

    def both(figures: Figures, figure: str, link: str, library: str) -> str:
        save, load = (figures.to_best(figure, link, verb, library) for verb in ("save", "load"))
        return f"{save:.1f} and {load:.1f} times"

    seconds, shaped = both(one, "wall_s", "free", "s3torch"), both(one, "wall_s", "shaped", "s3torch")
    cpu, ranks = both(one, "cpu_s_per_gib", "free", "s3torch"), both(four, "wall_s", "free", "s3torch")
    s3fs, msc = both(one, "wall_s", "shaped", "s3fs"), both(one, "wall_s", "shaped", "msc")
    ours, s3torch, s3fs_memory, msc_memory = (one.memory_mib(name) for name in ("ours", "s3torch", "s3fs", "msc"))
    save, load = (one.factor("cpu_s_per_gib", "free", verb, "ours", "socket+crc32") for verb in ("save", "load"))
    return f"""\
- On the free loopback `s3torchconnector` takes {seconds} as long as `dcp_cloud` to save and to load 1 GiB, and {cpu}
  the CPU; with four ranks {ranks} as long.
- On a link like a cloud's `s3torchconnector` takes {shaped} as long, `FsspecWriter` with `s3fs` {s3fs},
  `multi-storage-client` {msc}.
- `dcp_cloud` grows the process by {ours:.0f} MiB at most, `s3torchconnector` by {s3torch:.0f}, `s3fs` by
  {s3fs_memory:.0f}, `multi-storage-client` by {msc_memory:.0f}.
- It is not free: its CPU is {save:.1f} times (save) and {load:.1f} times (load) that of a bare socket that does nothing
  but send and sum up. The [last section](#where-the-time-goes) says where the difference goes."""


def _own_growth_mib() -> float:
    rows = [row for name in ("save_load", "clouds", "memory") for row in rows_of(name)]
    return max(row["rss_growth_mib"]["max"] for row in rows if row["peer"].startswith("ours"))


def _is_10k(row: dict, verb: str) -> bool:
    return row["peer"] == "ours" and row["verb"] == verb and row["case"].startswith("10,000")


def _first(name: str, is_wanted: Callable[[dict], bool]) -> dict:
    return next(row for row in rows_of(name) if is_wanted(row))
