"""Merging the files of a sharded save into files of whole tensors, on one store or between two."""

from __future__ import annotations

from collections.abc import Mapping

from torch.distributed.checkpoint.metadata import Metadata

from dcp_cloud.checkpoint.location import Location, StoreLike, URILike
from dcp_cloud.checkpoint.summary import SummaryCollector, TransferSummary
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError
from dcp_cloud.format.layout import from_storage_info
from dcp_cloud.huggingface.export import FileSplit, export_model
from dcp_cloud.huggingface.naming import file_number, is_own_name
from dcp_cloud.huggingface.reader import CloudHuggingFaceStorageReader
from dcp_cloud.transfer.events import EventHook, ignore_event, only_requests


def consolidate_safetensors(
    source: URILike,
    target: URILike,
    *,
    fqn_to_index_mapping: Mapping[str, int] | None = None,
    max_file_bytes: int | None = None,
    overwrite: bool = True,
    transfer: TransferConfig | None = None,
    source_store: StoreLike | None = None,
    target_store: StoreLike | None = None,
    on_event: EventHook | None = None,
) -> TransferSummary:
    """Merge sharded safetensors files, of this package's writer or of torch's, into files of whole tensors.

    Ranges are read, joined and sent in parts at the same time; no tensor and no file is ever whole in memory.

    Args:
        source: Where the shards are.
        target: Where the model shall be: any store, also the same place.
        fqn_to_index_mapping: Tensor to number of its file, from 1 on; wins over ``max_file_bytes``.
        max_file_bytes: Begin another file when one would get longer; None for one file.
        overwrite: Whether a model at ``target`` may be replaced.
        transfer: Part length, concurrency, memory, retries; wins over the URIs' options.
        source_store: A store rooted at the source to use instead of opening one, or a function that makes one.
        target_store: The same for the target.
        on_event: Told of progress and requests, from worker threads.

    Returns:
        What was done, in numbers.

    Raises:
        CheckpointNotFoundError: There are no safetensors files at the source.
        IncompleteCheckpointError: Shards are missing.
        CorruptCheckpointError: A file is damaged.
        CheckpointExistsError: A model is at the target and ``overwrite=False``.
        StoreError: A store refused.
    """
    hook = on_event or ignore_event
    reader = CloudHuggingFaceStorageReader(source, transfer=transfer, store=source_store, on_event=only_requests(hook))
    place = Location(target, transfer=transfer, store=target_store, config=None, schemes=None)
    return merge_shards(
        reader,
        place,
        split=FileSplit(numbers=fqn_to_index_mapping, max_file_bytes=max_file_bytes),
        overwrite=overwrite,
        hook=hook,
    )


def merge_shards(
    reader: CloudHuggingFaceStorageReader, place: Location, *, split: FileSplit, overwrite: bool, hook: EventHook
) -> TransferSummary:
    """Merge shards into files of whole tensors.

    Args:
        reader: Reads the shards.
        place: Where the model shall be.
        split: How its tensors are spread over files.
        overwrite: Whether a model that is there may be replaced.
        hook: Told of progress and requests.

    Returns:
        What was done, in numbers.

    Raises:
        ConfigError: The source's own files would be overwritten while they are read.
    """
    collector = SummaryCollector("copy", place.uri.root, hook)
    metadata = reader.read_metadata()
    is_same_place = place.is_at(reader._location)
    if is_same_place and any(map(_is_whole, _files(metadata))):
        raise ConfigError(
            "the model's files would be overwritten while they are read",
            key=place.uri.root,
            hint="choose another place for the consolidated model",
        )
    error: BaseException | None = None
    try:
        export_model(
            reader,
            metadata,
            place.store,
            names={fqn: fqn for fqn in metadata.state_dict_metadata},
            split=split,
            overwrite=overwrite,
            transfer=place.transfer,
            hook=collector,
            beside_shards=is_same_place,
        )
    except BaseException as caught:
        error = caught
        raise
    finally:
        summary = collector.end(error)
    return summary


def _files(metadata: Metadata) -> set[str]:
    return {from_storage_info(info).key for info in (metadata.storage_data or {}).values()}


def _is_whole(name: str) -> bool:
    return file_number(name) is not None or not is_own_name(name)
