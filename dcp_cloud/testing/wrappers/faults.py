"""What can go wrong between a job and its store, as records that can be written into a test."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from dcp_cloud.errors import ConfigError
from dcp_cloud.testing.wrappers.base import Request

Kind: TypeAlias = Literal[
    "fail", "throttle", "refuse", "crash", "exit", "kill", "truncate", "flip_bit", "short_list", "stale_list"
]
_READS = ("get", "get_range")
_LISTINGS = ("list", "list_prefixes", "list_multiparts")


class SimulatedCrash(BaseException):
    """The process died here, as far as the store can tell."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with the matching requests.

    ======================= =======================================================================================
    ``fail``                ``TransientError``; with ``when="after"`` the request takes effect and its answer is lost
    ``throttle``            ``ThrottledError`` with ``retry_after_s``
    ``refuse``              ``PermissionDeniedError``: an error that no retry mends
    ``crash``               raises :class:`SimulatedCrash`, and the store answers nothing else from then on
    ``exit``, ``kill``      ends this process: ``os._exit(70)``, SIGKILL
    ``truncate``            ``get_range``: half of the buffers' bytes arrive, then ``TransientError``; ``get``: only the
                            error
    ``flip_bit``            ``get``, ``get_range``: one bit of the answer is wrong
    ``short_list``          a listing lacks its second half
    ``stale_list``          a listing repeats what the same listing gave before; nothing the first time
    ======================= =======================================================================================

    Args:
        kind: What happens.
        verb: Pattern (``fnmatch``) of the verbs that match: ``put*``.
        key: Pattern of the keys that match: ``*/.metadata``.
        nth: The first matching request that is struck, counted from 1.
        times: How many are struck at most; None for all from ``nth`` on.
        chance: Probability with which a request is struck, if not each one is.
        when: Before or after the request takes effect; for the kinds that end it with an error or a crash.
        retry_after_s: What ``throttle`` asks for, seconds.
    """

    kind: Kind
    verb: str = "*"
    key: str = "*"
    nth: int = 1
    times: int | None = 1
    chance: float | None = None
    when: Literal["before", "after"] = "before"
    retry_after_s: float | None = None

    def __post_init__(self) -> None:
        if self.when == "after" and self.kind in ("truncate", "flip_bit", "short_list", "stale_list"):
            raise ConfigError(f"{self.kind!r} changes the answer itself", hint="leave 'when' out")

    def matches(self, request: Request) -> bool:
        """Tell whether a request is one of those that this fault can strike.

        Args:
            request: The request.
        """
        if self.kind in ("truncate", "flip_bit") and request.verb not in _READS:
            return False
        if self.kind in ("short_list", "stale_list") and request.verb not in _LISTINGS:
            return False
        return fnmatchcase(request.verb, self.verb) and fnmatchcase(request.key, self.key)


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
