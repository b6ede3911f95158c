"""Everything that reads bytes or names from a bucket or a user, as functions of bytes: the targets of the fuzzers.

Each returns, or raises an error of this package. Anything else is a find: another error, a crash, a run out of memory
or time.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType, SimpleNamespace

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo

from dcp_cloud.checkpoint.catalog import list_checkpoints
from dcp_cloud.config import TransferConfig, merge_options, parse_bytes, parse_seconds
from dcp_cloud.errors import DcpCloudError
from dcp_cloud.format import safetensors
from dcp_cloud.format.intact import PartlyHeld, check_archive
from dcp_cloud.format.items import load_item
from dcp_cloud.format.layout import RawData, StoredItem, from_storage_info, to_storage_info
from dcp_cloud.format.metadata import dump_metadata, load_metadata
from dcp_cloud.format.parse import RawLayout, crc32_from_trailer, parse_header
from dcp_cloud.format.shapes import check_shapes
from dcp_cloud.format.values import check_value
from dcp_cloud.stores.base import ObjectMeta
from dcp_cloud.uri import StoreURI
from tests.unit.format.samples import sample

_KEY = "run/object"


@dataclass(frozen=True, slots=True)
class Parser:
    """A target.

    Args:
        run: Reads bytes.
        seeds: Inputs that are read without an error, to begin with.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def read_metadata(data: bytes) -> None:
    """Read ``.metadata`` and everything in it that a load computes with."""
    with contextlib.suppress(DcpCloudError):
        metadata = load_metadata(data, key=_KEY)
        check_shapes(metadata, key=_KEY)
        for info in metadata.storage_data.values():
            with contextlib.suppress(DcpCloudError):
                from_storage_info(info)


def read_item(data: bytes) -> None:
    """Read a tensor's item: its head, its trailer, its checksums, and all of it."""
    found = parse_header(data[:1024], item_nbytes=len(data))
    if isinstance(found, RawLayout):
        assert found.raw_offset + found.raw_nbytes <= len(data)
    crc32_from_trailer(data[-1024:])
    check_archive(PartlyHeld(head=data))
    with contextlib.suppress(DcpCloudError):
        load_item(data, key=_KEY)


def read_value(data: bytes) -> None:
    """Look into a value; what passes is opened as torch's planner opens it, and must be harmless."""
    try:
        check_value(data, key=_KEY, label="'value'")
    except DcpCloudError:
        return
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(io.BytesIO(data), weights_only=False)


def read_record(data: bytes) -> None:
    """Read a storage record made of arbitrary JSON values."""
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(data)
        with contextlib.suppress(DcpCloudError):
            from_storage_info(_as_info(fields))


def read_safetensors(data: bytes) -> None:
    """Read the header of a safetensors file."""
    with contextlib.suppress(DcpCloudError):
        safetensors.parse_header(data, size_bytes=len(data), key=_KEY)


def read_uri(data: bytes) -> None:
    """Read a URI and its options; their own text leads to the same URI."""
    with contextlib.suppress(DcpCloudError):
        uri = StoreURI.parse(data.decode("utf-8", "surrogateescape"))
        repr(uri)
        again = StoreURI.parse(uri.root)
        assert (again.bucket, again.prefix) == (uri.bucket, uri.prefix)
        merge_options(None, TransferConfig, uri.options)


def read_option(data: bytes) -> None:
    """Read a size and a duration."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_bytes, parse_seconds):
        with contextlib.suppress(DcpCloudError):
            parse(text)


def read_listing(data: bytes) -> None:
    """Find checkpoints in a listing of arbitrary names."""
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    metas = [
        ObjectMeta(key=name, size_bytes=len(name), etag="1", modified_at=now)
        for name in data.decode("utf-8", "replace").split("\n")
        if name
    ]
    store = SimpleNamespace(uri="memory://bucket/run", list=lambda *_args, **_options: iter(metas))
    with contextlib.suppress(DcpCloudError):
        list(list_checkpoints(store))


def _as_info(fields: object) -> _StorageInfo:
    info = _StorageInfo("a", 5, 2000)
    if isinstance(fields, dict):
        vars(info).update({str(name): _tuples(value) for name, value in fields.items()})
    return info


def _tuples(value: object) -> object:
    """Turn JSON's lists and texts into the tuples and bytes of records."""
    if isinstance(value, list):
        return tuple(map(_tuples, value))
    return value.encode("utf-8", "surrogatepass")[1:] if isinstance(value, str) and value[:1] == "\0" else value


def _saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _metadata_seeds() -> Iterator[bytes]:
    metadata = sample({"model.w": ("model", "w"), "l.0": ("l", 0)})
    for index in metadata.storage_data:
        raw = RawData(offset=714, size_bytes=24, strides=(1, 2), crc32=7)
        metadata.storage_data[index] = to_storage_info(StoredItem(key="a/b", offset=10, size_bytes=2000, raw=raw))
    yield dump_metadata(metadata)
    for protocol in (2, 3, 4, 5):
        yield pickle.dumps(sample(), protocol=protocol)


def _item_seeds() -> Iterator[bytes]:
    yield _saved(torch.arange(6, dtype=torch.float32).reshape(2, 3).t())
    yield _saved(torch.zeros(3, dtype=torch.complex64).conj())
    yield _saved(torch.tensor(7, dtype=torch.uint16))
    yield _saved(torch.empty(0, dtype=torch.bfloat16))
    yield _saved(torch.zeros(3), _use_new_zipfile_serialization=False)


def _value_seeds() -> Iterator[bytes]:
    for value in (1, "text", [1, {"a": (2.5, None)}], {1, 2}, np.arange(3), torch.zeros(2), SimpleNamespace(a=1)):
        yield _saved(value)
    yield _saved([np.array(["a"]), np.float64(1), np.array(["2026-01-01"], dtype="M8[D]"), bytearray(b"ab"), {1j}])
    yield _saved(OrderedDict(a=torch.nn.Parameter(torch.ones(1)), b=datetime(2026, 1, 1, tzinfo=timezone.utc)))
    yield _saved(np.random.RandomState(1).get_state())


def _record_seeds() -> Iterator[bytes]:
    raw = [14, 20, [1, 2], 7, "\0", 4096]
    yield json.dumps({"relative_path": "a/b", "offset": 5, "length": 90, "dcp_cloud": [2, None, raw]}).encode()
    yield json.dumps({"relative_path": "a", "transform_descriptors": ["zstd"], "dcp_cloud": [1, 7, None]}).encode()


def _safetensors_seeds() -> Iterator[bytes]:
    header = {"__metadata__": {"a": "b"}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(header).encode()
    yield len(text).to_bytes(8, "little") + text + bytes(24)


def _uri_seeds() -> Iterator[bytes]:
    yield b"s3://bucket/run/step-1?region=eu-west-1&part_size=64MiB&max_attempts=3"
    yield b"az://account/container/run?connect_timeout=5s"
    yield b"gs://bucket/a%20b"
    yield b"file:///tmp/a b"
    yield b"memory://name/prefix"


def _option_seeds() -> Iterator[bytes]:
    yield from (b"64MiB", b"1.5s", b"200ms", b"67108864", b"1GiB")


def _listing_seeds() -> Iterator[bytes]:
    yield b"step-1/.metadata\nstep-1/__0_0." + b"a" * 32 + b".distcp\nstep-2/__0.metadata\nx/y/__1_0.distcp"


PARSERS: Mapping[str, Parser] = MappingProxyType(
    {
        "metadata": Parser(read_metadata, _metadata_seeds),
        "item": Parser(read_item, _item_seeds),
        "value": Parser(read_value, _value_seeds),
        "record": Parser(read_record, _record_seeds),
        "safetensors": Parser(read_safetensors, _safetensors_seeds),
        "uri": Parser(read_uri, _uri_seeds),
        "option": Parser(read_option, _option_seeds),
        "listing": Parser(read_listing, _listing_seeds),
    }
)
