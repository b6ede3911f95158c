"""Inputs that are nearly right: valid ones with bytes changed, moved, doubled, cut off, or taken from another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

# Numbers at the ends of ranges, lengths that lie, and the codes that mean something in pickles, zips and paths.
_TOKENS = (
    b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0\0\0\x80", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06",
    b"PK\x07\x08", b"\x80\x04", b"cposix\nsystem\n", b"\x93", b"R", b"b", b"\x81", b"\x92", b"(", b"t", b"\x85",
    b"\x86", b"\x87", b"h\0", b"q\0", b"\x94", b"2", b"0", b"1", b"]", b"}", b")", b"s", b"u", b"e", b"a", b".", b"Q",
    b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"../", b"//", b"%2e%2e", b"\x1b[2J", b"\xf0\x9f\x98\x80", b"-1",
    b"9" * 30, b"NaN", b"[" * 50, b"{", b'"', b":", b"?", b"&", b"=", b"@", b"\n",
)  # fmt: skip


def mutations(seeds: Sequence[bytes], *, seed: int) -> Iterator[bytes]:
    """Make inputs for ever, the same ones for the same seed.

    Args:
        seeds: Valid inputs.
        seed: Of the random numbers.

    Yields:
        The valid ones, then ones that were changed in up to five places.
    """
    yield from seeds
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
            _change(data, chance, seeds)
        yield bytes(data)


def _change(data: bytearray, chance: random.Random, seeds: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    stop = min(at + chance.choice((1, 2, 4, 8, 30)), len(data))
    kind = chance.randrange(7)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[at:stop] = chance.randbytes(stop - at)
    elif kind == 2:
        token = chance.choice(_TOKENS)
        data[at : at + chance.choice((0, len(token)))] = token
    elif kind == 3:
        del data[at:stop]
    elif kind == 4:
        data[at:at] = data[at:stop] * chance.choice((1, 2, 50))
    elif kind == 5:
        other = chance.choice(seeds)
        begin = chance.randrange(len(other) + 1)
        data[at:stop] = other[begin : begin + chance.choice((4, 30, 200))]
    else:
        del data[at:]
