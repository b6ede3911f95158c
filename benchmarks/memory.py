"""Peak memory of a save and a load, beyond the caller's own.

    python -m benchmarks.memory [--gib 8]

The growth of the process's resident set while it saves and loads: 64 tensors without contiguous memory, 64 loaded into
another dtype than stored, and one tensor of several GiB. (64 plain tensors are measured by ``save_load``.) The promise
is ``max_inflight_bytes`` + 64 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.group import Group
from benchmarks.harness import (
    GIB,
    SinkClient,
    available_gib,
    describe_machine,
    parser,
    running_sink,
    summarise,
    write_results,
)
from benchmarks.peers import PEERS

FIGURES = ("wall_s", "rss_growth_mib")
PROMISE_MIB = 512 + 64  # TransferConfig.max_inflight_bytes and what the design allows besides


@dataclass(frozen=True)
class Case:
    label: str
    gib: float
    tensors: int = 64
    kind: str = "plain"

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.gib * 262144 / self.tensors), 1024


def cases(peer: str, gib: float, small_gib: float) -> list[Case]:
    # Others need as much memory again as a tensor is long.
    long_gib = gib if peer == "ours" else min(gib, 2.0)
    return [
        Case("64 tensors, not contiguous", small_gib, kind="transposed"),
        Case("64 tensors, load as bfloat16", small_gib, kind="bfloat16"),
        Case(f"one tensor of {long_gib:g} GiB", long_gib, tensors=1),
    ]


def measure(peer: str, case: Case, sink: SinkClient, runs: int) -> list[dict]:
    rows = []
    sink.clear()
    state = {"tensors": case.tensors, "shape": case.shape}
    if case.kind == "bfloat16":  # loads what was saved as float32
        with Group(peer, sink.url, world=1, **state) as group:
            group.do("save", path="memory")
    with Group(peer, sink.url, world=1, kind=case.kind, **state) as group:
        group.do("warm_up", path="warm")
        for _ in range(runs):
            for verb in ("load",) if case.kind == "bfloat16" else ("save", "load"):
                if verb == "save":
                    sink.clear()  # a checkpoint that is replaced lives until the new one is committed
                row = group.measure(sink, verb, int(case.gib * GIB), path="memory")
                rows.append(row | {"peer": peer, "case": case.label, "verb": verb})
                print(
                    f"{peer:10} {case.label:30} {verb}: +{row['rss_growth_mib']:.0f} MiB, {row['wall_s']:.2f} s",
                    flush=True,
                )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--gib", type=float, help="length of the single long tensor; 8 if memory allows")
    arguments.add_argument("--small-gib", type=float, default=1.0, help="length of the 64 tensors together")
    arguments.add_argument("--peers", nargs="+", default=["ours", "s3torch-4"], choices=list(PEERS))
    options = arguments.parse_args()
    # The sink and the process hold it once each; 3 GiB are for the rest.
    gib = options.gib or max(size for size in (1, 2, 4, 8) if size == 1 or 2 * size + 3 <= available_gib())
    machine = describe_machine()
    rows = []
    with running_sink(max(gib, options.small_gib) + 0.25) as sink:
        for peer in options.peers:
            for case in cases(peer, gib, options.small_gib):
                rows += measure(peer, case, sink, options.runs)
    write_results(
        options.name or "memory",
        settings={"promise_mib": PROMISE_MIB, "gib": gib},
        rows=summarise(rows, ("case", "peer", "verb"), FIGURES),
        machine=machine,
    )


if __name__ == "__main__":
    main()
