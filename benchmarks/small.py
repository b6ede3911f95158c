"""Many small tensors: seconds and requests.

    python -m benchmarks.small [--peers ours s3torch-4 …] [--links free shaped]

10,000 tensors of 4 KiB and 100,000 of 256 bytes, one rank.
"""

from __future__ import annotations

from benchmarks.group import Group
from benchmarks.harness import describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS, clear_local

CASES = {"10,000 of 4 KiB": (10_000, (32, 32)), "100,000 of 256 B": (100_000, (8, 8))}
FIGURES = ("wall_s", "cpu_s", "requests", "rss_growth_mib")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--peers", nargs="+", default=["ours", "s3torch-4", "s3fs-4", "msc-4", "local"], choices=list(PEERS)
    )
    arguments.add_argument("--links", nargs="+", default=["free", "shaped"], choices=["free", "shaped"])
    arguments.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    options = arguments.parse_args()
    machine = describe_machine()
    rows = []
    with running_sink(3) as sink:
        for case in options.cases:
            count, shape = CASES[case]
            groups = {name: Group(name, sink.url, world=1, tensors=count, shape=shape) for name in options.peers}
            try:
                for group in groups.values():
                    group.do("warm_up", path="warm")
                for link in options.links:
                    for run in range(options.runs):
                        for name, group in groups.items():
                            sink.clear()
                            clear_local()
                            sink.shape(link)
                            for verb in ("save", "load"):
                                nbytes = count * shape[0] * shape[1] * 4
                                row = group.measure(sink, verb, nbytes, path=f"{name}-{run}")
                                rows.append(row | {"peer": name, "verb": verb, "case": case, "link": link})
                                print(
                                    f"{case}, {link} {run} {name:10} {verb} {row['wall_s']:.2f} s "
                                    f"{row['cpu_s']:.2f} CPU-s {row['requests']} requests",
                                    flush=True,
                                )
                            sink.shape("free")
            finally:
                for group in groups.values():
                    group.close()
    clear_local()
    write_results(
        options.name or "small",
        settings={},
        rows=summarise(rows, ("case", "link", "peer", "verb"), FIGURES),
        machine=machine,
    )


if __name__ == "__main__":
    main()
