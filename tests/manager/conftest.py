"""Places for runs."""

from __future__ import annotations

from tests.checkpoint.conftest import place  # noqa: F401 - a fixture
