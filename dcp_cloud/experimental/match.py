"""From a state dict that names what is wanted to pairs of tensors: where to, and where from.

The rules are those of torch's reader: a mapping is filled for the keys it has, ``None`` stands for "whatever is there",
lists are taken item by item, values that are no tensors are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from dcp_cloud.errors import StateDictMismatchError, UnsupportedFormatError
from dcp_cloud.experimental.pickled import hides_tensors

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor to fill.

    Args:
        target: Where to.
        source: The stored tensor, without data.
        name: Its place in the state dict.
    """

    target: torch.Tensor
    source: torch.Tensor
    name: str


@dataclass(slots=True)
class Matcher:
    """Walks a state dict along a stored one.

    Args:
        allocate: Makes a tensor like a stored one, where there is none to fill.
    """

    allocate: Callable[[torch.Tensor], torch.Tensor]
    pairs: list[Pair] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _assignments: list[tuple[Any, Any, Any]] = field(default_factory=list)

    def match(self, wanted: Any, stored: Any) -> Any:  # noqa: ANN401 - any nesting of anything
        """Find everything that is wanted.

        Args:
            wanted: The state dict to fill; its mappings are filled in place by :meth:`fill_mappings`.
            stored: The stored one, its tensors without data.

        Returns:
            The filled state dict, when the pairs have been read and the mappings were filled.

        Raises:
            StateDictMismatchError: Something has another type, size or dtype; all such places are told.
            UnsupportedFormatError: Tensors are hidden in an object that is no container.
        """
        found = self._match(wanted, stored, "")
        if self.problems:
            more = len(self.problems) - _SHOWN
            raise StateDictMismatchError(
                "the state dict does not fit the file of this rank",
                cause="; ".join(self.problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
                hint="None as a value takes whatever is stored",
            )
        return found

    def fill_mappings(self) -> None:
        """Put what was found into the mappings of the state dict: after the load, so that a failed one leaves them."""
        for mapping, key, value in self._assignments:
            mapping[key] = value

    def _match(self, wanted: Any, stored: Any, name: str) -> Any:  # noqa: ANN401
        if isinstance(stored, torch.Tensor):
            return self._tensor(wanted, stored, name)
        if isinstance(stored, Mapping):
            return self._mapping(wanted, stored, name)
        if isinstance(stored, (list, tuple)):
            return self._sequence(wanted, stored, name)
        if wanted is not None and stored is not None and not isinstance(wanted, type(stored)):
            self._differ(name, type(wanted).__name__, type(stored).__name__)
        elif hides_tensors(stored):
            raise UnsupportedFormatError(
                f"{name!r} cannot be read by itself",
                cause=f"it is a {type(stored).__name__} that holds tensors",
                hint="load the whole file: read(path) without a state dict",
            )
        return stored

    def _mapping(self, wanted: Any, stored: Mapping[Any, Any], name: str) -> Any:  # noqa: ANN401
        target = dict.fromkeys(stored) if wanted is None else wanted
        if not isinstance(target, Mapping):
            self._differ(name, type(wanted).__name__, type(stored).__name__)
            return wanted
        for key in list(target):
            place = f"{name}.{key}" if name else f"{key}"
            if key in stored:
                self._assignments.append((target, key, self._match(target[key], stored[key], place)))
            else:
                self.missing.append(place)
        return target

    def _sequence(self, wanted: Any, stored: list[Any] | tuple[Any, ...], name: str) -> Any:  # noqa: ANN401
        targets = [None] * len(stored) if wanted is None else wanted
        if not isinstance(targets, (list, tuple)):
            self._differ(name, type(wanted).__name__, type(stored).__name__)
            return wanted
        count = max(len(targets), len(stored))
        self.missing.extend(f"{name}[{index}]" for index in range(len(stored), count))
        found = [
            self._match(targets[index] if index < len(targets) else None, stored[index], f"{name}[{index}]")
            if index < len(stored)
            else targets[index]
            for index in range(count)
        ]
        if isinstance(stored, tuple):
            return type(stored)(*found) if hasattr(stored, "_fields") else type(stored)(found)
        return found

    def _tensor(self, wanted: Any, stored: torch.Tensor, name: str) -> Any:  # noqa: ANN401
        source = _local(stored)
        if not _is_plain(source):
            raise UnsupportedFormatError(
                f"{name!r} cannot be read by itself",
                cause=f"it is a {type(source).__name__} of layout {source.layout}, quantised, conjugated or negated",
                hint="load the whole file: read(path) without a state dict",
            )
        target = self._new(stored, source) if wanted is None else wanted
        if not isinstance(target, torch.Tensor) or isinstance(target, DTensor) != isinstance(stored, DTensor):
            self._differ(name, type(wanted).__name__, type(stored).__name__)
            return wanted
        local = _local(target)
        if local.shape != source.shape or local.dtype != source.dtype:
            self._differ(name, f"{list(local.shape)} of {local.dtype}", f"{list(source.shape)} of {source.dtype}")
            return wanted
        if _layout(target) != _layout(stored):  # equal shards of two different tensors
            self._differ(name, _layout(target), _layout(stored))
            return wanted
        self.pairs.append(Pair(local, source, name))
        return target

    def _new(self, stored: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        tensor = self.allocate(source)
        if not isinstance(stored, DTensor):
            return tensor
        return DTensor.from_local(
            tensor, stored.device_mesh, stored.placements, run_check=False, shape=stored.shape, stride=stored.stride()
        )

    def _differ(self, name: str, wanted: str, stored: str) -> None:
        self.problems.append(f"{name or 'the state dict'!r} is {stored} in the file and {wanted} here")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _layout(tensor: torch.Tensor) -> str:
    """Say which part of which tensor this rank has, as far as the tensor knows."""
    if not isinstance(tensor, DTensor):
        return ""
    return f"{list(tensor.shape)} placed as {', '.join(map(str, tensor.placements))}"


def _is_plain(source: torch.Tensor) -> bool:
    """Tell whether a tensor is just its bytes, in the order of its strides."""
    is_dense = type(source) in (torch.Tensor, torch.nn.Parameter) and source.layout is torch.strided
    return is_dense and not (source.is_quantized or source.is_conj() or source.is_neg())
