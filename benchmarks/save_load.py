"""``dcp.save`` and ``dcp.load`` of 1 GiB, beside every other way to do it.

    python -m benchmarks.save_load [--links free shaped] [--ranks 1 4] [--peers ours s3torch-4 …] [--runs 5]
    python -m benchmarks.save_load --clouds

Processes start once; then each round saves and loads with every peer in turn. Every load is compared with what was
saved. A bare socket moves the same bytes in the same round. ``--clouds`` is the same with 256 MiB for Google's and
Azure's APIs.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from benchmarks import floor
from benchmarks.group import Group
from benchmarks.harness import (
    GIB,
    MIB,
    SinkClient,
    describe_machine,
    parser,
    running_sink,
    summarise,
    wait_for_calm,
    write_results,
)
from benchmarks.peers import PEERS, clear_local
from benchmarks.raw import measure
from dcp_cloud import TransferConfig

FIGURES = ("wall_s", "gib_per_s", "cpu_s_per_gib", "rss_growth_mib", "requests", "sink_cpu_s")
FLOOR_THREADS = TransferConfig().max_concurrency
# s3fs and multi-storage-client with the number of threads that is faster here.
S3_PEERS = ("ours", "s3torch-1", "s3torch-4", "s3fs-4", "msc-4", "local")
CLOUD_PEERS = ("ours-gcs", "gcsfs-4", "ours-azure", "adlfs-4")


def measure_floor(sink: SinkClient, memory: memoryview, part_bytes: int) -> list[dict]:
    """Send and receive the bytes of one save with bare sockets."""
    nbytes = len(memory)
    starts = range(0, nbytes, part_bytes)
    parts = [(f"/bucket/floor/{start}", memory[start : start + part_bytes]) for start in starts]
    rows = []
    for crc32 in (False, True):
        name = "socket+crc32" if crc32 else "socket"
        put = measure(sink, lambda c=crc32: floor.put_parts(sink.port, parts, threads=FLOOR_THREADS, crc32=c), nbytes)
        get = measure(sink, lambda c=crc32: floor.get_objects(sink.port, parts, threads=FLOOR_THREADS, crc32=c), nbytes)
        for verb, row in (("save", put), ("load", get)):
            rows.append(
                {
                    "peer": name,
                    "verb": verb,
                    "wall_s": row["wall_s"],
                    "gib_per_s": nbytes / GIB / row["wall_s"],
                    "cpu_s_per_gib": row["cpu_s_per_gib"],
                    "rss_growth_mib": 0.0,
                    "requests": len(parts),
                    "sink_cpu_s": row["sink_cpu_s_per_gib"] * nbytes / GIB,
                }
            )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--links", nargs="+", default=["free", "shaped"], choices=["free", "shaped"])
    arguments.add_argument("--ranks", nargs="+", type=int, default=[1])
    arguments.add_argument("--peers", nargs="+", choices=list(PEERS))
    arguments.add_argument("--clouds", action="store_true", help="Google's and Azure's APIs, 16 tensors")
    arguments.add_argument("--tensors", type=int)
    arguments.add_argument("--tensor-mib", type=int, default=16)
    arguments.add_argument(
        "--calm-s", type=float, default=0, help="wait so long for a load below 1.5 before each round"
    )
    options = arguments.parse_args()
    peers = options.peers or (CLOUD_PEERS if options.clouds else S3_PEERS)
    tensors = options.tensors or (16 if options.clouds else 64)
    machine = describe_machine()
    shape = (options.tensor_mib * 512, 512)
    nbytes = tensors * options.tensor_mib * MIB
    memory = memoryview(np.arange(nbytes // 4, dtype=np.int32)).cast("B")
    rows: list[dict] = []
    with running_sink(nbytes / GIB * 1.5 + 0.25) as sink:
        for world in options.ranks:
            with ExitStack() as stack:
                groups = {
                    name: stack.enter_context(Group(name, sink.url, world=world, tensors=tensors, shape=shape))
                    for name in peers
                }
                for name, group in groups.items():
                    group.do("warm_up", path=f"warm-{name}")
                for link in options.links:
                    for run in range(options.runs):
                        wait_for_calm(1.5, timeout_s=options.calm_s)
                        sink.shape(link)
                        sink.clear()
                        measured = measure_floor(sink, memory, 16 * MIB)
                        for name, group in groups.items():
                            sink.shape("free")
                            sink.clear()
                            clear_local()
                            sink.shape(link)
                            path = f"run{run}-{name}-{int(time.time())}"
                            for verb in ("save", "load"):
                                measured.append(
                                    {"peer": name, "verb": verb, **group.measure(sink, verb, nbytes, path=path)}
                                )
                        for row in measured:
                            row |= {"link": link, "ranks": world}
                            rows.append(row)
                            print(
                                f"{world} {link:6} {run} {row['peer']:12} {row['verb']} {row['wall_s']:6.2f} s "
                                f"{row['cpu_s_per_gib']:5.2f} CPU-s/GiB {row['rss_growth_mib']:6.0f} MiB "
                                f"{row['requests']:5} requests, sink {row['sink_cpu_s']:.2f} CPU-s",
                                flush=True,
                            )
    clear_local()
    summary = summarise(rows, ("ranks", "link", "peer", "verb"), FIGURES)
    for row in summary:
        row["gib"] = nbytes / GIB
        row["label"] = PEERS[row["peer"]].label if row["peer"] in PEERS else row["peer"]
        row["package"] = PEERS[row["peer"]].package if row["peer"] in PEERS else ""
    write_results(
        options.name or ("clouds" if options.clouds else "save_load"),
        settings={"tensors": tensors, "tensor_mib": options.tensor_mib, "dtype": "float32"},
        rows=summary,
        machine=machine,
    )


if __name__ == "__main__":
    main()
