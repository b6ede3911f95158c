"""What can go wrong on a network, as records that can be written into a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from dcp_cloud.errors import ConfigError
from dcp_cloud.testing.proxy.message import Message

NetworkKind: TypeAlias = Literal[
    "reset", "half_close", "stall", "status", "truncate", "flip_bit", "duplicate", "drip", "drop", "refuse"
]
Side: TypeAlias = Literal["request", "response"]
_ONLY_REQUESTS = ("duplicate", "refuse")


@dataclass(frozen=True, slots=True, repr=False)
class NetworkFault:
    """Something that goes wrong with the matching requests, on their way there or on the way back.

    ============== ======================================= ==========================================================
    kind           ``side="request"``                      ``side="response"``: the server has taken the request
    ============== ======================================= ==========================================================
    ``reset``      TCP reset after half of the body        TCP reset after half of the answer's body
    ``half_close`` end of stream after half of the body,   the same after half of the answer's body
                   the connection stays open
    ``drop``       closed without an answer, never sent on closed without an answer
    ``stall``      nothing happens until ``release()``     the answer is held back until ``release()``
    ``status``     answered by the proxy, never sent on    the proxy answers instead of the server
    ``truncate``   the second half of the body is missing, the same with the answer, and its length says so: a
                   and the length says so                  complete answer that is too short
    ``flip_bit``   one bit of the body is wrong            one bit of the answer's body is wrong
    ``drip``       read slowly                             sent slowly
    ``duplicate``  sent to the server twice; the second
                   answer is given
    ``refuse``     the server is gone: all connections
                   end and new ones are refused, for
                   ``duration_s`` or until ``release()``
    ============== ======================================= ==========================================================

    Args:
        kind: What happens.
        side: Where.
        method: Pattern (``fnmatch``) of the methods that match.
        path: Pattern of the unquoted paths that match: ``*.distcp``.
        query: Pattern by name of a query parameter, ``{"partNumber": "*"}``; with None the parameter must be absent.
        header: The same for header fields; names in lower case.
        nth: The first matching request that is struck, counted from 1.
        times: How many are struck at most; None for all from ``nth`` on.
        chance: Probability with which a request is struck, if not each one is.
        status: HTTP status that ``status`` answers with.
        code: The provider's own name for that error, written where the provider's clients look for it.
        retry_after_s: ``Retry-After`` of that answer, seconds.
        duration_s: How long ``refuse`` lasts, seconds; None for until ``release()``.
        bytes_per_s: Speed of ``drip``.
    """

    kind: NetworkKind
    side: Side = "request"
    method: str = "*"
    path: str = "*"
    query: Mapping[str, str | None] = field(default_factory=dict)
    header: Mapping[str, str | None] = field(default_factory=dict)
    nth: int = 1
    times: int | None = 1
    chance: float | None = None
    status: int = 500
    code: str = "InternalError"
    retry_after_s: int | None = None
    duration_s: float | None = None
    bytes_per_s: int = 1024 * 1024

    def __post_init__(self) -> None:
        if self.side == "response" and self.kind in _ONLY_REQUESTS:
            raise ConfigError(f"{self.kind!r} happens to requests", hint="leave 'side' out")
        if self.nth < 1 or (self.times is not None and self.times < 1):
            raise ConfigError("nth and times are counted from 1", hint="leave a fault out that shall never strike")
        if self.bytes_per_s < 1:
            raise ConfigError("bytes_per_s must be above 0", hint="a connection that brings nothing is a 'stall'")

    def __repr__(self) -> str:
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "kind"}
        usual = NetworkFault(self.kind)
        changed = [f"{name}={value!r}" for name, value in given.items() if value != getattr(usual, name)]
        return f"NetworkFault({', '.join([repr(self.kind), *changed])})"

    def matches(self, request: Message) -> bool:
        """Tell whether a request is one of those that this fault can strike.

        Args:
            request: The request's head.
        """
        return (
            fnmatchcase(request.method, self.method)
            and fnmatchcase(request.path, self.path)
            and _match_all(self.query, request.query)
            and _match_all(self.header, {name.lower(): value for name, value in request.fields})
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request that went through the proxy. Its text holds no credential: values of query parameters stay out of it.

    Args:
        number: Its place in the order in which the requests arrived, from 1.
        method: HTTP method.
        path: Unquoted path.
        query: Names of the query parameters; numbers and a few that tell requests apart keep their
            value: ``partNumber=3``, ``comp=block``.
        fault: The fault that struck it, or None.
        place: The fault's place in the proxy's list, from 0.
    """

    number: int
    method: str
    path: str
    query: tuple[str, ...]
    fault: NetworkFault | None = None
    place: int | None = None

    def __str__(self) -> str:
        target = self.path + ("?" + "&".join(self.query) if self.query else "")
        text = f"#{self.number} {self.method} {target}"
        return (
            text if self.fault is None else f"{text}: {self.fault.kind} of the {self.fault.side} (fault {self.place})"
        )


def _match_all(patterns: Mapping[str, str | None], values: Mapping[str, str]) -> bool:
    for name, pattern in patterns.items():
        if pattern is None:
            if name in values:
                return False
        elif name not in values or not fnmatchcase(values[name], pattern):
            return False
    return True
