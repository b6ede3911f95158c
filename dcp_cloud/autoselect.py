"""Making a bare ``dcp.save(state_dict, checkpoint_id="s3://…")`` use this package's classes.

torch chooses a writer or a reader for a ``checkpoint_id`` in one function, which knows its own classes only.
``install`` puts a function of ours in its place, which takes URIs and passes everything else on. It also gives the
process of ``dcp.async_save`` a ready writer, since nothing is installed in there.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from dcp_cloud.checkpoint.reader import CloudStorageReader
from dcp_cloud.checkpoint.writer import CloudStorageWriter
from dcp_cloud.config import TransferConfig
from dcp_cloud.errors import ConfigError, UnsupportedFormatError
from dcp_cloud.transfer.events import EventHook
from dcp_cloud.uri import StoreURI, has_known_scheme

logger = logging.getLogger(__name__)

_PACKAGE = "torch.distributed.checkpoint"
# Each imports the function by name, so each has to be given the other one.
_MODULES = ("_storage_utils", "state_dict_saver", "state_dict_loader")
_FUNCTION = "_storage_setup"
_EXECUTOR = ("_async_process_executor", "_ProcessBasedAsyncCheckpointExecutor", "execute_save")

_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What the classes are made with."""

    writer: Mapping[str, Any]
    reader: Mapping[str, Any]

    def make_writer(self, checkpoint_id: str) -> CloudStorageWriter:
        return CloudStorageWriter(checkpoint_id, **self.writer)

    def make_reader(self, checkpoint_id: str) -> CloudStorageReader:
        return CloudStorageReader(checkpoint_id, **self.reader)


def install(
    *,
    transfer: TransferConfig | None = None,
    overwrite: bool = True,
    on_event: EventHook | None = None,
) -> None:
    """Let ``dcp.save``, ``dcp.load`` and ``dcp.async_save`` take a URI as ``checkpoint_id``.

    Concerns this process; each rank has to call it. Local paths and explicit writers and readers are served as before.
    Calling it again changes the settings.

    Args:
        transfer: Settings of the transfers; they win over options in the URI.
        overwrite: Whether a committed checkpoint may be replaced.
        on_event: Told of progress and requests, from worker threads.

    Raises:
        UnsupportedFormatError: This version of torch chooses its writers in a way that is not known here.
    """
    shared = {"transfer": transfer, "on_event": on_event}
    options = _Options(writer={**shared, "overwrite": overwrite}, reader=shared)
    with _LOCK:
        modules = _modules()
        if not modules:
            raise UnsupportedFormatError(
                "install() does not know how this version of torch chooses a writer",
                cause=f"{_PACKAGE} has no {_FUNCTION}",
                hint="pass storage_writer=CloudStorageWriter(uri) and storage_reader=CloudStorageReader(uri)",
            )
        _restore()
        for module in modules:
            setattr(module, _FUNCTION, _choose(getattr(module, _FUNCTION), options))
        executor = _executor()
        if executor is not None:
            setattr(executor, _EXECUTOR[2], _execute(getattr(executor, _EXECUTOR[2]), options))


def uninstall() -> None:
    """Put everything back as it was before ``install``. Without one it does nothing."""
    with _LOCK:
        _restore()


def _restore() -> None:
    for module in _modules():
        setattr(module, _FUNCTION, _original(getattr(module, _FUNCTION)))
    executor = _executor()
    if executor is not None:
        setattr(executor, _EXECUTOR[2], _original(getattr(executor, _EXECUTOR[2])))


def _original(function: Callable[..., Any]) -> Callable[..., Any]:
    replaced: Callable[..., Any] = getattr(function, "_dcp_cloud_replaced", function)
    return replaced


def _modules() -> list[ModuleType]:
    modules = [importlib.import_module(f"{_PACKAGE}.{name}") for name in _MODULES]
    return [module for module in modules if hasattr(module, _FUNCTION)]


def _executor() -> type | None:
    """Find the class that hands saves to the process; torch 2.6 has none."""
    try:
        module = importlib.import_module(f"{_PACKAGE}.{_EXECUTOR[0]}")
    except ImportError:
        return None
    found: type | None = getattr(module, _EXECUTOR[1], None)
    return found if hasattr(found, _EXECUTOR[2]) else None


def _choose(original: Callable[..., Any], options: _Options) -> Callable[..., Any]:
    @functools.wraps(original)
    def storage_setup(
        storage: StorageReader | StorageWriter | None,
        checkpoint_id: str | os.PathLike[str] | None,
        reader: bool = False,  # noqa: FBT001, FBT002 - torch's signature
    ) -> Any:  # noqa: ANN401 - the reader or writer
        if storage is not None or not _is_ours(checkpoint_id):
            return _leave_to_torch(original, storage, checkpoint_id, reader=reader)
        logger.info("%s serves checkpoint_id=%s", __name__, StoreURI.parse(str(checkpoint_id)).root)
        make = options.make_reader if reader else options.make_writer
        return make(str(checkpoint_id))

    storage_setup._dcp_cloud_replaced = original  # type: ignore[attr-defined]  # where uninstall finds it
    return storage_setup


def _execute(original: Callable[..., Any], options: _Options) -> Callable[..., Any]:
    @functools.wraps(original)
    def execute_save(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature differs by version
        checkpoint_id = kwargs.get("checkpoint_id")
        if kwargs.get("storage_writer") is None and _is_ours(checkpoint_id):
            kwargs["storage_writer"] = options.make_writer(str(checkpoint_id))
        return original(self, *args, **kwargs)

    execute_save._dcp_cloud_replaced = original  # type: ignore[attr-defined]
    return execute_save


def _is_ours(checkpoint_id: object) -> bool:
    """Tell a URI of a known scheme from everything else.

    Raises:
        ConfigError: It is such a URI with a mistake in it, or a path object that was one. torch would hand the one to
            fsspec and save the other to a local directory called ``s3:``.
    """
    if isinstance(checkpoint_id, os.PathLike):
        text = os.fspath(checkpoint_id)
        if isinstance(text, str) and has_known_scheme(text.replace(":/", "://", 1)):
            StoreURI.parse(text)  # says what was lost
        return False
    if not isinstance(checkpoint_id, str) or not has_known_scheme(checkpoint_id):
        return False
    StoreURI.parse(checkpoint_id)
    return True


def _leave_to_torch(
    original: Callable[..., Any],
    storage: StorageReader | StorageWriter | None,
    checkpoint_id: str | os.PathLike[str] | None,
    *,
    reader: bool,
) -> Any:  # noqa: ANN401 - the reader or writer
    """Let torch choose, and say more than it does if it cannot."""
    is_foreign_uri = storage is None and isinstance(checkpoint_id, str) and "://" in checkpoint_id
    try:
        return original(storage, checkpoint_id, reader)
    except (ImportError, RuntimeError, ValueError) as error:
        if not is_foreign_uri:
            raise
        raise ConfigError(
            "neither dcp_cloud nor torch's fsspec classes can serve this checkpoint_id",
            key=f"{str(checkpoint_id).partition('://')[0]}://…",
            cause=error,
            hint="use s3://, gs://, az://, abfss://, https:// (Azure), file:// or memory://, or install the fsspec "
            "package of that scheme",
        ) from error
