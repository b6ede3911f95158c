"""A list of hostile ``.metadata``: each is built here, and read in a process that must survive all of them.

``python -m tests.fuzz.attacks`` reads them and the values beside them under a limit of memory, and writes what came of
each as JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.format.layout import from_storage_info
from dcp_cloud.format.metadata import dump_metadata, load_metadata
from dcp_cloud.format.shapes import check_shapes
from tests.fuzz.value_attacks import VALUE_ATTACKS, attempt_item, attempt_value
from tests.unit.format.samples import Call, sample

MANY = 1_000_000
_ROOM_BYTES = 1 << 30


def _nested_tuples(levels: int) -> bytes:
    return b")" + b"\x85" * levels


def _laughs(levels: int, empty: bytes, double: bytes) -> bytes:
    """Hold the same object twice in the next one, and so on: a few hundred bytes, 2**levels elements."""
    return empty + b"\x94" + b"".join(double % (n, n) + b"\x94" for n in range(levels))


def _planted(function: object, protocol: int) -> bytes:
    return pickle.dumps(sample({"deep": [Call(function, "echo pwned")]}), protocol=protocol)


def _index(*, state: bytes) -> bytes:
    name = b"\x8c\x25torch.distributed.checkpoint.metadata\x8c\x0dMetadataIndex\x93"
    return name + b")\x81}(\x8c\x03fqn\x8c\x01w\x8c\x06offset" + state + b"\x8c\x05indexNub"


def _behind_a_gap(levels: int) -> bytes:
    """Leave the first place of the memo empty: what is written next lies elsewhere for whoever counts otherwise.

    The beginning of a record and the end of a size, which the scan takes at once, each fill places.
    """
    name = b"\x8c\x25torch.distributed.checkpoint.metadata\x8c\x0bStorageMeta\x93"
    return b")q\x01" + name + b")\x81\x94}\x94(\x8c\x0dcheckpoint_idNub)\x94" + b"h\x01\x85\x94" * levels + b"}h\x01Ns."


def _encodings(levels: int) -> bytes:
    """Make memory formats whose values are pairs of the one before."""
    name = b"\x8c\x25torch.distributed.checkpoint.metadata\x8c\x14_MEM_FORMAT_ENCODING\x93"
    made = name + b"K\0\x85R\x94"
    for level in range(levels):
        made += name + b"K\0\x85RN}\x8c\x06_value" + b"h%c" % level * 2 + b"\x86s\x86b\x94"
    return made + b"}h%cNs." % levels


def _lying(change: Callable[[Metadata, Any], None]) -> bytes:
    metadata = sample()
    change(metadata, metadata.storage_data[MetadataIndex("w", [0, 0], 0)])
    return dump_metadata(metadata)


def _chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Callable[[Metadata, Any], None]:
    def change(metadata: Metadata, _: Any) -> None:
        chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
        metadata.state_dict_metadata["w"].chunks.append(chunk)

    return change


def _size(*sizes: int) -> Callable[[Metadata, Any], None]:
    return lambda metadata, _: setattr(metadata.state_dict_metadata["w"], "size", torch.Size(sizes))


def _field(name: str, value: object) -> Callable[[Metadata, Any], None]:
    return lambda _, info: setattr(info, name, value)


_PROTO = b"\x80\x04"
ATTACKS: Mapping[str, bytes] = MappingProxyType(
    {
        # run code
        **{f"os.system, protocol {n}": _planted(os.system, n) for n in range(6)},
        "eval": _planted(eval, 4),
        "a dotted name": _PROTO + b"\x8c\x05torch\x8c\x17serialization.os.system\x93\x8c\x02id\x85R.",
        "a name from the memo": _PROTO + b"\x8c\x05posix\x94\x8c\x06system\x94h\0h\x01\x93\x8c\x02id\x85R.",
        "GLOBAL with a line break": b"cos\r\nsystem\n(S'id'\ntR.",
        "NEWOBJ_EX of a forbidden class": _PROTO + b"\x8c\x08builtins\x8c\x06object\x93)}\x92.",
        "BUILD on a class": _PROTO
        + b"\x8c\x25torch.distributed.checkpoint.metadata\x8c\x08Metadata\x93}\x8c\x01ak\x01sb.",
        "a persistent id": b"Pmodule\n.",
        "a persistent object": _PROTO + b"K\x01Q.",
        "the extension registry": b"\x80\x02\x82\x01.",
        "a call by mark": b"(ios\nsystem\n.",
        # take memory
        "LONG4": _PROTO + b"\x8b\xff\xff\xff\x7f.",
        "BINUNICODE8": _PROTO + b"\x8d" + struct.pack("<Q", 1 << 50) + b"x.",
        "BINBYTES8": _PROTO + b"\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "FRAME": _PROTO + b"\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "a memo of gigabytes": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "a memo by text": b"K\x01p99999999999\n.",
        # take the stack
        "a key of a million tuples": _PROTO + b"}" + _nested_tuples(MANY) + b"Ns.",
        "a set of a million tuples": _PROTO + b"\x8f(" + _nested_tuples(MANY) + b"\x90.",
        "an index of a million tuples": _PROTO + b"}" + _index(state=_nested_tuples(MANY)) + b"Ns.",
        "a layout named by a million tuples": _PROTO
        + b"\x8c\x13torch.serialization\x8c\x0b_get_layout\x93"
        + _nested_tuples(MANY)
        + b"R.",
        "a million lists": _PROTO + b"]" * MANY + b"a" * (MANY - 1) + b".",
        "a million marks": _PROTO + b"(" * MANY + b".",
        # take time
        "tuples held twice as a key": _PROTO + b"}" + _laughs(60, b")", b"h%ch%c\x86") + b"Ns.",
        "tuples held twice as an index": _PROTO + b"}" + _index(state=_laughs(60, b")", b"h%ch%c\x86")) + b"Ns.",
        "tuples held twice by duplication": _PROTO + b"})" + b"2\x86" * 60 + b"Ns.",
        "lists held twice": _PROTO + _laughs(60, b"]", b"](h%ch%ce") + b".",
        "one long number as a key for ever": _PROTO
        + b"}\x8b"
        + struct.pack("<i", MANY)
        + b"\x7f" * MANY
        + b"\x94("
        + b"h\0N" * 300_000
        + b"u.",
        "a million tuples behind a gap of the memo": _PROTO + _behind_a_gap(MANY),
        "memory formats of pairs as a key": _PROTO + _encodings(30),
        "a place of list type": dump_metadata(sample({"w": ["w", 10**12]})),
        "a place of size type": dump_metadata(sample({"w": torch.Size([10**12])})),
        "places in an OrderedDict": dump_metadata(sample(OrderedDict({"w": ("w", 10**12)}))),
        "places in a list": dump_metadata(sample([("w", 10**12)])),
        "a place with a place that is true": dump_metadata(sample({"w": ("w", True)})),
        "lists of a thousand places in each other": dump_metadata(sample({"w": ("w", *[999] * 90)})),
        "a place of a million parts": dump_metadata(sample({"w": ("w", *[0] * MANY)})),
        "a list of 10**12 places": dump_metadata(sample({"w": ("w", 10**12)})),
        # leave the prefix
        **{
            f"an object named {name!a}": _lying(_field("relative_path", name))
            for name in (
                "../x",
                "a/../../x",
                "/etc/passwd",
                "s3://other/x",
                "a\\..\\x",
                "C:x",
                "a\x1b[2J",
                "\ud800",
                "",
            )
        },
        # lie about places
        "a negative offset": _lying(_field("offset", -1)),
        "an offset beyond 64 bits": _lying(_field("offset", 1 << 100_000)),
        "a length that is a text": _lying(_field("length", "10")),
        "bare bytes before their item": _lying(_field("dcp_cloud", (2, None, (0, 24, None, 0, b"", 262144)))),
        "bare bytes beyond their item": _lying(_field("dcp_cloud", (2, None, (20, 1 << 40, None, 0, b"", 4096)))),
        "pages of one byte": _lying(_field("dcp_cloud", (2, None, (20, 24, None, 0, b"\0" * 96, 1)))),
        # lie about shapes
        "a chunk beyond the tensor": _lying(_chunk((1, 0), (2, 3))),
        "a chunk of other dimensions": _lying(_chunk((0,), (2,))),
        "a negative size": _lying(_size(-1, 3)),
        "sizes that overflow": _lying(_size(1 << 40, 1 << 40)),
        "65 dimensions": _lying(_size(*[1] * 65)),
    }
)


def attempt(data: bytes) -> str:
    """Read as a load does; give the error's name."""
    try:
        metadata = load_metadata(data, key="run/.metadata")
        check_shapes(metadata, key="run/.metadata")
        for info in metadata.storage_data.values():
            from_storage_info(info)
    except DcpCloudError as error:
        return type(error).__name__ if len(str(error)) < 10_000 else "endless message"
    return "loaded"


def main() -> None:
    """Read all attacks, with little more memory than there is in use, and no stack but the usual."""
    in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + _ROOM_BYTES,) * 2)
    outcomes = {}
    for name, data in ATTACKS.items():
        sys.stderr.write(f"{name}\n")  # the last line names the one that ended the process
        outcomes[name] = attempt(data)
    for name, data in VALUE_ATTACKS.items():
        sys.stderr.write(f"{name}\n")
        outcomes[f"value: {name}"] = attempt_value(data)
        outcomes[f"tensor: {name}"] = attempt_item(data)
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main()
