"""Many small tensors: seconds and requests.

    python -m benchmarks.small [--peers ours s3torch-4 …] [--cases 10k 100k]

10,000 tensors of 4 KiB on the shaped link, where requests cost, and 100,000 of 256 bytes on the free one, where only
work does; one rank.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.group import Group
from benchmarks.harness import describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS, clear_local

# Tensors, shape, label, link, and who is measured: others would take minutes for 100,000.
CASES = {
    "10k": (10_000, (32, 32), "10,000 of 4 KiB", "shaped", ["ours", "s3torch-4", "s3fs-4", "msc-4", "local"]),
    "100k": (100_000, (8, 8), "100,000 of 256 B", "free", ["ours"]),
}
FIGURES = ("wall_s", "cpu_s", "requests", "rss_growth_mib")


def measure(case: str, runs: int, peers: list[str] | None) -> list[dict]:
    count, shape, label, link, default_peers = CASES[case]
    rows = []
    with running_sink(1) as sink, ExitStack() as stack:
        groups = {
            name: stack.enter_context(Group(name, sink.url, world=1, tensors=count, shape=shape))
            for name in peers or default_peers
        }
        for name, group in groups.items():
            group.do("warm_up", path=f"warm-{name}")
        for run in range(runs):
            for name, group in groups.items():
                sink.clear()
                clear_local()
                sink.shape(link)
                for verb in ("save", "load"):
                    row = group.measure(sink, verb, count * shape[0] * shape[1] * 4, path=f"{name}-{run}")
                    rows.append(row | {"peer": name, "verb": verb, "case": label, "link": link})
                    print(
                        f"{label}, {link} {run} {name:10} {verb} {row['wall_s']:.2f} s "
                        f"{row['cpu_s']:.2f} CPU-s {row['requests']} requests",
                        flush=True,
                    )
                sink.shape("free")
    clear_local()
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peers", nargs="+", choices=list(PEERS))
    arguments.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = arguments.parse_args()
    machine = describe_machine()
    rows = [row for case in options.cases for row in measure(case, options.runs, options.peers)]
    write_results(
        options.name or "small",
        settings={},
        rows=summarise(rows, ("case", "link", "peer", "verb"), FIGURES),
        machine=machine,
    )


if __name__ == "__main__":
    main()
