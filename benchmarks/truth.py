"""Put the same trouble to every way to save: who hears of it, and what is loaded afterwards.

``./scripts/bench truth``, after ``./scripts/bench peers`` has made the peers' environments. Each case runs in a process
of its own, in the peer's environment, against one S3 server (moto). The cases:

* ``helper``: an upload fails in a helper thread (the second object of a save is refused by the server, for good)
* ``mid-write``: the planner raises half way through an overwrite; the old checkpoint should be loaded
* ``kill``: SIGKILL between data and commit of an overwrite; the old checkpoint should be loaded
* ``flip``: one byte of a stored tensor is changed; the load should fail
* ``truncate``: a stored object lacks its second half; the load should fail
* ``race``: a job sleeps between its data and its commit while another one saves to the same place; what is loaded
  should be the value of the last one that was told of a success
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import BUCKET, PEERS, ROOT

CASES = ("helper", "mid-write", "kill", "flip", "truncate", "race")
CHOSEN = ("ours", "s3torch-4", "s3fs-4", "msc-4", "local")
ITEMS = 8
NUMEL = 300_000
_WHOLE = "whole"
_TIMEOUT_S = 180.0


def state(value: float) -> dict[str, Any]:
    import torch

    return {f"w{number}": torch.full((NUMEL,), value + number) for number in range(ITEMS)}


def make_writer(name: str, path: str) -> Any:
    if name == "ours":
        from dcp_cloud import CloudStorageWriter

        return CloudStorageWriter(f"s3://{BUCKET}/{path}")
    return PEERS[name].writer(path, 4)


def make_reader(name: str, path: str) -> Any:
    if name == "ours":
        from dcp_cloud import CloudStorageReader

        return CloudStorageReader(f"s3://{BUCKET}/{path}")
    return PEERS[name].reader(path, 4)


def save(name: str, path: str, value: float, planner: Any = None) -> str:
    """Save; say whether the caller was told of a success."""
    import torch.distributed.checkpoint as dcp

    try:
        dcp.save(state(value), storage_writer=make_writer(name, path), planner=planner, no_dist=True)
    except BaseException as error:
        return f"raised {_cause(error)}"
    return "returned"


def load(name: str, path: str) -> str:
    """Load; say which value it is, or that it is a mixture, or what was raised."""
    import torch.distributed.checkpoint as dcp

    target = state(-1000.0)
    try:
        dcp.load(target, storage_reader=make_reader(name, path), no_dist=True)
    except BaseException as error:
        return f"raised {_cause(error)}"
    values = {float(tensor[0]) - number for number, tensor in enumerate(target.values())}
    is_even = all(bool(tensor.eq(tensor[0]).all()) for tensor in target.values())
    return f"loaded {values.pop():g}" if is_even and len(values) == 1 else "loaded a mixture"


def save_asleep(name: str, path: str) -> str:
    """Save, and wait between the data and the commit until told to go on."""
    meeting = Path(os.environ["TRUTH_MEETING"])
    kind = type(make_writer(name, path))
    finish = kind.finish

    def late(*args: Any, **options: Any) -> Any:
        (meeting / "asleep").touch()
        while not (meeting / "go").exists():
            time.sleep(0.05)
        return finish(*args, **options)

    kind.finish = late
    return save(name, path, 1.0)


def _cause(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    return type(next(iter(failures.values()))[0] if failures else error).__name__


def planner_that(act: Any) -> Any:
    """Make a planner that does something when half of the items were given."""
    import torch.distributed.checkpoint as dcp

    class Half(dcp.DefaultSavePlanner):
        given = 0
        lock = threading.Lock()

        def resolve_data(self, write_item: Any) -> Any:
            with self.lock:
                Half.given += 1
                if Half.given > ITEMS // 2:
                    act()
            return super().resolve_data(write_item)

    return Half()


def run_here(name: str, case: str, path: str, step: str) -> str:
    """Do one step of a case, in the environment of the one that is tried."""
    if step.startswith("save"):
        return save(name, path, float(step.removeprefix("save")))
    if step == "load":
        return load(name, path)
    if step == "mid-write":

        def fail() -> None:
            raise RuntimeError("the accelerator fell off the bus")

        return save(name, path, 2.0, planner_that(fail))
    if step == "sleep":
        return save_asleep(name, path)
    if step == "kill":
        writer = make_writer(name, path)
        type(writer).finish = lambda *_args, **_options: os.kill(os.getpid(), signal.SIGKILL)
        import torch.distributed.checkpoint as dcp

        dcp.save(state(2.0), storage_writer=writer, no_dist=True)
    raise ValueError(f"{case}: {step}")


class Bench:
    """The server, and the cases."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.client = server.client()

    def step(self, name: str, case: str, path: str, step: str, **environment: str) -> str:
        return self.wait(self.start(name, case, path, step, **environment))

    def start(self, name: str, case: str, path: str, step: str, **environment: str) -> subprocess.Popen[str]:
        surroundings = {
            **os.environ,
            **self.server.environment,
            "AWS_ENDPOINT_URL": self.server.endpoint_url,
            "SINK_URL": self.server.endpoint_url,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        command = [str(PEERS[name].python), "-m", "benchmarks.truth", "--here", name, case, path, step]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=surroundings, cwd=ROOT
        )

    @staticmethod
    def wait(process: subprocess.Popen[str]) -> str:
        try:
            out, _ = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "hangs"
        told = [line for line in out.splitlines() if line.startswith("TOLD ")]
        return told[-1].removeprefix("TOLD ") if told else f"died {process.returncode}"

    def objects(self, name: str, path: str) -> list[str]:
        if name == "local":
            from benchmarks.peers import LOCAL

            return sorted(str(file) for file in (LOCAL / path).rglob("*.distcp"))
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=path).get("Contents", [])
        return sorted(entry["Key"] for entry in listed if entry["Key"].endswith(".distcp"))

    def rewrite(self, name: str, key: str, change: Any) -> None:
        if name == "local":
            Path(key).write_bytes(change(Path(key).read_bytes()))
            return
        data = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        self.client.put_object(Bucket=BUCKET, Key=key, Body=change(data))

    def run(self, name: str, case: str) -> tuple[str, str]:
        """Run a case; give the verdict and what happened."""
        path = f"truth/{name}-{case}-{time.monotonic_ns()}"
        if case == "race":
            return self.race(name, path)
        first = self.step(name, case, path, "save1")
        if first != "returned":
            return "not run", first
        if case in ("mid-write", "kill"):
            told = self.step(name, case, path, case)
            loaded = self.step(name, case, path, "load")
            return ("true" if told != "returned" and loaded == "loaded 1" else "FALSE"), f"{told}; {loaded}"
        keys = self.objects(name, path)
        if case == "flip":
            self.rewrite(name, keys[0], _flipped)
        elif case == "truncate":
            self.rewrite(name, keys[0], lambda data: data[: len(data) // 2])
        loaded = self.step(name, case, path, "load")
        return ("true" if loaded.startswith("raised") else "FALSE"), loaded

    def race(self, name: str, path: str) -> tuple[str, str]:
        with tempfile.TemporaryDirectory() as meeting:
            sleeper = self.start(name, "race", path, "sleep", TRUTH_MEETING=meeting)
            while sleeper.poll() is None and not (Path(meeting) / "asleep").exists():
                time.sleep(0.05)
            other = self.step(name, "race", path, "save2")
            (Path(meeting) / "go").touch()
            told = self.wait(sleeper)
        loaded = self.step(name, "race", path, "load")
        last = "loaded 1" if told == "returned" else "loaded 2"
        is_true = loaded == last and "returned" in (told, other)
        return ("true" if is_true else "FALSE"), f"the sleeper {told}, the other {other}; {loaded}"


def _flipped(data: bytes) -> bytes:
    middle = 1000 + NUMEL * 2  # within the first tensor
    return data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]


def helper_case(bench: Bench, name: str) -> tuple[str, str]:
    """Let every upload but those of the main thread fail."""
    path = f"truth/{name}-helper-{time.monotonic_ns()}"
    told = bench.step(name, "helper", path, "save1", TRUTH_FAIL_HELPERS="1")
    loaded = bench.step(name, "helper", path, "load")
    is_true = told.startswith("raised") or loaded == "loaded 1"
    return ("true" if is_true else "FALSE"), f"{told}; {loaded}"


def fail_helpers() -> None:
    """Have whatever is written outside of the main thread fail, at the place where each way to save writes."""
    from torch.distributed.checkpoint import filesystem

    main, failed = threading.main_thread(), threading.Event()

    def wrap(owner: Any, method: str) -> None:
        original = getattr(owner, method)

        def refused(*args: Any, **options: Any) -> Any:
            if threading.current_thread() is not main:
                failed.set()
                raise OSError("the network is gone")
            is_data = any(str(arg).endswith(".distcp") for arg in args)
            if is_data:
                failed.wait(10)
            return original(*args, **options)

        setattr(owner, method, refused)

    owners = [filesystem.FileSystem]
    for module, names in (
        ("torch.distributed.checkpoint._fsspec_filesystem", ("FileSystem",)),
        ("s3torchconnector.dcp.s3_file_system", ("S3FileSystem",)),
        ("multistorageclient.contrib.torch.filesystem", ("MultiStorageFileSystem",)),
    ):
        try:
            found = __import__(module, fromlist=list(names))
        except ImportError:
            continue
        owners += [getattr(found, one) for one in names if "create_stream" in vars(getattr(found, one, object))]
    for owner in owners:
        wrap(owner, "create_stream")
    try:
        from dcp_cloud.stores import s3
    except ImportError:
        return
    for method in ("put", "create_multipart"):
        wrap(s3.S3Store, method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", nargs=4)
    parser.add_argument("--peers", default=",".join(CHOSEN))
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    if options.here:
        if os.environ.get("TRUTH_FAIL_HELPERS"):
            fail_helpers()
        print("TOLD " + run_here(*options.here), flush=True)
        os._exit(0)
    from benchmarks.harness import RESULTS
    from dcp_cloud.testing import MotoServer

    results: dict[str, dict[str, Any]] = {}
    with MotoServer() as server:
        server.create_bucket(BUCKET)
        bench = Bench(server)
        for name in options.peers.split(","):
            for case in options.cases.split(","):
                verdict, what = helper_case(bench, name) if case == "helper" else bench.run(name, case)
                results.setdefault(PEERS[name].label, {})[case] = {"verdict": verdict, "what": what}
                print(f"{PEERS[name].label:32} {case:10} {verdict:8} {what}", flush=True)
    (RESULTS / "truth.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
