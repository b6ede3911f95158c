"""One rank of the demo; torchrun starts it: ``python -m dcp_cloud.demo.rank JOB.json``.

Its own module because it has to be able to speak, and has to be bound to its parent, before torch is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dcp_cloud.demo.messages import Job, MessageWriter
from dcp_cloud.testing.servers.guard import die_with_parent


def main(path: str) -> None:
    """Do the job that a file describes."""
    die_with_parent()
    job = Job.from_json(Path(path).read_text(encoding="utf-8"))
    tell = MessageWriter(job.messages, int(os.environ["RANK"]))
    tell("started", pid=os.getpid())
    try:
        from dcp_cloud.demo.train import run  # noqa: PLC0415 - takes seconds

        run(job, tell)
    except BaseException as error:
        tell("failed", message=_describe(error))
        raise


def _describe(error: BaseException) -> str:
    # torch gathers the errors of all ranks in one exception, whose text is their tracebacks.
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(sys.argv[1])
