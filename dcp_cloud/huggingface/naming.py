"""Names of the objects of a model in safetensors files, and which of them this package would have made.

``model-00001-of-00002.safetensors`` … with ``model.safetensors.index.json`` is what Hugging Face's libraries read; the
index is the commit. ``shard-00001-model-00001-of-00001.safetensors`` … is what torch's writer makes of a sharded
state, one file for each rank; here the list of them, ``dcp_cloud.shards.json``, is the commit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dcp_cloud.format.safetensors import SUFFIX

INDEX_KEY = "model.safetensors.index.json"
SINGLE_KEY = "model.safetensors"
SHARDS_KEY = "dcp_cloud.shards.json"
SHARDED_DIRECTORY = "sharded"
"""Where shards go that are consolidated by the save itself; torch's name (``SHARDED_DIR_NAME``)."""

FORMAT_METADATA = {"format": "pt"}
"""``transformers`` loads no file that does not say that its tensors are torch's."""
SHARDING_INFO = "DCP_SHARDING_INFO"
"""Text of ``__metadata__`` in which torch's writer says where a shard lies in its tensor."""
DCP_VERSION = {"DCP_VERSION": "1.0"}
SAVED_OFFSETS = "saved_offsets"
GLOBAL_SHAPE = "global_shape"
"""Beside ``saved_offsets``: the whole tensor's shape, so that a missing last shard is noticed; torch ignores it."""
FILE_ID = "dcp_cloud_file_id"
"""Text of ``__metadata__`` that no other file has; the commit names it, so files of two saves never mix."""
FILE_IDS = "dcp_cloud_file_ids"

_MODEL = re.compile(r"^model-(\d{5})-of-(\d{5})\.safetensors$")
_SHARD = re.compile(r"^shard-\d{5}(?:-\d+)?-model-\d{5}-of-\d{5}\.safetensors$")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Where a tensor was stored: what a rank tells the coordinator.

    Args:
        name: Name of the file.
        file_id: What its header and the commit call it.
        size_bytes: Length of the tensor.
    """

    name: str
    file_id: str
    size_bytes: int


def model_file(number: int, count: int) -> str:
    """Name a file of whole tensors.

    Args:
        number: From 1 on.
        count: How many there are.
    """
    return f"model-{number:05d}-of-{count:05d}{SUFFIX}"


def shard_file(rank: int, layer: int, number: int, count: int) -> str:
    """Name a file of shards.

    Args:
        rank: Rank that writes it.
        layer: 0 for the first shard of each tensor, 1 for the second: a file holds a name only once.
        number: Number of the file that its tensors will go to, from 1 on.
        count: How many there will be.
    """
    extra = f"-{layer + 1}" if layer else ""
    return f"shard-{rank + 1:05d}{extra}-{model_file(number, count)}"


def file_number(name: str) -> tuple[int, int] | None:
    """Read number and count out of the name of a file of whole tensors; None for any other name."""
    match = _MODEL.match(name)
    return (int(match[1]), int(match[2])) if match else None


def is_own_name(name: str) -> bool:
    """Tell whether a save or consolidation makes files of this name, so that a later one may replace them."""
    return name == SINGLE_KEY or _MODEL.match(name) is not None or _SHARD.match(name) is not None


def is_commit_name(name: str) -> bool:
    """Tell whether an object is the commit of a model."""
    return name in (INDEX_KEY, SHARDS_KEY)
