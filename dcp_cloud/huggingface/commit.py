"""The commit of a model in safetensors files: what it replaces, and the one write that makes it visible."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dcp_cloud.checkpoint.commit import Before, commit
from dcp_cloud.errors import CheckpointExistsError, DcpCloudError
from dcp_cloud.huggingface.naming import FILE_IDS, INDEX_KEY, SHARDS_KEY, FileRecord, is_commit_name, is_own_name
from dcp_cloud.transfer.retrying import RetryingStore

logger = logging.getLogger(__name__)


def is_model_key(key: str) -> bool:
    """Tell whether an object is a commit or a file of a model that a save may replace."""
    return is_commit_name(key) or is_own_name(key)


def look_for_model(
    store: RetryingStore, *, overwrite: bool, is_part: Callable[[str], bool] = is_model_key
) -> tuple[str, ...]:
    """List what a save or a consolidation would replace, and refuse if it may not.

    Args:
        store: Store rooted at the model's place.
        overwrite: Whether a model may be replaced.
        is_part: Tells which objects would be replaced.

    Returns:
        Keys of the commits and files that are there.

    Raises:
        CheckpointExistsError: A model is here and ``overwrite=False``.
    """
    keys = tuple(meta.key for meta in store.list() if is_part(meta.key))
    if keys and not overwrite:
        raise CheckpointExistsError(
            "a model is already stored here and overwrite=False",
            key=store.uri,
            cause=f"{keys[0]} is there",
            hint="choose another prefix, or pass overwrite=True",
        )
    return keys


def withdraw(store: RetryingStore, existing: Iterable[str]) -> None:
    """Take away the commit of the model that is about to be replaced: its files keep their names, so while they are
    replaced one by one nothing may vouch for them.

    Args:
        store: Store rooted at the model's place.
        existing: What is there.
    """  # noqa: D205
    store.delete([key for key in existing if is_commit_name(key)])


def publish(store: RetryingStore, key: str, document: Mapping[str, Any], *, overwrite: bool) -> None:
    """Make a model visible, unless another job has done so since its commit was withdrawn.

    Args:
        store: Store rooted at the model's place.
        key: Key of the commit.
        document: What it says.
        overwrite: Whether a model may be replaced, for the message.

    Raises:
        CommitConflictError: Another job has stored a model here meanwhile.
        CheckpointExistsError: The same, with ``overwrite=False``.
    """
    commit(store, json.dumps(document, indent=2).encode(), Before(key=key, etag=None), overwrite=overwrite)


def delete_leftovers(store: RetryingStore, existing: Iterable[str], current: Iterable[str]) -> None:
    """Delete files of the replaced model that the new one has not overwritten; a failure is logged.

    Args:
        store: Store rooted at the model's place.
        existing: What was there.
        current: Files of the new model.
    """
    kept = set(current)
    try:
        store.delete([key for key in existing if is_own_name(key) and key not in kept])
    except DcpCloudError as error:
        logger.warning("files of the replaced model remain; the new one does not name them: %s", error)


def index_document(placed: Mapping[str, FileRecord]) -> dict[str, Any]:
    """Make ``model.safetensors.index.json``.

    Args:
        placed: Tensor to where it was stored.

    Returns:
        The document that Hugging Face's libraries read, with the files' ids beside the total size.
    """
    metadata: dict[str, Any] = {"total_size": sum(record.size_bytes for record in placed.values())}
    file_ids = _file_ids(placed.values())
    return {
        "metadata": {**metadata, FILE_IDS: file_ids} if file_ids else metadata,
        "weight_map": {name: placed[name].name for name in sorted(placed)},
    }


def shards_document(records: Iterable[FileRecord]) -> dict[str, Any]:
    """Make the list of the files of a sharded save.

    Args:
        records: Where each shard was stored.
    """
    return {FILE_IDS: _file_ids(records)}


def commit_key(*, is_sharded: bool) -> str:
    """Name the commit of a save."""
    return SHARDS_KEY if is_sharded else INDEX_KEY


def _file_ids(records: Iterable[FileRecord]) -> dict[str, str]:
    return dict(sorted({(record.name, record.file_id) for record in records if record.file_id}))
