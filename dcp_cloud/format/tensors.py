"""From a tensor to the run of bytes that is stored for it, and to the run of bytes that a download fills."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from dcp_cloud.errors import ConfigError, UnsupportedFormatError
from dcp_cloud.format.archive import TensorRecord, is_row_major, tensor_record
from dcp_cloud.format.tensor_pickle import QUANTISED

_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedTensor:
    """A tensor that is ready to be stored.

    Args:
        record: Header, trailer and lengths of its item.
        memory: Its bytes in storage order; holds the storage alive.
        owns_copy: Whether the bytes are a copy made here rather than the caller's own memory.
    """

    record: TensorRecord
    memory: memoryview
    owns_copy: bool


def plan_record(tensor: torch.Tensor) -> TensorRecord | None:
    """Foretell what :func:`prepare_tensor` will store, without reading or copying the tensor.

    Args:
        tensor: A tensor on any device.

    Returns:
        The record, so that the length of an object is known before its first byte; None if the tensor is not one
        that this package stores without ``torch.save``.
    """
    local = _plain(tensor)
    if local is None:
        return None
    if local.device.type == "cpu" and _is_whole(local):
        return _record_of(local)
    if local.device.type != "cpu" and (local.is_conj() or local.is_neg()):
        return None
    # A copy keeps the order of the dimensions but not gaps or flags; the meta device tells without memory.
    strides = torch.empty_like(local, device="meta").stride()
    return tensor_record(local.dtype, tuple(local.shape), strides)


def prepare_tensor(tensor: torch.Tensor) -> PreparedTensor | None:
    """Do what torch's writer does to a tensor before it saves it: detach, move to the CPU, drop what is not its own.

    Args:
        tensor: A tensor on any device; of a parameter the data, of a distributed tensor the local part.

    Returns:
        Its record and memory, without a copy when the tensor is on the CPU and fills its storage. None for anything
        else than a plain strided tensor (subclasses, sparse, quantised, meta, nested): save that with ``torch.save``.

    Raises:
        ConfigError: The tensor's memory was freed, so there is nothing to store.
    """
    local = _plain(tensor)
    if local is None:
        return None
    whole = _is_whole(local)
    if not whole:
        _require_memory(local)
    if local.device.type == "cpu" and not whole and _is_run(local):
        # A row-major view of a larger storage, such as a shard of a flat parameter: its copy would hold just its bytes.
        record = plan_record(local)
        return None if record is None else PreparedTensor(record=record, memory=tensor_bytes(local), owns_copy=False)
    own = local.device.type == "cpu" and whole
    ready = local.detach().cpu()
    if not _is_whole(ready):
        ready = ready.clone()
    record = _record_of(ready)
    if record is None or not _is_whole(ready):
        return None
    return PreparedTensor(record=record, memory=_storage_bytes(ready), owns_copy=not own)


def is_run_of_memory(tensor: torch.Tensor) -> bool:
    """Tell whether :func:`prepare_tensor` needs no copy: the values are one run of bytes in the order they are stored.

    Args:
        tensor: A plain strided tensor whose memory this process can read.

    Returns:
        True for a tensor that fills its storage, and for a row-major view of a larger one.
    """
    return _is_whole(tensor) or _is_run(tensor)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Give the memory of a tensor as writable bytes, for a download to land in.

    Args:
        tensor: A row-major tensor on the CPU, of any dtype; views and leaves that require gradients too.

    Returns:
        Its bytes in row-major order. Writing to them writes to the tensor and is not seen by autograd.

    Raises:
        UnsupportedFormatError: The tensor's values are not one run of bytes in the memory of this process.
        ConfigError: The tensor's memory was freed.
    """
    plain = _plain(tensor)
    if plain is None or plain.device.type != "cpu" or not _is_run(plain):
        raise UnsupportedFormatError(
            "the tensor's values are not one run of bytes in memory",
            cause=f"type {type(tensor).__name__}, device {tensor.device}, layout {tensor.layout}",
            hint="read into a temporary tensor and copy it over",
        )
    _require_memory(plain)
    start = plain.storage_offset() * plain.itemsize
    return _storage_bytes(plain)[start : start + plain.nbytes]


def _plain(tensor: torch.Tensor) -> torch.Tensor | None:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if type(tensor) not in _PLAIN_TYPES or tensor.layout is not torch.strided:
        return None
    if tensor.dtype in QUANTISED or tensor.is_nested or tensor.device.type == "meta":
        return None
    return tensor


def _record_of(tensor: torch.Tensor) -> TensorRecord | None:
    return tensor_record(
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        offset=int(tensor.storage_offset()),
        conj=tensor.is_conj(),
        neg=tensor.is_neg(),
    )


def _is_run(tensor: torch.Tensor) -> bool:
    """Tell whether the values are one run of bytes in row-major order."""
    return is_row_major(tuple(tensor.shape), tensor.stride()) and not tensor.is_conj() and not tensor.is_neg()


def _is_whole(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def _require_memory(tensor: torch.Tensor) -> None:
    """Refuse a tensor that reaches beyond its storage: FSDP frees storages that way, and torch itself would crash."""
    if not tensor.numel():
        return
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if tensor.untyped_storage().nbytes() < (tensor.storage_offset() + reach) * tensor.itemsize:
        raise ConfigError(
            "a tensor of the state dict has no memory",
            cause=f"its storage of {tensor.untyped_storage().nbytes()} bytes was freed or resized",
            hint="take the state dict while the parameters are gathered, for example with get_model_state_dict",
        )


def _storage_bytes(tensor: torch.Tensor) -> memoryview:
    # Built upon the storage, not the tensor: that knows no dtype, no autograd and no bits, and numpy keeps it alive.
    raw = torch.empty(0, dtype=torch.uint8, device="cpu").set_(tensor.untyped_storage())
    return memoryview(raw.numpy())  # type: ignore[arg-type]  # arrays are buffers
