"""The whole suite, unattended, then plots and tables.

    python -m benchmarks.all [--only raw small …] [--skip profile]
    python -m benchmarks.all --smoke        # everything once and small, to see that it runs; results go elsewhere

Each benchmark is a process of its own; one that fails is reported at the end and does not keep the others from running.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import ROOT

# Name, module and options, options of a smoke test.
SUITE = {
    "raw": (["raw"], ["--gib", "0.125"]),
    "save_load": (["save_load", "--ranks", "1", "4"], ["--tensors", "8", "--tensor-mib", "4"]),
    "clouds": (["save_load", "--clouds"], ["--tensors", "8", "--tensor-mib", "4"]),
    "reshard": (["reshard"], ["--tensors", "2"]),
    "small": (["small"], ["--cases", "10k", "--peers", "ours", "local"]),
    "memory": (["memory"], ["--gib", "0.25", "--small-gib", "0.25"]),
    "blocked": (["blocked"], ["--gib", "0.125"]),
    "profile": (["profile", "--seconds", "8"], ["--seconds", "2"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(SUITE), choices=list(SUITE))
    parser.add_argument("--skip", nargs="+", default=[], choices=list(SUITE))
    parser.add_argument("--smoke", action="store_true", help="once and small; the repository is left as it is")
    options = parser.parse_args()
    environment, report = dict(os.environ), []
    if options.smoke:
        directory = environment.get("BENCH_RESULTS") or tempfile.mkdtemp(prefix="bench-")
        environment["BENCH_RESULTS"] = directory
        report = ["--images", directory, "--page", f"{directory}/performance.md"]
        print(f"results go to {directory}")
    began_s, failed = time.monotonic(), []
    for name in options.only:
        if name in options.skip:
            continue
        command, smoke = SUITE[name]
        more = [*smoke, "--runs", "1"] if options.smoke else []
        print(f"== {name} (load average {os.getloadavg()[0]:.1f})", flush=True)
        started_s = time.monotonic()
        if not _run([*command, *more], environment):
            failed.append(name)
        print(f"== {name}: {(time.monotonic() - started_s) / 60:.1f} min", flush=True)
    if not _run(["report", *report], environment):
        failed.append("report")
    print(f"== all: {(time.monotonic() - began_s) / 60:.1f} min{', FAILED: ' + ', '.join(failed) if failed else ''}")
    sys.exit(bool(failed))


def _run(command: list[str], environment: dict[str, str]) -> bool:
    module, *arguments = command
    return not subprocess.call([sys.executable, "-m", f"benchmarks.{module}", *arguments], cwd=ROOT, env=environment)


if __name__ == "__main__":
    main()
