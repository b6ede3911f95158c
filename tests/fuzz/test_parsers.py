from __future__ import annotations

import itertools

import pytest

from tests.fuzz.mutate import mutations
from tests.fuzz.parsers import PARSERS

RUNS = 3000


@pytest.mark.parametrize("name", PARSERS)
def test_nearly_right_inputs_end_in_typed_errors(name: str) -> None:
    """Each parser reads the same few hundred changed inputs, and raises nothing but errors of this package."""
    parser = PARSERS[name]
    for data in itertools.islice(mutations(list(parser.seeds()), seed=1), RUNS):
        parser.run(data)
