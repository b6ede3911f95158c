"""How long ``async_save`` holds the training loop up.

    python -m benchmarks.blocked [--runs 5]

1 GiB in 64 tensors on the shaped link: seconds until ``dcp.async_save`` returns (with a thread, with a process), beside
a synchronous save and beside copying the state dict once. ``pace`` is how fast the loop steps while the upload runs, as
a share of its pace alone. The first save of each kind, which starts threads or the process and makes memory for the
copy, is listed by itself.
"""

from __future__ import annotations

from benchmarks.group import Group
from benchmarks.harness import GIB, describe_machine, parser, running_sink, summarise, write_results
from benchmarks.peers import PEERS


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--peers", nargs="+", default=["ours", "s3torch-4"], choices=list(PEERS))
    arguments.add_argument("--gib", type=float, default=1.0)
    arguments.add_argument("--links", nargs="+", default=["shaped"], choices=["free", "shaped"])
    options = arguments.parse_args()
    machine = describe_machine()
    rows = []
    with running_sink(options.gib * 2.5 + 0.25) as sink:
        for link in options.links:
            for name in options.peers:
                for kind in ("sync", "copy", "thread", "process"):
                    if kind == "process" and name != "ours":
                        continue
                    with Group(
                        name, sink.url, world=1, tensors=64, shape=(int(options.gib * 8192), 512), process_group=True
                    ) as group:
                        group.do("warm_up", path="warm")
                        for run in range(options.runs + 1):
                            sink.clear()
                            sink.shape(link)
                            if kind in ("sync", "copy"):
                                command = {"sync": "save", "copy": "copy"}[kind]
                                row = group.measure(
                                    sink,
                                    command,
                                    int(options.gib * GIB),
                                    **({"path": f"sync{run}"} if kind == "sync" else {}),
                                )
                                row |= {"blocked_s": row["wall_s"], "pace": 0.0}
                            else:
                                row = group.do("save_async", path=f"{kind}{run}", kind=kind)[0]
                            sink.shape("free")
                            if kind in ("sync", "copy") and not run:
                                continue
                            row |= {"peer": name, "link": link, "kind": kind if run else f"{kind}, first"}
                            rows.append(row)
                            print(
                                f"{link} {name:10} {row['kind']:14} blocked {row['blocked_s']:.3f} s "
                                f"of {row['wall_s']:.2f} s, pace {row['pace']:.2f}",
                                flush=True,
                            )
    write_results(
        options.name or "blocked",
        settings={"gib": options.gib},
        rows=summarise(rows, ("link", "peer", "kind"), ("blocked_s", "wall_s", "pace")),
        machine=machine,
    )


if __name__ == "__main__":
    main()
