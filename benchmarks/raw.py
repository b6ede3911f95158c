"""Parts of 16 MiB through each store, beside a bare socket that moves the same parts.

    python -m benchmarks.raw [--gib 1] [--runs 5] [--threads 8]

Client CPU seconds per GiB and MiB/s of ``put_part`` and ``get_range`` on the S3, Google and Azure stores, in turn with
the floor, against the sink. The emulators would be the bottleneck of whatever is measured against them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import count

import numpy as np

from benchmarks import floor
from benchmarks.harness import (
    GIB,
    MIB,
    SinkClient,
    client_environment,
    cpu_s,
    describe_machine,
    parser,
    running_sink,
    summarise,
    wait_for_calm,
    write_results,
)
from dcp_cloud import AzureConfig, GCSConfig, S3Config
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store

KEY = "object"


def in_threads(tasks: list[Callable[[], None]], threads: int) -> None:
    turns = count()

    def work() -> None:
        while (turn := next(turns)) < len(tasks):
            tasks[turn]()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def put(store: ObjectStore, parts: list[memoryview], threads: int) -> None:
    upload = store.create_multipart(KEY)
    done = []
    in_threads(
        [lambda i=i, part=part: done.append(upload.put_part(i, [part])) for i, part in enumerate(parts)], threads
    )
    upload.complete(sorted(done, key=lambda part: part.index))


def get(store: ObjectStore, parts: list[memoryview], threads: int) -> None:
    starts = [sum(len(part) for part in parts[:i]) for i in range(len(parts))]
    in_threads(
        [lambda s=s, part=part: store.get_range(KEY, s, [part]) for s, part in zip(starts, parts, strict=True)], threads
    )


def open_stores(url: str) -> dict[str, ObjectStore]:
    os.environ.update(client_environment(url))
    return {
        "s3": open_store("s3://bucket/raw-s3", config=S3Config(endpoint_url=url)),
        "gcs": open_store("gs://bucket/raw-gcs", config=GCSConfig(endpoint_url=url, anonymous=True)),
        "azure": open_store(
            "az://container/raw-azure",
            config=AzureConfig(account="account", account_url=f"{url}/account", anonymous=True),
        ),
    }


def measure(sink: SinkClient | None, action: Callable[[], None], nbytes: int) -> dict[str, float]:
    before = sink.stats()["cpu_s"] if sink else 0.0
    began_s, began_cpu_s = time.perf_counter(), cpu_s()
    action()
    wall_s, used_s = time.perf_counter() - began_s, cpu_s() - began_cpu_s
    server_s = sink.stats()["cpu_s"] - before if sink else float("nan")
    return {
        "wall_s": wall_s,
        "mib_per_s": nbytes / MIB / wall_s,
        "cpu_s_per_gib": used_s / (nbytes / GIB),
        "sink_cpu_s_per_gib": server_s / (nbytes / GIB),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--gib", type=float, default=1.0)
    arguments.add_argument("--part-mib", type=int, default=16)
    arguments.add_argument("--threads", type=int, default=8)
    arguments.add_argument("--calm-s", type=float, default=0, help="wait so long for a load below 1.5")
    options = arguments.parse_args()
    machine = describe_machine()
    memory = memoryview(np.arange(int(options.gib * GIB) // 4, dtype=np.int32)).cast("B")
    part = options.part_mib * MIB
    parts = [memory[i : i + part] for i in range(0, len(memory), part)]
    nbytes, threads = len(memory), options.threads
    rows = []
    with running_sink(options.gib * 5 + 0.5) as sink:
        stores = open_stores(sink.url)
        starts = list(range(0, nbytes, part))

        def floor_put(*, crc32: bool) -> Callable[[], None]:
            named = [(f"/bucket/floor/{i}", data) for i, data in enumerate(parts)]
            return lambda: floor.put_parts(sink.port, named, threads=threads, crc32=crc32)

        def floor_get(*, crc32: bool) -> Callable[[], None]:
            ranges = list(zip(starts, parts, strict=True))
            name = "/bucket/raw-s3/" + KEY
            return lambda: floor.get_ranges(sink.port, name, ranges, threads=threads, crc32=crc32)

        actions: dict[tuple[str, str], Callable[[], None]] = {
            ("socket", "put"): floor_put(crc32=False),
            ("socket+crc32", "put"): floor_put(crc32=True),
            **{(kind, "put"): lambda store=store: put(store, parts, threads) for kind, store in stores.items()},
            ("socket", "get"): floor_get(crc32=False),
            ("socket+crc32", "get"): floor_get(crc32=True),
            **{(kind, "get"): lambda store=store: get(store, parts, threads) for kind, store in stores.items()},
        }
        for run in range(-1, options.runs):  # the first round warms up: imports, connections, pages
            wait_for_calm(1.5, timeout_s=options.calm_s)
            for (client, verb), action in actions.items():
                row = {"client": client, "verb": verb, **measure(sink, action, nbytes)}
                if run >= 0:
                    rows.append(row)
                    print(
                        f"{run} {client:14} {verb} {row['mib_per_s']:7.0f} MiB/s {row['cpu_s_per_gib']:.3f} CPU-s/GiB "
                        f"(sink {row['sink_cpu_s_per_gib']:.3f})"
                    )
    figures = ("wall_s", "mib_per_s", "cpu_s_per_gib", "sink_cpu_s_per_gib")
    write_results(
        options.name or "raw",
        settings={"gib": options.gib, "part_mib": options.part_mib, "threads": threads, "link": "free"},
        rows=summarise(rows, ("client", "verb"), figures),
        machine=machine,
    )


if __name__ == "__main__":
    main()
