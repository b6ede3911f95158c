"""Whether the shapes in a table of contents make sense, before torch's planner computes with them."""

from __future__ import annotations

import math

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_cloud.errors import CorruptCheckpointError

_MAX_BYTES = 2**63


def check_shapes(metadata: Metadata, *, key: str) -> None:
    """See that every tensor has a dtype and a possible size, and that its chunks lie within it.

    Args:
        metadata: The table of contents.
        key: Key of the commit, for messages.

    Raises:
        CorruptCheckpointError: A tensor makes no sense.
    """
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            fault = _fault(entry)
            if fault:
                raise CorruptCheckpointError(
                    "the checkpoint's .metadata is damaged",
                    key=key,
                    cause=f"{name[:200]!r}: {fault}",
                    hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
                )


def _fault(entry: TensorStorageMetadata) -> str:
    dtype: object = entry.properties.dtype
    size = entry.size
    if not isinstance(dtype, torch.dtype):
        return f"its dtype is a {type(dtype).__name__}"
    if min(size, default=0) < 0 or math.prod(size) * dtype.itemsize >= _MAX_BYTES:
        return "it would be longer than any memory"
    for chunk in entry.chunks:
        fields = vars(chunk)
        offsets, sizes = fields.get("offsets"), fields.get("sizes")
        if type(offsets) is not torch.Size or type(sizes) is not torch.Size:
            return "the place of a chunk has another type"
        if not len(offsets) == len(sizes) == len(size):
            return "a chunk has another number of dimensions"
        for begin, length, whole in zip(offsets, sizes, size, strict=True):
            if begin < 0 or length < 0 or begin + length > whole:
                return f"the chunk at {list(offsets)} of size {list(sizes)} leaves the shape {list(size)}"
    return ""
