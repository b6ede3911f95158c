"""Storing the tensors of any checkpoint as files of whole tensors, streamed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.checkpoint.stream import TensorStream
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import CheckpointError, CheckpointExistsError, CommitConflictError, ConfigError
from dcp_cloud.format.safetensors import TensorSpec, emit_header, file_order
from dcp_cloud.huggingface.commit import (
    delete_leftovers,
    index_document,
    is_model_key,
    look_for_model,
    publish,
    withdraw,
)
from dcp_cloud.huggingface.naming import FILE_ID, FORMAT_METADATA, INDEX_KEY, FileRecord, file_number, model_file
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.events import EventHook, Planned
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.span import Span
from dcp_cloud.transfer.upload import Uploader


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSplit:
    """How tensors are spread over files.

    Args:
        numbers: Tensor to number of its file, from 1 on; wins over the length.
        max_file_bytes: Longest file, as far as one tensor alone is not longer; None for one file.
        single: Name of the one file to write, without an index; wins over all else.
    """

    numbers: Mapping[str, int] | None = None
    max_file_bytes: int | None = None
    single: str | None = None

    def files(self, specs: Sequence[TensorSpec]) -> dict[str, list[TensorSpec]]:
        """Spread tensors over files.

        Args:
            specs: All tensors.

        Returns:
            File to its tensors, in the order in which they are to be written.

        Raises:
            ConfigError: A tensor has no number.
        """
        if self.single is not None:
            return {self.single: file_order(specs)}
        numbers = self.numbers if self.numbers is not None else _fill_files(specs, self.max_file_bytes)
        homeless = [spec.name for spec in specs if spec.name not in numbers]
        if homeless:
            raise ConfigError(
                f"fqn_to_index_mapping has no file for {len(homeless)} tensors",
                cause=", ".join(map(repr, homeless[:3])),
                hint="give every tensor a number from 1 on",
            )
        count = max(numbers.values(), default=1)
        found: dict[str, list[TensorSpec]] = {}
        for number in sorted({numbers[spec.name] for spec in specs}):
            own = [spec for spec in specs if numbers[spec.name] == number]
            found[model_file(number, count)] = file_order(own)
        return found


def export_model(
    reader: CloudStorageReader,
    metadata: Metadata,
    store: ObjectStore,
    *,
    names: Mapping[str, str],
    split: FileSplit,
    overwrite: bool,
    transfer: TransferConfig,
    hook: EventHook,
    beside_shards: bool = False,
    crc32: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, FileRecord]:
    """Store tensors of a checkpoint as safetensors files, and then the index that makes them visible.

    Args:
        reader: Reads the checkpoint.
        metadata: What its ``read_metadata`` returned.
        store: Store rooted at the model's place.
        names: The tensors to store and the names that they get.
        split: How they are spread over files.
        overwrite: Whether a model that is there may be replaced.
        transfer: Part length, concurrency, memory, retries.
        hook: Told of requests and progress.
        beside_shards: Whether the shards that are read lie in the same place and stay there.
        crc32: Checksums of whole tensors, where the source has such.

    Returns:
        Where each tensor was stored, by its new name.

    Raises:
        CheckpointExistsError: A model is there and ``overwrite=False``.
        DcpCloudError: Something could not be read or stored; then nothing of it is left.
    """
    retrying = RetryingStore(store, Retrier(config=transfer.retry, hook=hook))
    sources = {names[fqn]: fqn for fqn in names}
    files = split.files([_spec(metadata, fqn, name) for fqn, name in names.items()])
    existing: tuple[str, ...] = ()
    if split.single is None:
        existing = look_for_model(retrying, overwrite=overwrite, is_part=_is_whole if beside_shards else is_model_key)
        withdraw(retrying, existing)
    total = sum(spec.nbytes for specs in files.values() for spec in specs)
    hook(Planned(phase="copy", size_bytes=total, items=len(names)))
    placed: dict[str, FileRecord] = {}
    conflict: CheckpointError | None = None
    with Uploader(store, transfer, hook=hook, phase="copy") as uploader:
        stream = TensorStream(reader, metadata, uploader, hook=hook, crc32=crc32)
        for key, specs in files.items():
            placed |= _append_file(key, specs, sources, stream, uploader, has_index=split.single is None)
        stream.flush()
        uploader.finish()
        if split.single is None:
            try:
                publish(retrying, INDEX_KEY, index_document(placed), overwrite=overwrite)
            except (CommitConflictError, CheckpointExistsError) as error:
                conflict = error  # raised below: these files may be the other job's by now, so they stay
    if conflict is not None:
        raise conflict
    if split.single is None:
        delete_leftovers(retrying, existing, files)
    return placed


def _append_file(
    key: str,
    specs: Sequence[TensorSpec],
    sources: Mapping[str, str],
    stream: TensorStream,
    uploader: Uploader,
    *,
    has_index: bool,
) -> dict[str, FileRecord]:
    file_id = uuid.uuid4().hex if has_index else ""
    header = emit_header(specs, {**FORMAT_METADATA, **({FILE_ID: file_id} if has_index else {})})
    size_bytes = len(header) + sum(spec.nbytes for spec in specs)
    if size_bytes > uploader.store.limits.max_object_bytes:
        raise ConfigError(
            f"{key} would be longer than the store's objects may be",
            key=uploader.store.uri,
            cause=f"{size_bytes} bytes",
            hint="spread the tensors over more files",
        )
    upload = uploader.begin(key, expected_bytes=size_bytes, replaces=not has_index)
    stream.append(upload, Span.of(header))
    for spec in specs:
        stream.append_tensor(upload, sources[spec.name])
    stream.end(upload)
    return {spec.name: FileRecord(name=key, file_id=file_id, size_bytes=spec.nbytes) for spec in specs}


def _spec(metadata: Metadata, fqn: str, name: str) -> TensorSpec:
    entry = metadata.state_dict_metadata[fqn]
    assert isinstance(entry, TensorStorageMetadata)  # noqa: S101 - the caller chose tensors
    return TensorSpec(name=name, dtype=entry.properties.dtype, shape=tuple(entry.size))


def _fill_files(specs: Iterable[TensorSpec], max_file_bytes: int | None) -> dict[str, int]:
    numbers: dict[str, int] = {}
    number, filled = 1, 0
    for spec in sorted(specs, key=lambda one: one.name):
        if max_file_bytes is not None and filled and filled + spec.nbytes > max_file_bytes:
            number, filled = number + 1, 0
        numbers[spec.name] = number
        filled += spec.nbytes
    return numbers


def _is_whole(key: str) -> bool:
    return key == INDEX_KEY or file_number(key) is not None
