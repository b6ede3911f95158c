"""Loading quantised models: values and scales are read by ranges and become numbers on their way to the targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from dcp_cloud.checkpoint.boxes import BoxPlanner
from dcp_cloud.checkpoint.landing import filling
from dcp_cloud.checkpoint.location import StoreLike, URILike
from dcp_cloud.checkpoint.tiling import Box
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError, StateDictMismatchError, UnsupportedFormatError
from dcp_cloud.huggingface.dequantise import Mxfp4Groups, SquareBlocks, find_scale, tiles
from dcp_cloud.huggingface.reader import CloudHuggingFaceStorageReader
from dcp_cloud.transfer.events import EventHook

# What is read of values and scales before it is computed with, as part of what may be in flight.
_BATCHES = 8
_TILE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantised:
    """A quantised tensor and its scales as they are stored."""

    scheme: SquareBlocks | Mxfp4Groups
    name: str
    values: TensorStorageMetadata
    scale_name: str
    scales: TensorStorageMetadata


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tile:
    """A part of a target and the memory for what it is made of."""

    found: _Quantised
    box: Box
    target: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor


class CloudQuantizedHuggingFaceStorageReader(CloudHuggingFaceStorageReader):
    """Loads a quantised model from safetensors files into tensors that are not quantised.

    Quantised tensors appear with the shape and dtype that they have when they are dequantised, so that a planner can
    cut them for any number of ranks along any dimension; only the values and scales that a rank needs are read.

    Args:
        uri: The model's place, or the URI of one ``.safetensors`` file.
        target_dtype: What dequantised numbers are computed to, before they are converted to the target's dtype.
        block_size: Side of the blocks that ``weight_scale_inv`` has a scale for.
        transfer: Range length, gaps, concurrency, memory, retries; wins over the URI's options.
        store: A store rooted at the model's place to use instead of opening one, or a function that makes one.
        config: The provider's settings, for example :class:`~dcp_cloud.S3Config`.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        ConfigError: The URI or a setting is wrong. Nothing is sent before the load begins.
    """

    def __init__(
        self,
        uri: URILike,
        *,
        target_dtype: torch.dtype = torch.float32,
        block_size: int = 128,
        transfer: TransferConfig | None = None,
        store: StoreLike | None = None,
        config: object = None,
        on_event: EventHook | None = None,
    ) -> None:
        super().__init__(uri, transfer=transfer, store=store, config=config, on_event=on_event)
        if block_size < 1 or not target_dtype.is_floating_point:
            raise ConfigError(
                f"target_dtype={target_dtype} and block_size={block_size} cannot be",
                hint="the block is at least 1 long",
            )
        self._target_dtype = target_dtype
        self._block_size = block_size
        self._quantised: dict[str, _Quantised] = {}
        self._stored: Metadata | None = None

    def _read_commit(self, key: str) -> Metadata:
        self._stored = stored = super()._read_commit(key)
        entries = dict(stored.state_dict_metadata)
        found = {name: find_scale(name, entries) for name in entries}
        self._quantised = {name: self._describe(stored, name, scale) for name, scale in found.items() if scale}
        for name, quantised in self._quantised.items():
            shape = torch.Size(quantised.scheme.shape)
            properties = dataclasses.replace(quantised.values.properties, dtype=self._target_dtype)
            whole = ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)
            entries[name] = TensorStorageMetadata(properties, shape, [whole])
        return dataclasses.replace(stored, state_dict_metadata=entries)

    def _describe(self, metadata: Metadata, name: str, scale_name: str) -> _Quantised:
        values, scales = metadata.state_dict_metadata[name], metadata.state_dict_metadata[scale_name]
        if not isinstance(values, TensorStorageMetadata) or not isinstance(scales, TensorStorageMetadata):
            raise UnsupportedFormatError(f"{name!r} is no tensor")
        shape, is_mxfp4 = tuple(values.size), name.endswith("_blocks")
        if len(values.chunks) != 1 or len(scales.chunks) != 1 or len(shape) < 2 or (len(shape) != 2 and not is_mxfp4):
            raise UnsupportedFormatError(
                f"{name!r} cannot be dequantised",
                key=self.checkpoint_id,
                cause=f"shape {list(shape)} in {len(values.chunks)} shards, scales {list(scales.size)}",
                hint="quantised tensors are matrices or MXFP4 blocks, each whole in one file",
            )
        scheme = Mxfp4Groups(shape) if is_mxfp4 else SquareBlocks(shape, self._block_size)
        if tuple(scales.size) != scheme.scale_shape:
            raise UnsupportedFormatError(
                f"the scales of {name!r} have another shape than its blocks",
                key=self.checkpoint_id,
                cause=f"{list(scales.size)} instead of {list(scheme.scale_shape)}",
                hint="pass the block_size that the model was quantised with (config.json, weight_block_size)",
            )
        return _Quantised(scheme=scheme, name=name, values=values, scale_name=scale_name, scales=scales)

    def _fill(self, metadata: Metadata, plan: LoadPlan, planner: LoadPlanner, hook: EventHook) -> None:
        plain = [item for item in plan.items if item.storage_index.fqn not in self._quantised]
        super()._fill(metadata, dataclasses.replace(plan, items=plain), planner, hook)
        # The targets of a batch are computed before the next one is read.
        limit_bytes = self._location.transfer.max_inflight_bytes // _BATCHES
        batch: list[_Tile] = []
        batch_bytes = 0
        done: list[tuple[ReadItem, torch.Tensor]] = []
        for item in plan.items:
            if item.storage_index.fqn not in self._quantised:
                continue
            target = planner.resolve_tensor(item).detach()
            for tile in self._tiles(item, target):
                batch.append(tile)
                batch_bytes += tile.values.nbytes + tile.scales.nbytes
                if batch_bytes >= limit_bytes:
                    self._compute(batch, hook)
                    batch, batch_bytes = [], 0
            done.append((item, target))
        self._compute(batch, hook)
        for item, target in done:
            planner.commit_tensor(item, target)

    def _tiles(self, item: ReadItem, target: torch.Tensor) -> Iterator[_Tile]:
        if tuple(target.shape) != tuple(item.lengths):
            raise StateDictMismatchError(f"{item.dest_index.fqn!r} has another shape than the plan")
        found = self._quantised[item.storage_index.fqn]
        whole = Box(tuple(item.storage_offsets), tuple(item.lengths))
        for box in tiles(whole, _TILE_BYTES // self._target_dtype.itemsize):
            part = target
            for dim, (low, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
                part = part.narrow(dim, low - whole.offsets[dim], size)
            values, scales = found.scheme.sources(box)
            yield _Tile(
                found=found,
                box=box,
                target=part,
                values=torch.empty(values.sizes, dtype=found.values.properties.dtype, device="cpu"),
                scales=torch.empty(scales.sizes, dtype=found.scales.properties.dtype, device="cpu"),
            )

    def _compute(self, batch: list[_Tile], hook: EventHook) -> None:
        planner = BoxPlanner()
        for tile in batch:
            values, scales = tile.found.scheme.sources(tile.box)
            planner.add(tile.found.name, tile.found.values, values, tile.values)
            planner.add(tile.found.scale_name, tile.found.scales, scales, tile.scales)
        if self._stored is not None and batch:
            super()._fill(self._stored, planner.create_local_plan(), planner, hook)
        for tile in batch:
            numbers = tile.found.scheme.dequantise(tile.values, tile.scales, tile.box, self._target_dtype)
            with filling(tile.target):
                tile.target.copy_(numbers)
