"""What can go wrong between a job and its store, as records that can be written into a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, TypeAlias

from dcp_cloud.errors import ConfigError
from dcp_cloud.testing.wrappers.base import Request

Kind: TypeAlias = Literal[
    "delay",
    "fail",
    "throttle",
    "refuse",
    "crash",
    "exit",
    "kill",
    "truncate",
    "flip_bit",
    "rot",
    "cut",
    "short_list",
    "stale_list",
]
_VERBS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "truncate": ("get", "get_range"),
        "flip_bit": ("get", "get_range"),
        "rot": ("put", "complete"),
        "cut": ("put", "complete"),
        "short_list": ("list", "list_prefixes", "list_multiparts"),
        "stale_list": ("list", "list_prefixes", "list_multiparts"),
    }
)


class SimulatedCrash(BaseException):
    """The process died here, as far as the store can tell."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with the matching requests.

    ======================= =======================================================================================
    ``delay``               nothing but the wait of ``delay_s``
    ``fail``                ``TransientError``; with ``when="after"`` the request takes effect and its answer is lost
    ``throttle``            ``ThrottledError`` with ``retry_after_s``
    ``refuse``              ``PermissionDeniedError``: an error that no retry mends
    ``crash``               raises :class:`SimulatedCrash`, and the store answers nothing else from then on
    ``exit``, ``kill``      ends this process: ``os._exit(70)``, SIGKILL
    ``truncate``            ``get_range``: half of the buffers' bytes arrive, then ``TransientError``; ``get``: only the
                            error
    ``flip_bit``            ``get``, ``get_range``: one bit of the answer is wrong
    ``rot``                 ``put``, ``complete``: one bit of the stored object is wrong from then on
    ``cut``                 ``put``, ``complete``: the stored object lacks its second half from then on
    ``short_list``          a listing lacks its second half
    ``stale_list``          a listing repeats what the same listing gave before; nothing the first time
    ======================= =======================================================================================

    A request that is lost, so that its sender waits in vain, is a ``fail`` with a ``delay_s``.

    Args:
        kind: What happens.
        verb: Pattern (``fnmatch``) of the verbs that match: ``put*``.
        key: Pattern of the keys that match: ``*/.metadata``.
        nth: The first matching request that is struck, counted from 1.
        times: How many are struck at most; None for all from ``nth`` on.
        chance: Probability with which a request is struck, if not each one is.
        when: Before or after the request takes effect; for the kinds that end it with an error or a crash.
        retry_after_s: What ``throttle`` asks for, seconds.
        delay_s: What the request waits before anything else happens to it, seconds.
    """

    kind: Kind
    verb: str = "*"
    key: str = "*"
    nth: int = 1
    times: int | None = 1
    chance: float | None = None
    when: Literal["before", "after"] = "before"
    retry_after_s: float | None = None
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        if self.when == "after" and self.kind in _VERBS:
            raise ConfigError(f"{self.kind!r} changes the answer itself", hint="leave 'when' out")

    def matches(self, request: Request) -> bool:
        """Tell whether a request is one of those that this fault can strike.

        Args:
            request: The request.
        """
        if self.kind in _VERBS and request.verb not in _VERBS[self.kind]:
            return False
        return fnmatchcase(request.verb, self.verb) and fnmatchcase(request.key, self.key)

    def __str__(self) -> str:
        """Say in a few characters what happens: ``fail after put_part .metadata #3 x2 p=0.1``."""
        name = self.kind if self.when == "before" else f"{self.kind} after"
        count = "" if self.times == 1 else f" x{self.times or '∞'}"
        return (
            f"{name} {self.verb}"
            + (f" {self.key}" if self.key != "*" else "")
            + (f" #{self.nth}" if self.nth != 1 or self.chance is None else "")
            + count
            + (f" p={self.chance:g}" if self.chance is not None else "")
            + (f" {self.delay_s:g}s" if self.delay_s else "")
        )


def describe_faults(faults: Iterable[Fault]) -> str:
    """Say in one line what goes wrong.

    Args:
        faults: The faults.
    """
    return ", ".join(map(str, faults)) or "no faults"


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that struck.

    Args:
        fault: The fault.
        verb: Verb of the request.
        key: Its key.
        start: Its offset, if it read a range.
        index: Its index, if it sent a part.
    """

    fault: Fault
    verb: str
    key: str
    start: int
    index: int
