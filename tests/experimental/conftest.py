"""The places of the checkpoint tests serve here too; torch 2.6 has no experimental checkpointers to test."""

from importlib.util import find_spec

from tests.checkpoint.conftest import place

__all__ = ["place"]

HAS_EXPERIMENTAL = find_spec("torch.distributed.checkpoint._experimental") is not None
collect_ignore = [] if HAS_EXPERIMENTAL else ["test_files.py", "test_ranks.py"]
