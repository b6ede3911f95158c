"""Peak memory of a save and a load, beyond the caller's own.

    python -m benchmarks.memory [--gib 4]

The growth of the process's resident set while it saves and loads: 1 GiB in 64 tensors, the same without contiguous
memory, the same loaded into another dtype, and one tensor of several GiB. The promise is ``max_inflight_bytes`` + 64
MiB.
"""

from __future__ import annotations

from benchmarks.group import Group
from benchmarks.harness import GIB, MIB, describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS

FIGURES = ("wall_s", "rss_growth_mib")
PROMISE_MIB = 512 + 64  # TransferConfig.max_inflight_bytes and what the design allows besides


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--gib", type=float, default=4.0, help="length of the single long tensor")
    arguments.add_argument("--small-gib", type=float, default=1.0, help="length of the 64 tensors together")
    arguments.add_argument("--peers", nargs="+", default=["ours", "s3torch-4"], choices=list(PEERS))
    options = arguments.parse_args()
    machine = describe_machine()
    many = {"tensors": 64, "shape": (int(options.small_gib * 8192), 512)}
    one = {"tensors": 1, "shape": (int(options.gib * 262144), 1024)}
    cases = {
        "64 tensors": (many, "plain", ("save", "load")),
        "64 tensors, not contiguous": (many, "transposed", ("save", "load")),
        "64 tensors, load as bfloat16": (many, "bfloat16", ("load",)),
        f"one tensor of {options.gib:g} GiB": (one, "plain", ("save", "load")),
    }
    rows = []
    with running_sink(max(options.gib, 3 * options.small_gib) + 0.25) as sink:
        for name in options.peers:
            for case, (state, kind, verbs) in cases.items():
                if kind != "bfloat16":  # that one loads what the first case saved
                    sink.clear()
                if kind == "bfloat16":
                    with Group(name, sink.url, world=1, **state) as group:
                        group.do("save", path="memory")
                with Group(name, sink.url, world=1, kind=kind, **state) as group:
                    group.do("warm_up", path="warm")
                    for _ in range(options.runs):
                        for verb in verbs:
                            if verb == "save":
                                sink.clear()  # a checkpoint that is replaced lives until the new one is committed
                            nbytes = state["tensors"] * state["shape"][0] * state["shape"][1] * 4
                            row = group.measure(sink, verb, nbytes, path="memory")
                            rows.append(row | {"peer": name, "case": case, "verb": verb})
                            print(
                                f"{name:10} {case:30} {verb}: +{row['rss_growth_mib']:.0f} MiB, {row['wall_s']:.2f} s",
                                flush=True,
                            )
    write_results(
        options.name or "memory",
        settings={"promise_mib": PROMISE_MIB, "gib": GIB, "mib": MIB},
        rows=summarise(rows, ("case", "peer", "verb"), FIGURES),
        machine=machine,
    )


if __name__ == "__main__":
    main()
