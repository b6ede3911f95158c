"""The plots of docs/performance.md, made of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.tables import LABELS, LINKS, rows_of

mpl.use("Agg")
OURS, OTHER, FLOOR = "#1f5fbf", "#b9bec7", "#5d9c59"


def make_plots(images: Path) -> None:
    """Write every plot for which there are results."""
    images.mkdir(parents=True, exist_ok=True)
    plot_wall(images)
    plot_cpu(images)
    plot_memory(images)
    plot_raw(images)


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


def save_plot(figure, images: Path, name: str) -> None:
    figure.tight_layout()
    path = images / f"bench-{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")


def grid_of(
    figure_name: str, images: Path, *, name: str, unit: str, title: str, links: Sequence[str], ranks: int, log: bool
) -> None:
    found = {(row["link"], row["verb"], row["peer"]): row for row in rows_of("save_load") if row["ranks"] == ranks}
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
                title=f"dcp.{verb}, {ranks} rank{'s' * (ranks > 1)}, {LINKS[link]}",
                unit=unit,
                log=log,
            )
    figure.suptitle(title, fontsize=11)
    save_plot(figure, images, name)


def plot_wall(images: Path) -> None:
    for ranks in (1, 4):
        grid_of(
            "wall_s",
            images,
            name=f"wall-{ranks}",
            unit="seconds, logarithmic (median, min–max)",
            ranks=ranks,
            log=True,
            title="Time to save and load 1 GiB: shorter is better",
            links=("free", "shaped"),
        )


def plot_cpu(images: Path) -> None:
    grid_of(
        "cpu_s_per_gib",
        images,
        name="cpu",
        unit="client CPU seconds per GiB (median, min–max)",
        ranks=1,
        log=False,
        title="CPU that a save and a load take from training: shorter is better",
        links=("free",),
    )


def plot_memory(images: Path) -> None:
    grid_of(
        "rss_growth_mib",
        images,
        name="memory",
        unit="growth of resident memory, MiB (median, min–max)",
        ranks=1,
        log=False,
        title="Memory beyond the caller's own: shorter is better",
        links=("free",),
    )


def plot_raw(images: Path) -> None:
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
    save_plot(figure, images, "raw")
