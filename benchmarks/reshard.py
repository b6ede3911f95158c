"""Loading a checkpoint into another sharding: bytes fetched for bytes needed, and requests.

    python -m benchmarks.reshard [--peers ours s3torch-4 …]

Two ranks save tensors that are cut along dimension 0; four ranks load them cut along dimension 0, and cut along
dimension 1. The sink counts.
"""

from __future__ import annotations

from benchmarks.group import Group
from benchmarks.harness import GIB, MIB, describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS

FIGURES = ("wall_s", "cpu_s_per_gib", "amplification", "requests", "rss_growth_mib")


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--peers", nargs="+", default=["ours", "s3torch-4", "s3fs-4", "msc-4"], choices=list(PEERS))
    arguments.add_argument("--tensors", type=int, default=16)
    options = arguments.parse_args()
    machine = describe_machine()
    shape = (2048, 2048)
    nbytes = options.tensors * 16 * MIB
    rows = []
    with running_sink(nbytes / GIB * 1.5 + 0.25) as sink:
        for name in options.peers:
            sink.clear()
            settings = {"tensors": options.tensors, "shape": shape}
            with Group(name, sink.url, world=2, dim=0, **settings) as savers:
                savers.do("warm_up", path="warm")
                savers.do("save", path="sharded")
            for dim in (0, 1):
                with Group(name, sink.url, world=4, dim=dim, **settings) as loaders:
                    loaders.do("warm_up", path="warm4")
                    for _ in range(options.runs):
                        row = loaders.measure(sink, "load", nbytes, path="sharded")
                        row |= {"peer": name, "slices": f"dim {dim}", "amplification": row["bytes_out"] / nbytes}
                        rows.append(row)
                        print(
                            f"{name:10} dim {dim}: {row['amplification']:.3f} bytes fetched per byte needed, "
                            f"{row['requests']} requests, {row['wall_s']:.2f} s",
                            flush=True,
                        )
    write_results(
        options.name or "reshard",
        settings={"tensors": options.tensors, "shape": shape, "saved_by": "2 ranks, dim 0", "loaded_by": "4 ranks"},
        rows=summarise(rows, ("peer", "slices"), FIGURES),
        machine=machine,
    )


if __name__ == "__main__":
    main()
