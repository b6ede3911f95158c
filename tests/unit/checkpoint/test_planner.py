"""What CloudLoadPlanner says of a state dict that does not fit, and that it refuses none that torch would take."""

from __future__ import annotations

import difflib

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _version

from dcp_cloud import CloudLoadPlanner
from dcp_cloud.errors import StateDictMismatchError
from tests.unit.checkpoint.place import URI, failure, load, new_store, save


def test_all_differences_are_in_one_error() -> None:
    """Missing names, with the nearest one, and other shapes are listed together."""
    store = new_store()
    save({"layer.weight": torch.ones(3, 4), "layer.bias": torch.ones(3)}, store)
    error = failure(load, {"layer.weight": torch.ones(4, 3), "layer.baas": torch.ones(3)}, store, CloudLoadPlanner())
    assert isinstance(error, StateDictMismatchError)
    for words in ("2 of 2", "'layer.baas' is not in", "'layer.bias' is", "[3, 4] in the checkpoint and [4, 3] here"):
        assert words in str(error)


def test_a_tensor_in_the_place_of_a_value_is_told() -> None:
    """Kinds that differ are listed with the rest, and the error names the checkpoint."""
    store = new_store()
    save({"w": torch.ones(3), "b": torch.ones(4), "n": 7}, store)
    error = failure(load, {"w": 3, "b": torch.ones(5), "n": torch.ones(2)}, store, CloudLoadPlanner())
    assert isinstance(error, StateDictMismatchError)
    for words in ("2 of 3", "'w' is a tensor in the checkpoint and of type int here", "'b' is [4]"):
        assert words in str(error)
    assert error.key == URI


def test_only_what_is_shown_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for near names is slow, so it is done for the few names that are shown, not for thousands."""
    searched: list[str] = []

    def watched(word: str, possibilities: object, n: int) -> list[str]:
        searched.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", watched)
    store = new_store()
    save({"w": torch.ones(3)}, store)
    error = failure(load, {f"x{n}": torch.ones(3) for n in range(1000)}, store, CloudLoadPlanner())
    assert "1000 of 1000" in str(error)
    assert "and 995 more" in str(error)
    assert len(searched) == 5


def test_partial_loads_skip_missing_names_but_not_other_shapes() -> None:
    """allow_partial_load means names; a tensor of another shape is still an error."""
    if "allow_partial_load" not in dcp.DefaultLoadPlanner.__init__.__code__.co_varnames:
        pytest.skip("this torch knows no partial loads")
    store = new_store()
    save({"w": torch.ones(3)}, store)
    loaded = {"w": torch.zeros(3), "new": torch.zeros(2)}
    load(loaded, store, CloudLoadPlanner(allow_partial_load=True))
    assert loaded["w"].all()
    error = failure(
        load, {"w": torch.zeros(4), "new": torch.zeros(2)}, store, CloudLoadPlanner(allow_partial_load=True)
    )
    assert isinstance(error, StateDictMismatchError)
    assert "'new'" not in str(error)


def test_names_of_old_checkpoints_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of torch 2.3, which flattened lists otherwise, loads as it does with torch's own planner."""
    store, state = new_store(), {"optim": {"groups": [torch.ones(2), {"lr": 0.5}]}}
    monkeypatch.setattr(_version, "_derived_version", "2_3")
    save(state, store)
    monkeypatch.undo()
    for planner in (dcp.DefaultLoadPlanner(), CloudLoadPlanner()):
        loaded = {"optim": {"groups": [torch.zeros(2), {"lr": 0.0}]}}
        load(loaded, store, planner)
        assert loaded["optim"]["groups"][1] == {"lr": 0.5}
        assert loaded["optim"]["groups"][0].all()


def test_other_errors_of_torch_stay_what_they_are() -> None:
    """What is neither a missing name nor another shape is not called one."""

    class Broken(CloudLoadPlanner):
        def set_up_planner(self, *args: object, **kwargs: object) -> None:
            super().set_up_planner(*args, **kwargs)  # type: ignore[arg-type]
            self.metadata = None  # type: ignore[assignment]

    store = new_store()
    save({"w": torch.ones(3)}, store)
    assert not isinstance(failure(load, {"w": torch.zeros(3)}, store, Broken()), StateDictMismatchError)
