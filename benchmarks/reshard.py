"""Loading a checkpoint into another sharding: bytes fetched for bytes needed, and requests.

    python -m benchmarks.reshard [--peers ours s3torch-4 …]

Two ranks save tensors that are cut along dimension 0; four ranks load them cut along dimension 0, and cut along
dimension 1. The sink counts.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.group import Group
from benchmarks.harness import GIB, MIB, describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS

FIGURES = ("wall_s", "cpu_s_per_gib", "amplification", "requests", "rss_growth_mib")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peers", nargs="+", default=["ours", "s3torch-4", "s3fs-4", "msc-4"], choices=list(PEERS))
    arguments.add_argument("--tensors", type=int, default=16)
    options = arguments.parse_args()
    machine = describe_machine()
    shape = (2048, 2048)
    nbytes = options.tensors * 16 * MIB
    settings = {"tensors": options.tensors, "shape": shape}
    rows = []

    def groups(stack: ExitStack, world: int, dim: int) -> dict[str, Group]:
        return {
            name: stack.enter_context(Group(name, sink.url, world=world, dim=dim, **settings)) for name in options.peers
        }

    with running_sink(nbytes / GIB * 1.5 * len(options.peers) + 0.25) as sink:
        with ExitStack() as stack:
            for name, savers in groups(stack, 2, 0).items():
                savers.do("warm_up", path=f"warm-{name}")
                savers.do("save", path=f"sharded-{name}")
        for dim in (0, 1):
            with ExitStack() as stack:
                loaders = groups(stack, 4, dim)
                for name, group in loaders.items():
                    group.do("warm_up", path=f"warm4-{name}-{dim}")
                for _ in range(options.runs):
                    for name, group in loaders.items():
                        row = group.measure(sink, "load", nbytes, path=f"sharded-{name}")
                        row |= {"peer": name, "slices": f"dim {dim}", "amplification": row["bytes_out"] / nbytes}
                        rows.append(row)
                        print(
                            f"{name:10} dim {dim}: {row['amplification']:.3f} bytes fetched per byte needed, "
                            f"{row['requests']} requests, {row['wall_s']:.2f} s",
                            flush=True,
                        )
    summary = summarise(rows, ("peer", "slices"), FIGURES)
    write_results(
        options.name or "reshard",
        settings={**settings, "saved_by": "2 ranks, dim 0", "loaded_by": "4 ranks"},
        rows=sorted(summary, key=lambda row: options.peers.index(row["peer"])),
        machine=machine,
    )


if __name__ == "__main__":
    main()
