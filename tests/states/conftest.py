"""The places of the checkpoint tests serve here too."""

from tests.checkpoint.conftest import place

__all__ = ["place"]
