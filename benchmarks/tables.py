"""The tables of docs/performance.md, made of the results."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.harness import read_results
from benchmarks.peers import PEERS

LABELS = {
    "socket": "bare socket",
    "socket+crc32": "bare socket with CRC-32",
    **{name: peer.label for name, peer in PEERS.items()},
    "s3": "dcp_cloud, S3",
    "gcs": "dcp_cloud, Google",
    "azure": "dcp_cloud, Azure",
}
RESULTS = (
    "raw", "save_load", "clouds", "reshard", "small", "memory", "blocked", "profile-before", "profile-after",
)  # fmt: skip
LINKS = {"free": "free loopback", "shaped": "30 ms, 90 MB/s per connection"}
# Who speaks another API than S3's is compared with our store of that API.
OURS = {"ours-gcs": "ours-gcs", "gcsfs-4": "ours-gcs", "ours-azure": "ours-azure", "adlfs-4": "ours-azure"}


def make_tables() -> dict[str, str]:
    """Give each table by the name that marks its place."""
    return {
        "machine": machine(),
        "raw": raw(),
        "save-load": save_load("save_load"),
        "clouds": save_load("clouds"),
        "sink": sink(),
        "reshard": reshard(),
        "small": small(),
        "memory": memory(),
        "blocked": blocked(),
        "profile": profile(),
    }


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


def machine() -> str:
    rows, last = [], None
    for name in RESULTS:
        document = read_results(name)
        found = document["machine"] if document else None
        if found is None:
            continue
        time, load = found["time"][:16].replace("T", " "), f"{found['load_average']:.1f}"
        rows.append([f"`{name}.json`", time, found["commit"], load])
        last = found
    if last is None:
        return "No results yet."
    named = ", ".join(f"{name} {version}" for name, version in last["versions"].items() if version)
    others = ", ".join(sorted({peer.package for peer in PEERS.values() if peer.package}))
    intro = (
        f"{last['cpu']}, {last['cores']} cores, {last['memory_gib']:.0f} GiB, Linux {last['kernel']}, "
        f"Python {last['python']}, {named}. The others: {others}."
    )
    return intro + "\n\n" + table(["results", "taken (UTC)", "commit", "load average before"], rows)


def raw() -> str:
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


def save_load(name: str) -> str:
    found = {((row["ranks"], row["link"], row["gib"]), row["peer"], row["verb"]): row for row in rows_of(name)}
    texts = []
    for case in dict.fromkeys(case for case, _, _ in found):
        ranks, link, gib = case
        texts.append(f"**{ranks} rank{'s' * (ranks > 1)}, {gib:g} GiB, {LINKS[link]}**")
        for verb in ("save", "load"):
            rows = []
            for peer in dict.fromkeys(peer for at, peer, _ in found if at == case):
                row = found[case, peer, verb]
                first = "ours" if name == "save_load" else "ours-gcs"
                ours = found.get((case, OURS.get(peer, first), verb), row)
                rows.append(
                    [
                        LABELS[peer],
                        span(row["wall_s"]),
                        times(row["wall_s"], ours["wall_s"]),
                        span(row["cpu_s_per_gib"]),
                        times(row["cpu_s_per_gib"], ours["cpu_s_per_gib"]),
                        f"{row['rss_growth_mib']['max']:.0f}",
                        f"{row['requests']['median']:.0f}",
                    ]
                )
            texts.append(table([verb, "seconds", "to ours", "CPU-s/GiB", "to ours", "memory, MiB", "requests"], rows))
    return "\n\n".join(texts)


def sink() -> str:
    """How much of a core the sink used, and how much faster than each client the bare socket was."""
    found = {
        (row["peer"], row["verb"]): row
        for name in ("save_load", "clouds")
        for row in reversed(rows_of(name))
        if row["link"] == "free" and row["ranks"] == 1 and not (name == "clouds" and row["peer"].startswith("socket"))
    }
    sockets = {
        (name, row["verb"]): row
        for name in ("save_load", "clouds")
        for row in rows_of(name)
        if row["link"] == "free" and row["ranks"] == 1 and row["peer"] == "socket"
    }
    rows = []
    for peer, label in LABELS.items():
        if peer == "local" or (peer, "save") not in found:
            continue
        cells = [label]
        for verb in ("save", "load"):
            row, base = found[peer, verb], sockets["clouds" if peer in OURS else "save_load", verb]
            cells += [f"{ratio(row['sink_cpu_s'], row['wall_s']):.2f}", times(row["wall_s"], base["wall_s"])]
        rows.append(cells)
    head = ["", "save: sink's cores", "time to bare socket's", "load: sink's cores", "time to bare socket's"]
    return table(head, rows)


def reshard() -> str:
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


def small() -> str:
    rows = [
        [
            LABELS[row["peer"]],
            row["case"],
            row["link"],
            row["verb"],
            span(row["wall_s"]),
            span(row["cpu_s"]),
            f"{row['requests']['median']:.0f}",
        ]
        for row in rows_of("small")
    ]
    return table(["", "tensors", "link", "", "seconds", "CPU seconds", "requests"], rows)


def memory() -> str:
    rows = [
        [LABELS[row["peer"]], row["case"], row["verb"], span(row["rss_growth_mib"], 0), span(row["wall_s"])]
        for row in rows_of("memory")
    ]
    return table(["", "state", "", "growth, MiB", "seconds"], rows)


def blocked() -> str:
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


def profile() -> str:
    """Before and after, side by side: CPU seconds per GiB of each function of dcp_cloud and what it calls."""
    labels = [label for label in ("before", "after") if rows_of(f"profile-{label}")]
    texts = []
    for verb in ("save", "load"):
        found: dict[str, dict[str, float]] = {}
        for label in labels:
            for row in rows_of(f"profile-{label}"):
                if row["verb"] == verb:
                    cells = found.setdefault(row["place"], dict.fromkeys(labels, 0.0))
                    cells[label] += row["cpu_s_per_gib"]
        rest = found.pop("all others", None)
        ordered = sorted(found.items(), key=lambda item: -max(item[1].values()))
        ordered += [("all others", rest)] if rest else []
        rows = [
            [f"`{place}`" if place != "all others" else place, *(f"{cells[label]:.3f}" for label in labels)]
            for place, cells in ordered
        ]
        texts.append(table([verb, *labels], rows))
    return "\n\n".join(texts) if labels else "No profiles yet."
