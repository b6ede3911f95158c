"""Plots and tables from the results.

    python -m benchmarks.report

Writes ``docs/images/bench-*.png`` and, between the marks in ``docs/performance.md``, the tables.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.harness import IMAGES, ROOT, read_results
from benchmarks.peers import PEERS

mpl.use("Agg")
PAGE = ROOT / "docs" / "performance.md"
OURS, OTHER, FLOOR = "#1f5fbf", "#b9bec7", "#5d9c59"
LABELS = {
    "socket": "bare socket",
    "socket+crc32": "bare socket with CRC-32",
    **{name: peer.label for name, peer in PEERS.items()},
    "s3": "dcp_cloud, S3",
    "gcs": "dcp_cloud, Google",
    "azure": "dcp_cloud, Azure",
}
LINKS = {"free": "free loopback", "shaped": "30 ms, 90 MB/s per connection"}


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    tables = {
        "machine": machine_table(),
        "raw": raw_table(),
        "save-load": save_load_tables(),
        "sink": sink_table(),
        "reshard": reshard_table(),
        "small": small_table(),
        "memory": memory_table(),
        "blocked": blocked_table(),
    }
    if PAGE.exists():
        text = PAGE.read_text()
        for name, table in tables.items():
            text = re.sub(
                rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
                lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}",
                text,
                flags=re.DOTALL,
            )
        PAGE.write_text(text)
    plot_wall()
    plot_cpu()
    plot_memory()
    plot_raw()


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def span(figure: dict, digits: int = 2) -> str:
    """Median, with the extremes behind it."""
    return f"**{figure['median']:.{digits}f}** ({figure['min']:.{digits}f}–{figure['max']:.{digits}f})"


def ratio(figure: dict, base: dict) -> float:
    """The median of the ratios of measurements of the same round."""
    pairs = list(zip(figure["values"], base["values"], strict=False))
    return statistics.median(a / b for a, b in pairs if b)


def times(figure: dict, base: dict) -> str:
    return f"{ratio(figure, base):.2f}x"


def rows_of(name: str) -> list[dict]:
    document = read_results(name)
    return document["rows"] if document else []


def machine_table() -> str:
    rows = []
    for name in ("raw", "save_load", "save_load_slow", "save_load_ranks", "reshard", "small", "memory", "blocked"):
        document = read_results(name)
        if document is None:
            continue
        machine = document["machine"]
        rows.append(
            [
                f"`{name}.json`",
                machine["time"][:16].replace("T", " "),
                machine["commit"],
                f"{machine['load_average']:.1f}",
            ]
        )
        versions = machine
    if not rows:
        return "No results yet."
    named = ", ".join(f"{name} {version}" for name, version in versions["versions"].items() if version)
    intro = (
        f"{versions['cpu']}, {versions['cores']} cores, {versions['memory_gib']:.0f} GiB, Linux {versions['kernel']}, "
        f"Python {versions['python']}, {named}."
    )
    return intro + "\n\n" + table(["results", "taken (UTC)", "commit", "load average before"], rows)


def raw_table() -> str:
    found = {(row["client"], row["verb"]): row for row in rows_of("raw")}
    rows = []
    for client in dict.fromkeys(client for client, _ in found):
        cells = [LABELS[client]]
        for verb in ("put", "get"):
            row, base = found[client, verb], found["socket+crc32", verb]
            cells += [
                span(row["cpu_s_per_gib"]),
                times(row["cpu_s_per_gib"], base["cpu_s_per_gib"]),
                f"{row['mib_per_s']['median']:.0f}",
            ]
        rows.append(cells)
    head = ["", "put: CPU-s/GiB", "to the floor", "MiB/s", "get: CPU-s/GiB", "to the floor", "MiB/s"]
    return table(head, rows)


def save_load_rows() -> list[dict]:
    return rows_of("save_load") + rows_of("save_load_ranks") + rows_of("save_load_slow")


def save_load_tables() -> str:
    found = {((row["ranks"], row["link"], row["gib"]), row["peer"], row["verb"]): row for row in save_load_rows()}
    texts = []
    for case in dict.fromkeys(case for case, _, _ in found):
        ranks, link, gib = case
        texts.append(f"**{ranks} rank{'s' * (ranks > 1)}, {gib:g} GiB, {LINKS[link]}**")
        rows = []
        for peer in dict.fromkeys(peer for at, peer, _ in found if at == case):
            cells = [LABELS[peer]]
            for verb in ("save", "load"):
                row, ours = found[case, peer, verb], found[case, "ours", verb]
                cells += [
                    span(row["wall_s"]),
                    times(row["wall_s"], ours["wall_s"]),
                    span(row["cpu_s_per_gib"]),
                    times(row["cpu_s_per_gib"], ours["cpu_s_per_gib"]),
                    f"{row['rss_growth_mib']['max']:.0f}",
                    f"{row['requests']['median']:.0f}",
                ]
            rows.append(cells)
        for half, verb in ((1, "save"), (7, "load")):
            head = [verb, "seconds", "to ours", "CPU-s/GiB", "to ours", "memory, MiB", "requests"]
            texts.append(table(head, [[row[0], *row[half : half + 6]] for row in rows]))
    return "\n\n".join(texts)


def sink_table() -> str:
    """How much of a core the sink used, and how much faster than each client the bare socket was."""
    found = {(row["peer"], row["verb"]): row for row in rows_of("save_load") if row["link"] == "free"}
    rows = []
    for peer in dict.fromkeys(peer for peer, _ in found if peer != "local"):
        cells = [LABELS[peer]]
        for verb in ("save", "load"):
            row, base = found[peer, verb], found["socket", verb]
            cells += [f"{ratio(row['sink_cpu_s'], row['wall_s']):.2f}", times(row["wall_s"], base["wall_s"])]
        rows.append(cells)
    return table(
        ["", "save: sink's cores", "time to bare socket's", "load: sink's cores", "time to bare socket's"], rows
    )


def reshard_table() -> str:
    rows = [
        [
            LABELS[row["peer"]],
            row["slices"],
            f"{row['amplification']['median']:.3f}",
            f"{row['requests']['median']:.0f}",
            span(row["wall_s"]),
            f"{row['rss_growth_mib']['max']:.0f}",
        ]
        for row in rows_of("reshard")
    ]
    return table(["", "slices along", "bytes fetched / needed", "requests", "seconds", "memory, MiB"], rows)


def small_table() -> str:
    rows = [
        [
            LABELS[row["peer"]],
            row["case"],
            row["link"],
            row["verb"],
            span(row["wall_s"]),
            f"{row['cpu_s']['median']:.2f}",
            f"{row['requests']['median']:.0f}",
        ]
        for row in rows_of("small")
    ]
    return table(["", "tensors", "link", "", "seconds", "CPU seconds", "requests"], rows)


def memory_table() -> str:
    rows = [
        [LABELS[row["peer"]], row["case"], row["verb"], span(row["rss_growth_mib"], 0), span(row["wall_s"])]
        for row in rows_of("memory")
    ]
    return table(["", "state", "", "growth, MiB", "seconds"], rows)


def blocked_table() -> str:
    rows = [
        [
            LABELS[row["peer"]],
            row["kind"],
            span(row["blocked_s"], 3),
            span(row["wall_s"]),
            f"{row['pace']['median']:.2f}" if row["pace"]["median"] else "–",
        ]
        for row in rows_of("blocked")
    ]
    return table(["", "kind", "seconds blocked", "seconds until stored", "pace of the loop meanwhile"], rows)


# ── plots ────────────────────────────────────────────────────────────────────────────────────────────────────────


def colour(peer: str) -> str:
    if peer in ("ours", "s3", "gcs", "azure"):
        return OURS
    return FLOOR if peer.startswith("socket") or peer == "local" else OTHER


def bars(axes, names: Sequence[str], figures: Sequence[dict], *, title: str, unit: str, log: bool = False) -> None:
    medians = [figure["median"] for figure in figures]
    spread = [
        [m - f["min"] for m, f in zip(medians, figures, strict=True)],
        [f["max"] - m for m, f in zip(medians, figures, strict=True)],
    ]
    axes.barh(
        range(len(names)),
        medians,
        xerr=spread,
        color=[colour(name) for name in names],
        error_kw={"elinewidth": 1, "ecolor": "#444"},
    )
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(unit, fontsize=9)
    if log:
        axes.set_xscale("log")
    for i, figure in enumerate(figures):
        axes.annotate(f" {figure['median']:.2f}", (figure["max"], i), va="center", fontsize=8)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)


def save_plot(figure, name: str) -> None:
    figure.tight_layout()
    path: Path = IMAGES / f"bench-{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path.relative_to(ROOT)}")


def grid_of(figure_name: str, *, name: str, unit: str, title: str, links: Sequence[str], ranks: int, log: bool) -> None:
    found = {
        (row["link"], row["verb"], row["peer"]): row
        for row in save_load_rows()
        if row["ranks"] == ranks and row["gib"] == 1
    }
    if not found:
        return
    present = [link for link in links if any(key[0] == link for key in found)]
    figure, grid = plt.subplots(len(present), 2, figsize=(12, 3.6 * len(present)), squeeze=False)
    for line, link in zip(grid, present, strict=True):
        for axes, verb in zip(line, ("save", "load"), strict=True):
            names = [peer for at, v, peer in found if (at, v) == (link, verb)]
            if link == "shaped":
                names = [peer for peer in names if peer != "local"]
            bars(
                axes,
                names,
                [found[link, verb, peer][figure_name] for peer in names],
                title=f"dcp.{verb}, 1 GiB, {ranks} rank{'s' * (ranks > 1)}, {LINKS[link]}",
                unit=unit,
                log=log,
            )
    figure.suptitle(title, fontsize=11)
    save_plot(figure, name)


def plot_wall() -> None:
    for ranks in (1, 4):
        grid_of(
            "wall_s",
            name=f"wall-{ranks}",
            unit="seconds (median, min–max)",
            ranks=ranks,
            log=False,
            title="Time to save and load 1 GiB: shorter is better",
            links=("free", "shaped"),
        )


def plot_cpu() -> None:
    grid_of(
        "cpu_s_per_gib",
        name="cpu",
        unit="client CPU seconds per GiB (median, min–max)",
        ranks=1,
        log=False,
        title="CPU that a save and a load take from training: shorter is better",
        links=("free",),
    )


def plot_memory() -> None:
    grid_of(
        "rss_growth_mib",
        name="memory",
        unit="growth of resident memory, MiB (median, min–max)",
        ranks=1,
        log=False,
        title="Memory beyond the caller's own: shorter is better",
        links=("free",),
    )


def plot_raw() -> None:
    found = {(row["client"], row["verb"]): row for row in rows_of("raw")}
    if not found:
        return
    figure, grid = plt.subplots(1, 2, figsize=(12, 3.2))
    for axes, verb in zip(grid, ("put", "get"), strict=True):
        names = [client for client, v in found if v == verb]
        bars(
            axes,
            names,
            [found[name, verb]["cpu_s_per_gib"] for name in names],
            title=f"{verb}, parts of 16 MiB",
            unit="client CPU seconds per GiB (median, min–max)",
        )
    save_plot(figure, "raw")


if __name__ == "__main__":
    main()
