"""How long ``async_save`` holds the training loop up.

    python -m benchmarks.blocked [--runs 5]

1 GiB in 64 tensors on the shaped link: seconds until ``dcp.async_save`` returns (with a thread, with a process), beside
a synchronous save and beside copying the state dict once. ``pace`` is how fast the loop steps while the upload runs, as
a share of its pace alone. The first save of each kind, which starts threads or the process and makes memory for the
copy, is listed by itself.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.group import Group
from benchmarks.harness import GIB, SinkClient, describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS

KINDS = ("sync", "copy", "thread", "process")


def measure(group: Group, sink: SinkClient, kind: str, run: int, *, gib: float) -> dict:
    if kind == "copy":
        row = group.measure(sink, "copy", int(gib * GIB))
    elif kind == "sync":
        row = group.measure(sink, "save", int(gib * GIB), path=f"sync{run}")
    else:
        return group.do("save_async", path=f"{kind}{run}", kind=kind)[0]
    return row | {"blocked_s": row["wall_s"], "pace": 0.0}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peers", nargs="+", default=["ours", "s3torch-4"], choices=list(PEERS))
    arguments.add_argument("--gib", type=float, default=1.0)
    arguments.add_argument("--link", default="shaped", choices=["free", "shaped"])
    options = arguments.parse_args()
    machine = describe_machine()
    rows = []
    with running_sink(options.gib * 1.25 + 0.25) as sink, ExitStack() as stack:
        shape = (int(options.gib * 8192), 512)
        groups = {
            name: stack.enter_context(Group(name, sink.url, world=1, tensors=64, shape=shape, process_group=True))
            for name in options.peers
        }
        for name, group in groups.items():
            group.do("warm_up", path=f"warm-{name}")
        for run in range(options.runs + 1):
            for name, group in groups.items():
                for kind in KINDS if name == "ours" else KINDS[:3]:
                    sink.clear()
                    sink.shape(options.link)
                    row = measure(group, sink, kind, run, gib=options.gib)
                    sink.shape("free")
                    if kind in ("sync", "copy") and not run:
                        continue
                    row |= {"peer": name, "link": options.link, "kind": kind if run else f"{kind}, first"}
                    rows.append(row)
                    print(
                        f"{name:10} {row['kind']:14} blocked {row['blocked_s']:.3f} s "
                        f"of {row['wall_s']:.2f} s, pace {row['pace']:.2f}",
                        flush=True,
                    )
    order = [f"{kind}{first}" for kind in KINDS for first in (", first", "")]
    summary = summarise(rows, ("link", "peer", "kind"), ("blocked_s", "wall_s", "pace"))
    write_results(
        options.name or "blocked",
        settings={"gib": options.gib},
        rows=sorted(summary, key=lambda row: (options.peers.index(row["peer"]), order.index(row["kind"]))),
        machine=machine,
    )


if __name__ == "__main__":
    main()
