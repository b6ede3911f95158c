"""The places of the checkpoint tests and the runner of the command line's tests serve here too."""

from tests.checkpoint.conftest import place
from tests.cli.conftest import _quiet_logger, run

__all__ = ["_quiet_logger", "place", "run"]
