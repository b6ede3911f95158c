"""The weights of a published model, as a PyPI package ships them, go to a store and come back."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import distribution

from safetensors.torch import load_file

from tests.checkpoint.conftest import every_server
from tests.checkpoint.states import equal, zeros_like
from tests.checkpoint.test_round_trip import load, save

Place = Callable[..., str]


@every_server
def test_a_published_model_comes_back_equal(place: Place) -> None:
    """Silero VAD's weights (16 kHz model, MIT licence) are equal after a save and a load."""
    file = distribution("silero-vad").locate_file("silero_vad/data/silero_vad_16k.safetensors")
    weights, uri = load_file(str(file)), place()
    assert len(weights) > 10
    save(weights, uri)
    loaded = zeros_like(weights)
    load(loaded, uri)
    assert equal(weights, loaded)
