"""What stands in a rehearsal for names, and for what they would make; see :mod:`dcp_cloud.format.rules`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias


class RefusedUseError(ValueError):
    """A value uses a name in a way that no honest writer does."""


class Budget:
    """Bounds what copies and hashes take in all, by the length of the pickle.

    Args:
        nbytes: The pickle's length.
    """

    def __init__(self, nbytes: int) -> None:
        self._left = 8 * nbytes + 10_000
        self._taken: dict[int, object] = {}

    def spend(self, units: int) -> None:
        """Take bytes that are copied, or elements that are visited."""
        self._left -= units
        if self._left < 0:
            raise RefusedUseError("it would take memory or time beyond its length")

    def consume(self, source: object, *, kind: type) -> None:
        """Take a container that another one is made of; writers make it for that, so it is used once."""
        if type(source) is not kind or id(source) in self._taken:
            raise RefusedUseError(f"it fills a container from something else than a {kind.__name__} of its own")
        self._taken[id(source)] = source  # kept, so that the number is not given to another

    def hash_all(self, elements: list[Any]) -> None:
        """Take the visits of hashing elements; the scan has bounded how deep they are, not how many there are."""
        todo = list(elements)
        self.spend(len(todo))
        while todo:
            element = todo.pop()
            if type(element) is tuple:
                self.spend(len(element))
                todo.extend(element)


class Made:
    """What a call would have made; it takes no state."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Refuse."""
        raise RefusedUseError("it gives a state to something that has none")


Arguments: TypeAlias = tuple[Any, ...]
Rule: TypeAlias = Callable[[Budget, Arguments], object]
"""Judges the arguments of a call, and gives what it would make."""


class Name(Made):
    """A name with its rule.

    Args:
        full_name: For messages.
        rule: Judges the arguments of a call and gives what it would make.
        budget: Of this rehearsal.
    """

    __slots__ = ("_budget", "_full_name", "rule")

    def __init__(self, full_name: str, rule: Rule, budget: Budget) -> None:
        self._full_name, self.rule, self._budget = full_name, rule, budget

    def __call__(self, *arguments: Any) -> object:  # noqa: ANN401 - whatever a pickle gives
        """Judge a call."""
        try:
            return self.rule(self._budget, arguments)
        except RefusedUseError as error:
            raise RefusedUseError(f"{self._full_name}: {error}") from None


class Trusted:
    """Anything of a type that the user allows; what it does is the user's to judge."""

    def __new__(cls, *_: object, **__: object) -> Trusted:  # noqa: PYI034 - Self needs Python 3.11
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Take any arguments."""

    def __setstate__(self, state: object) -> None:
        """Take any state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Take any item."""

    def append(self, item: object) -> None:
        """Take any item."""

    extend = add = update = append


class Storage(Made):
    """The bytes of a tensor."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes


class StorageKind(Made):
    """A type of storages."""

    __slots__ = ("itemsize",)

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize
