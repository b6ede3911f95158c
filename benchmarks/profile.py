"""Where the CPU time of a save and a load goes, by sampling.

    python -m benchmarks.profile [--label after] [--source DIR] [--peer ours] [--seconds 15]

Saves, then loads, 1 GiB again and again on the free loopback while py-spy samples the process; threads that wait are
not counted. Each sample is put down to the innermost function of ``dcp_cloud`` on its stack, and to the innermost
function of all. Shares are turned into CPU seconds per GiB by what ``getrusage`` measures without the sampler.

``--source`` profiles the ``dcp_cloud`` of another tree, for a comparison with an earlier commit:

    git worktree add /tmp/before COMMIT
    ./scripts/bench profile --label before --source /tmp/before
    ./scripts/bench profile --label after

The stacks are kept in ``benchmarks/results/profile-LABEL-VERB.collapsed`` for flame graphs.
"""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.group import Group
from benchmarks.harness import GIB, RESULTS, ROOT, describe_machine, parser, running_sink, write_results
from benchmarks.peers import PEERS

TENSORS, SHAPE = 64, (8192, 512)
_FRAME = re.compile(r"^(?P<name>.+) \((?P<file>[^():]+)(?::\d+)?\)$")
# Threads that stand here wait; the sampler takes some of them for busy ones all the same.
_WAITING = {"transfer/workers.py:WorkerPool._work", "threading.py:Condition.wait", "threading.py:Event.wait"}


@contextmanager
def sampled(pid: int, target: Path, rate: int) -> Iterator[None]:
    """Sample a process while the block runs."""
    spy = str(ROOT / ".venv" / "bin" / "py-spy")
    command = [spy, "record", "--pid", str(pid), "--format", "raw", "--rate", str(rate), "--duration", "unlimited"]
    process = subprocess.Popen([*command, "--output", str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        time.sleep(1)  # until it is attached
        yield
    finally:
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    if process.returncode or not target.exists():
        raise RuntimeError(f"py-spy: {error.decode(errors='replace')}")


def places(collapsed: str) -> Counter[tuple[str, str]]:
    """Count samples by the innermost function of ``dcp_cloud`` and the innermost function of all.

    Args:
        collapsed: Lines of frames, outermost first, and a number.
    """
    found: Counter[tuple[str, str]] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [match for frame in stack.split(";") if (match := _FRAME.match(frame))]
        if not frames or _name(frames[-1]) in _WAITING:
            continue
        ours = next((frame for frame in reversed(frames) if "dcp_cloud/" in frame["file"]), None)
        found[_name(ours) if ours else "elsewhere", _name(frames[-1])] += int(count)
    return found


def _name(frame: re.Match[str]) -> str:
    path = frame["file"]
    short = path[path.index("dcp_cloud/") + len("dcp_cloud/") :] if "dcp_cloud/" in path else Path(path).name
    return f"{short}:{frame['name']}"


def main() -> None:
    arguments = parser(__doc__, runs=7)
    arguments.add_argument("--label", default="after", help="what the result is called")
    arguments.add_argument("--source", type=Path, help="directory with the dcp_cloud to profile")
    arguments.add_argument("--peer", default="ours", choices=[name for name in PEERS if name.startswith("ours")])
    arguments.add_argument("--seconds", type=float, default=15, help="time to sample each of saving and loading")
    arguments.add_argument("--rate", type=int, default=200, help="samples per second")
    arguments.add_argument("--top", type=int, default=12)
    options = arguments.parse_args()
    machine = describe_machine()
    rows = []
    with tempfile.TemporaryDirectory() as directory, running_sink(2.5) as sink:
        if options.source:  # nothing but the package, so that the benchmarks themselves are this tree's
            (Path(directory) / "dcp_cloud").symlink_to(options.source.resolve() / "dcp_cloud")
        source = Path(directory) if options.source else None
        with Group(options.peer, sink.url, world=1, tensors=TENSORS, shape=SHAPE, source=source) as group:
            group.do("warm_up", path="warm")
            for verb in ("save", "load"):
                if verb == "load":
                    group.do("save", path="profile")
                plain = [group.measure(sink, verb, GIB, path="profile")["cpu_s_per_gib"] for _ in range(options.runs)]
                target = RESULTS / f"profile-{options.label}-{verb}.collapsed"
                RESULTS.mkdir(parents=True, exist_ok=True)
                with sampled(group.ranks[0].pid, target, options.rate):
                    group.do("repeat", verb=verb, path="profile", seconds=options.seconds)
                rows += summarise(verb, places(target.read_text()), statistics.median(plain), options.top)
    write_results(
        f"profile-{options.label}",
        settings={"seconds": options.seconds, "rate": options.rate, "source": str(options.source or "")},
        rows=rows,
        machine=machine,
    )
    for row in rows:
        print(f"{row['verb']} {row['cpu_s_per_gib']:.3f} {row['share']:6.1%} {row['place']:45} {row['leaf']}")


def summarise(verb: str, found: Counter[tuple[str, str]], cpu_s_per_gib: float, top: int) -> list[dict]:
    """Give the places with the most samples, and one row for all others."""
    total = sum(found.values())
    first = found.most_common(top)
    named = [(place, leaf, number) for (place, leaf), number in first]
    named.append(("all others", "", total - sum(number for _, _, number in named)))
    return [
        {
            "verb": verb,
            "place": place,
            "leaf": leaf,
            "share": number / total,
            "cpu_s_per_gib": number / total * cpu_s_per_gib,
        }
        for place, leaf, number in named
    ]


if __name__ == "__main__":
    main()
