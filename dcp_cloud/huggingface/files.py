"""Which files a model consists of, and what their headers say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dcp_cloud.config import KIB, MIB, TransferConfig
from dcp_cloud.errors import (
    BucketNotFoundError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    IncompleteCheckpointError,
    NotFoundError,
    PreconditionError,
)
from dcp_cloud.format.layout import find_key_fault
from dcp_cloud.format.safetensors import SUFFIX, Header, header_bytes, load_json, parse_header
from dcp_cloud.huggingface.naming import FILE_ID, FILE_IDS, INDEX_KEY, SHARDS_KEY, SINGLE_KEY, file_number
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.transfer.download import Downloader, Target
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.transfer.retry import Retrier
from dcp_cloud.transfer.retrying import RetryingStore
from dcp_cloud.transfer.workers import WorkerPool

# An entry takes about 100 bytes: this is more than half a million tensors.
_MAX_INDEX_BYTES = 64 * MIB
# About a thousand tensors; longer headers take a second request.
_FIRST_BYTES = 128 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model.

    Args:
        names: Their keys.
        weight_map: Tensor to file, where an index says so.
        file_ids: What the commit calls the files, where one was made by this package.
        is_committed: Whether a commit named them; otherwise they are just what lies there.
    """

    names: tuple[str, ...]
    weight_map: Mapping[str, str] | None = None
    file_ids: Mapping[str, str] = field(default_factory=dict)
    is_committed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A file whose header was read.

    Args:
        header: Its header.
        etag: The version of the file that it is the header of.
    """

    header: Header
    etag: str


def find_files(store: RetryingStore, *, only: str | None = None) -> ModelFiles:
    """Find out which files a model consists of: its index, the list of its shards, or what lies there.

    Args:
        store: Store rooted at the model's place.
        only: The one file, if the URI named one.

    Returns:
        The files.

    Raises:
        CheckpointNotFoundError: There are none.
        IncompleteCheckpointError: Their names say that some are missing.
        CorruptCheckpointError: The index is damaged or names files elsewhere.
    """
    if only is not None:
        return ModelFiles(names=(only,), is_committed=True)
    index = _read_json(store, INDEX_KEY)
    if index is not None:
        weight_map = _texts(index.get("weight_map"), INDEX_KEY, "weight_map")
        metadata = index.get("metadata")
        file_ids = metadata.get(FILE_IDS) if isinstance(metadata, dict) else None
        return ModelFiles(
            names=_confined(weight_map.values(), INDEX_KEY),
            weight_map=weight_map,
            file_ids=_texts(file_ids or {}, INDEX_KEY, FILE_IDS),
            is_committed=True,
        )
    shards = _read_json(store, SHARDS_KEY)
    if shards is not None:
        file_ids = _texts(shards.get(FILE_IDS), SHARDS_KEY, FILE_IDS)
        return ModelFiles(names=_confined(file_ids, SHARDS_KEY), file_ids=file_ids, is_committed=True)
    return _list_files(store)


def open_files(
    store: ObjectStore, files: ModelFiles, transfer: TransferConfig, *, hook: EventHook
) -> dict[str, OpenFile]:
    """Read the headers of all files, many at once.

    Args:
        store: Store rooted at the model's place.
        files: The files.
        transfer: Concurrency and retries.
        hook: Told of requests.

    Returns:
        Key to file.

    Raises:
        IncompleteCheckpointError: A file is missing, or is of another save than the commit.
        CorruptCheckpointError: A header is damaged.
    """
    found: dict[str, OpenFile] = {}
    threads = max(1, min(transfer.max_concurrency, len(files.names)))
    with WorkerPool(threads, queue_limit=threads, name="dcp_cloud-headers") as pool:
        retrying = RetryingStore(store, Retrier(config=transfer.retry, hook=hook, cancelled=pool.cancelled))
        for name in files.names:
            pool.submit(lambda name=name: found.update({name: _open(retrying, name, transfer, hook)}))  # type: ignore[misc]
        pool.join()
    for name, file in found.items():
        _check_identity(store.uri, name, file, files)
    return {name: found[name] for name in files.names}


def check_unchanged(
    store: ObjectStore,
    opened: Mapping[str, OpenFile],
    names: Iterable[str],
    transfer: TransferConfig,
    *,
    hook: EventHook,
) -> None:
    """See that files are still those whose headers were read: their names do not tell one save from the next.

    Args:
        store: Store rooted at the model's place.
        opened: All files.
        names: Those to look at.
        transfer: Concurrency and retries.
        hook: Told of requests.

    Raises:
        IncompleteCheckpointError: A file was replaced or deleted meanwhile.
    """
    wanted = sorted(set(names))
    threads = max(1, min(transfer.max_concurrency, len(wanted)))
    with WorkerPool(threads, queue_limit=threads, name="dcp_cloud-recheck") as pool:
        retrying = RetryingStore(store, Retrier(config=transfer.retry, hook=hook, cancelled=pool.cancelled))

        def check(name: str) -> None:
            if retrying.head(name).etag != opened[name].etag:
                raise _replaced(store.uri, name, "its version changed during the load")

        for name in wanted:
            pool.submit(lambda name=name: check(name))  # type: ignore[misc]
        pool.join()


def _open(store: RetryingStore, name: str, transfer: TransferConfig, hook: EventHook) -> OpenFile:
    key = f"{store.uri}/{name}"
    try:
        first = store.get(name, max_bytes=_FIRST_BYTES)
        size_bytes, etag = first.meta.size_bytes, first.meta.etag
        head = bytearray(first.data)
        stop = header_bytes(first.data, size_bytes=size_bytes, key=key)
        if stop > len(head):
            rest = memoryview(bytearray(stop - len(head)))
            target = Target(key=name, start=len(head), nbytes=len(rest), memory=rest)
            Downloader(store.store, transfer, hook=hook).run([target], if_match=etag)
            head += rest
    except BucketNotFoundError:
        raise
    except NotFoundError as error:
        raise IncompleteCheckpointError(
            "a file of the model is missing", key=key, cause=error, hint="store it anew, or save the model again"
        ) from error
    except PreconditionError as error:
        raise _replaced(store.uri, name, error) from error
    return OpenFile(header=parse_header(memoryview(head)[:stop], size_bytes=size_bytes, key=key), etag=etag)


def _check_identity(root: str, name: str, file: OpenFile, files: ModelFiles) -> None:
    found, expected = file.header.metadata.get(FILE_ID), files.file_ids.get(name)
    if expected is not None and found != expected:
        raise _replaced(root, name, "the commit names another save's file of this name")
    if found is not None and not files.is_committed:
        raise IncompleteCheckpointError(
            "the save of this model did not finish",
            key=f"{root}/{name}",
            cause=f"there is neither {INDEX_KEY} nor {SHARDS_KEY}, which a save writes last",
            hint="use another checkpoint, or save again; a single file can be loaded by its own URI",
        )


def _replaced(root: str, name: str, cause: str | BaseException) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        "the files of this model are of different saves",
        key=f"{root}/{name}",
        cause=cause,
        hint="if a save is running here, wait for it and load again; give each save a prefix of its own",
    )


def _read_json(store: RetryingStore, name: str) -> dict[str, object] | None:
    key = f"{store.uri}/{name}"
    try:
        found = store.get(name, max_bytes=_MAX_INDEX_BYTES)
    except BucketNotFoundError:
        raise
    except NotFoundError:
        return None
    if found.meta.size_bytes > _MAX_INDEX_BYTES:
        raise CorruptCheckpointError(f"{name} is longer than any index needs to be", key=key)
    return load_json(found.data, key=key)


def _texts(value: object, key: str, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptCheckpointError(f"{key} has no sound {name}", key=key, hint="store it anew from its source")
    return value


def _confined(names: Iterable[str], key: str) -> tuple[str, ...]:
    """Accept files below the model's place only: the bucket's content must not choose what else is read."""
    found = tuple(sorted(set(names)))
    for name in found:
        fault = None if name.endswith(SUFFIX) else f"it is no {SUFFIX} file"
        fault = fault or find_key_fault(name)
        if fault:
            raise CorruptCheckpointError(
                f"{key} names what is no file of this model",
                key=ascii(name[:200]),
                cause=fault,
                hint="see who wrote it",
            )
    if not found:
        raise CorruptCheckpointError(f"{key} names no file", key=key)
    return found


def _list_files(store: RetryingStore) -> ModelFiles:
    names = sorted(meta.key for meta in store.list() if "/" not in meta.key and meta.key.endswith(SUFFIX))
    if not names:
        raise CheckpointNotFoundError(
            "there is no model in safetensors files here",
            key=store.uri,
            cause=f"neither {INDEX_KEY} nor any *{SUFFIX}",
            hint="check the URI; checkpoints in torch's own format are read by CloudStorageReader",
        )
    if SINGLE_KEY in names:  # what Hugging Face's libraries look for first; others are not part of it
        return ModelFiles(names=(SINGLE_KEY,))
    numbered = [number for name in names if (number := file_number(name)) is not None]
    missing = {(i, count) for _, count in numbered for i in range(1, min(count, 10**5) + 1)} - set(numbered)
    if missing:
        raise IncompleteCheckpointError(
            f"{len(missing)} files of this model are missing",
            key=store.uri,
            cause="the first one is number {} of {}".format(*min(missing)),
            hint="store them anew, or save the model again",
        )
    return ModelFiles(names=tuple(names))
