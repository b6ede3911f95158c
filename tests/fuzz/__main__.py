"""Fuzz all parsers for a stated time: ``./scripts/fuzz --minutes 30``.

With atheris the fuzzer is guided by coverage; without, the same valid inputs are changed blindly. Each parser runs in a
process of its own, so that a crash, a hang or a run out of memory is a find like any other.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

_MEMORY_BYTES = 16 << 30  # of address space: torch maps much more than it uses
_RSS_MIB = 2048
_SLOW_S = 10


def main() -> int:
    """Fuzz; 0 if nothing was found."""
    arguments = _arguments()
    if arguments.target:
        return _fuzz(arguments.target, arguments.seconds, arguments.seed, Path(arguments.folder))
    from tests.fuzz.parsers import PARSERS

    folder = Path(arguments.folder)
    share_s = arguments.minutes * 60 / len(PARSERS)
    finds = 0
    for target in arguments.only or PARSERS:
        (folder / target).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.fuzz", "--target", target, "--seconds", str(int(share_s))]
        command += ["--seed", str(arguments.seed), "--folder", str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        runs = re.findall(r"(?:Done|stat::number_of_executed_units:) (\d+)", ended.stdout + ended.stderr)
        verdict = "nothing found" if ended.returncode == 0 else f"FOUND SOMETHING (exit code {ended.returncode})"
        _say(f"{target:12} {runs[-1] if runs else '?':>10} executions: {verdict}")
        if ended.returncode:
            finds += 1
            _say((ended.stdout + ended.stderr)[-6000:])
    return 1 if finds else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./scripts/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="for all parsers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default="/tmp/dcp-cloud-fuzz", help="for inputs worth keeping, and finds")
    parser.add_argument("--only", nargs="*", help="names of parsers")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def _fuzz(target: str, seconds: float, seed: int, folder: Path) -> int:
    if importlib.util.find_spec("atheris") is None:
        return _blindly(target, seconds, seed, folder)
    import atheris

    with atheris.instrument_imports(include=["dcp_cloud"]):
        from tests.fuzz.parsers import PARSERS
    for data in PARSERS[target].seeds():
        (folder / target / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    folders = [f"-artifact_prefix={folder}/find-{target}-", str(folder / target)]
    limits = [f"-max_total_time={int(seconds)}", f"-seed={seed}", f"-timeout={_SLOW_S}", f"-rss_limit_mb={_RSS_MIB}"]
    atheris.Setup(
        [sys.argv[0], *limits, "-print_final_stats=1", "-max_len=8192", *folders],
        PARSERS[target].run,
    )
    atheris.Fuzz()
    return 0


def _blindly(target: str, seconds: float, seed: int, folder: Path) -> int:
    from tests.fuzz.mutate import mutations
    from tests.fuzz.parsers import PARSERS

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    parser = PARSERS[target]
    started = time.monotonic()
    current = folder / f"find-{target}"
    for number, data in enumerate(mutations(list(parser.seeds()), seed=seed)):
        if time.monotonic() - started > seconds:
            _say(f"Done {number}")
            current.unlink(missing_ok=True)
            return 0
        current.write_bytes(data)  # what a crash would leave behind
        begun = time.monotonic()
        parser.run(data)
        if time.monotonic() - begun > _SLOW_S:
            _say(f"too slow: {current}")
            return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
