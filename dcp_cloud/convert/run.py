"""Converting a checkpoint: from any of its forms to another, from any store to any store, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from dcp_cloud.checkpoint.location import Location, StoreLike, URILike, part_file
from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.checkpoint.stream import TensorStream
from dcp_cloud.checkpoint.summary import SummaryCollector
from dcp_cloud.checkpoint.writer import CloudStorageWriter
from dcp_cloud.config import GIB, TransferConfig
from dcp_cloud.convert.dcp_target import ItemStream, NewTensor, new_metadata
from dcp_cloud.convert.forms import FILE_SUFFIXES, CheckpointForm, form_of_source, form_of_target, is_place
from dcp_cloud.convert.torch_file import write_torch_file
from dcp_cloud.convert.torch_reader import CloudTorchSaveReader
from dcp_cloud.convert.values import nested, read_values
from dcp_cloud.errors import CheckpointExistsError, ConfigError, NotFoundError, UnsupportedFormatError
from dcp_cloud.format.layout import from_storage_info
from dcp_cloud.huggingface.export import FileSplit, export_model
from dcp_cloud.huggingface.reader import CloudHuggingFaceStorageReader
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.transfer.events import EventHook, Planned, ignore_event, only_requests
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.upload import Uploader

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 5 * GIB
"""Longest object that is made unless asked for otherwise; what ``save_pretrained`` of Hugging Face does, too."""
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionSummary:
    """What a conversion did.

    Args:
        source: What was read, without options.
        target: What was written, without options.
        source_form: Form of the source.
        target_form: Form of the target.
        tensors: Number of tensors.
        values: Number of values that are no tensors.
        size_bytes: Bytes written.
        duration_s: Wall time, seconds.
    """

    source: str
    target: str
    source_form: CheckpointForm
    target_form: CheckpointForm
    tensors: int
    values: int
    size_bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A checkpoint to be converted: names of the target to names of the source."""

    reader: CloudStorageReader
    metadata: Metadata
    tensors: Mapping[str, NewTensor]
    values: Mapping[str, str]
    paths: Mapping[str, tuple[str | int, ...]]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where the converted checkpoint goes."""

    uri: URILike
    place: Location
    name: str | None
    store: StoreLike | None
    overwrite: bool
    max_shard_bytes: int

    @property
    def root(self) -> str:
        return self.place.uri.child(self.name).root if self.name else self.place.uri.root


def convert_checkpoint(
    source: URILike,
    target: URILike,
    *,
    to: CheckpointForm | None = None,
    only: str = "",
    allow_unsafe_pickle: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = True,
    transfer: TransferConfig | None = None,
    source_store: StoreLike | None = None,
    target_store: StoreLike | None = None,
    on_event: EventHook | None = None,
) -> ConversionSummary:
    """Convert a checkpoint between torch's distributed form, a file of ``torch.save`` and safetensors files.

    Tensors are read by ranges, checked, and sent in parts at the same time; none is ever whole in memory.

    Args:
        source: A checkpoint's place, or the URI of a file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.safetensors``).
        target: Where to: a place, or a file with one of these endings.
        to: The form to make: ``dcp``, ``torch`` or ``safetensors``. Without it the target's name tells, or what is
            left: safetensors from a distributed checkpoint, a distributed checkpoint from anything else.
        only: Convert only names that begin with this, and take it off, with the dot behind it: ``model.``.
        allow_unsafe_pickle: Open pickles that name types which are not known to be harmless; that runs their code.
        max_shard_bytes: Begin another object when one would get longer; a tensor is never parted.
        overwrite: Whether a checkpoint at the target may be replaced.
        transfer: Part length, concurrency, memory, retries; wins over the URIs' options.
        source_store: A store rooted at the source's place to use instead of opening one, or a function that makes one.
        target_store: The same for the target.
        on_event: Told of progress and requests, from worker threads.

    Returns:
        What was done.

    Raises:
        CheckpointNotFoundError: There is no checkpoint at the source, or none of its names begin with ``only``.
        UnsupportedFormatError: The target's form cannot hold what is in the source.
        UnsafeCheckpointError: The source names types that may not be loaded.
        CorruptCheckpointError: Stored bytes are not what was saved.
        CheckpointExistsError: There is a checkpoint at the target and ``overwrite=False``.
        StoreError: A store refused. Then nothing of the target is left.
    """
    hook = on_event or ignore_event
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes={max_shard_bytes!r} is out of range", hint="it must be at least 1")
    place, name = part_file(source, FILE_SUFFIXES)
    origin = Location(place, transfer=transfer, store=source_store, config=None, schemes=None)
    retrying = RetryingStore(origin.store, Retrier(config=origin.transfer.retry, hook=hook))
    if name is not None and is_place(name, retrying):
        store = PrefixStore(origin.store, name)
        origin = Location(place.child(name), transfer=transfer, store=store, config=None, schemes=None)
        retrying = RetryingStore(store, Retrier(config=origin.transfer.retry, hook=hook))
        name = None
    source_form = form_of_source(name, origin, retrying)
    target_form = form_of_target(target, source_form, to)
    target_place, target_name = part_file(target, FILE_SUFFIXES)
    goal = _Target(
        uri=target,
        place=Location(target_place, transfer=transfer, store=target_store, config=None, schemes=None),
        name=target_name,
        store=target_store,
        overwrite=overwrite,
        max_shard_bytes=max_shard_bytes,
    )
    if name == target_name and origin.is_at(goal.place):
        raise ConfigError("source and target are the same", key=goal.root, hint="choose another target")
    quiet = only_requests(hook)
    reader = _open(source, source_form, transfer, origin, allow_unsafe_pickle=allow_unsafe_pickle, hook=quiet)
    found = _look(reader, only)
    if source_form == target_form == "safetensors" and origin.is_at(goal.place):
        _refuse_own_files(found, goal)
    collector = SummaryCollector("copy", goal.root, hook)
    error: BaseException | None = None
    try:
        _WRITERS[target_form](found, goal, collector)
    except BaseException as caught:
        error = caught
        raise
    finally:
        summary = collector.end(error)
    logger.info("converted %d tensors from %s to %s", len(found.tensors), reader.checkpoint_id, goal.root)
    return ConversionSummary(
        source=reader.checkpoint_id,
        target=goal.root,
        source_form=source_form,
        target_form=target_form,
        tensors=len(found.tensors),
        values=len(found.values),
        size_bytes=summary.size_bytes,
        duration_s=summary.duration_s,
    )


def _open(
    uri: URILike,
    form: CheckpointForm,
    transfer: TransferConfig | None,
    origin: Location,
    *,
    allow_unsafe_pickle: bool,
    hook: EventHook,
) -> CloudStorageReader:
    if form == "torch":
        return CloudTorchSaveReader(
            uri, allow_unsafe_pickle=allow_unsafe_pickle, transfer=transfer, store=origin.store, on_event=hook
        )
    if form == "safetensors":
        return CloudHuggingFaceStorageReader(uri, transfer=transfer, store=origin.store, on_event=hook)
    return CloudStorageReader(
        uri, transfer=transfer, store=origin.store, unsafe_values=allow_unsafe_pickle, on_event=hook
    )


def _look(reader: CloudStorageReader, only: str) -> _Source:
    """Read what there is, and choose what is wanted."""
    metadata = reader.read_metadata()
    tensors: dict[str, NewTensor] = {}
    values: dict[str, str] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    planned: Any = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
    for name, entry in metadata.state_dict_metadata.items():
        new = name[len(only) :].removeprefix(".") if only else name
        if not name.startswith(only) or not new:
            continue
        if isinstance(entry, TensorStorageMetadata):
            tensors[new] = NewTensor(source=name, dtype=entry.properties.dtype, shape=tuple(entry.size))
        else:
            values[new] = name
        paths[new] = _path(planned.get(name), new, only)
    if not tensors and not values:
        raise UnsupportedFormatError(
            "there is nothing to convert",
            key=reader.checkpoint_id,
            cause=f"no name begins with {only!r}" if only else "the checkpoint is empty",
            hint="'dcp-cloud inspect' shows the names",
        )
    return _Source(reader=reader, metadata=metadata, tensors=tensors, values=values, paths=paths)


def _path(planned: object, name: str, only: str) -> tuple[str | int, ...]:
    """Give the path of a name in the nested state, without what is taken off."""
    if not isinstance(planned, tuple) or not planned or not all(isinstance(part, (str, int)) for part in planned):
        return (name,)
    if not only:
        return planned
    for depth in range(1, len(planned)):
        if ".".join(map(str, planned[:depth])) == only.removesuffix("."):
            return planned[depth:]
    return (name,)


def _to_safetensors(source: _Source, target: _Target, hook: EventHook) -> None:
    if source.values:
        names = sorted(source.values)
        raise UnsupportedFormatError(
            f"safetensors files hold tensors only; {len(names)} other values cannot be stored",
            key=source.reader.checkpoint_id,
            cause=", ".join(map(repr, names[:_SHOWN])) + (" …" if len(names) > _SHOWN else ""),
            hint="convert the model alone, for example with only='model.' (--only model.)",
        )
    _refuse_existing(target)
    export_model(
        source.reader,
        source.metadata,
        target.place.store,
        names={tensor.source: name for name, tensor in source.tensors.items()},
        split=FileSplit(max_file_bytes=target.max_shard_bytes, single=target.name),
        overwrite=target.overwrite,
        transfer=target.place.transfer,
        hook=hook,
        crc32=_crc32(source),
    )


def _to_torch(source: _Source, target: _Target, hook: EventHook) -> None:
    assert target.name is not None  # noqa: S101 - the form was derived from the name
    _refuse_existing(target)
    values = read_values(source.reader, source.metadata, list(source.values.values()), hook=hook)
    known = {name: values[fqn] for name, fqn in source.values.items()}
    hook(Planned(phase="copy", size_bytes=source.nbytes, items=len(source.tensors) + len(known)))
    names = {tensor.source: name for name, tensor in source.tensors.items()}

    def nest(stand_ins: Mapping[str, Any]) -> dict[str, Any]:
        flat = {names[fqn]: tensor for fqn, tensor in stand_ins.items()} | known
        return nested(flat, source.paths, where=source.reader.checkpoint_id)

    with Uploader(target.place.store, target.place.transfer, hook=hook, phase="copy") as uploader:
        stream = TensorStream(source.reader, source.metadata, uploader, hook=hook, crc32=_crc32(source))
        write_torch_file(
            stream,
            uploader,
            target.name,
            tensors={tensor.source: (tensor.dtype, tensor.shape) for tensor in source.tensors.values()},
            nest=nest,
            # What torch writes around a tensor is shorter; values are small.
            expected_bytes=source.nbytes + 4096 * (len(source.tensors) + len(known) + 1),
        )
        uploader.finish()


def _to_dcp(source: _Source, target: _Target, hook: EventHook) -> None:
    values = read_values(source.reader, source.metadata, list(source.values.values()), hook=hook)
    known = {name: values[fqn] for name, fqn in source.values.items()}
    writer = CloudStorageWriter(
        target.uri, overwrite=target.overwrite, transfer=target.place.transfer, store=target.place.store, on_event=hook
    )
    save_id = getattr(writer.storage_meta(), "save_id", "")
    writer.set_up_storage_writer(True, rank=0, use_collectives=True)
    hook(Planned(phase="copy", size_bytes=source.nbytes, items=len(source.tensors) + len(known)))
    with Uploader(target.place.store, target.place.transfer, hook=hook, phase="copy") as uploader:
        stream = TensorStream(source.reader, source.metadata, uploader, hook=hook, crc32=_crc32(source))
        items = ItemStream(stream, uploader, save_id=save_id, max_object_bytes=target.max_shard_bytes)
        items.write(source.tensors, known)
        uploader.finish()
    writer.finish(new_metadata(source.tensors, known, source.paths), [items.results()])


def _refuse_own_files(source: _Source, target: _Target) -> None:
    """A model takes the place of all safetensors files beside it, and a file that of its namesake."""
    own = {from_storage_info(record).key for record in (source.metadata.storage_data or {}).values()}
    if target.name is None or target.name in own:
        raise ConfigError(
            "the source's own files would be replaced by the target's",
            key=target.root,
            hint="choose another place for the target",
        )


def _refuse_existing(target: _Target) -> None:
    if target.overwrite or target.name is None:
        return
    try:
        RetryingStore(target.place.store, Retrier(config=target.place.transfer.retry)).head(target.name)
    except NotFoundError:
        return
    raise CheckpointExistsError(
        "there is a file already and overwrite=False", key=target.root, hint="choose another name"
    )


def _crc32(source: _Source) -> Mapping[str, int]:
    reader = source.reader
    return reader.tensor_crc32 if isinstance(reader, CloudTorchSaveReader) else {}


_WRITERS = {"dcp": _to_dcp, "torch": _to_torch, "safetensors": _to_safetensors}
