"""torch's experimental checkpointers with this package's writer and reader, and factories for them.

torch's asynchronous checkpointer writes in a process that dies of the first error, hands the arguments of hooks to a
stager that does not know them, raises the same old error at every later save, and drops a save that waits when it is
closed. The classes here do none of that.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.multiprocessing.spawn import ProcessExitedException

from dcp_cloud.errors import CheckpointError, DcpCloudError, describe
from dcp_cloud.experimental.reader import CloudCheckpointReader
from dcp_cloud.experimental.upstream import (
    AsyncCheckpointer,
    CheckpointerConfig,
    CheckpointProcess,
    CheckpointProcessConfig,
    CheckpointReader,
    CheckpointStagerConfig,
    DefaultStager,
    RankInfo,
    SyncCheckpointer,
    WriterHook,
    create_barrier_from_config,
    wrap_future,
)
from dcp_cloud.experimental.writer import CloudCheckpointWriter, agree_on_run_id

logger = logging.getLogger(__name__)

# The process imports torch and an SDK before it answers; torch's own default of 30 s is for torch alone.
_INIT_TIMEOUT_S = 300
# The parent reads the outcome after torch's own answer: it has to fit into a pipe that nobody reads (64 KiB on Linux).
_MAX_OUTCOME_BYTES = 16 * 1024
_MAX_TEXT = 2000


class CloudSyncCheckpointer(SyncCheckpointer):
    """torch's ``SyncCheckpointer``, which waits for a writer's future, and whose ``close`` closes the reader too."""

    def save(self, path: str, state_dict: dict[str, Any], **kwargs: Any) -> None:  # noqa: ANN401
        """Save.

        Args:
            path: URI of the checkpoint.
            state_dict: What to save.
            **kwargs: For the writer and its hook.
        """
        pending: Any = self._writer.write(path, state_dict, **kwargs)
        if isinstance(pending, Future):
            pending.result()  # torch would take a pending future for a success

    def close(self) -> None:
        """Release the connections of the writer and the reader."""
        super().close()
        _close(self._reader)


class CloudCheckpointProcess(CheckpointProcess):
    """torch's ``CheckpointProcess``, which survives a failed save and tells errors by their type.

    Takes the arguments of torch's class.
    """

    def __init__(
        self,
        rank_info: RankInfo,
        config: CheckpointProcessConfig,
        subprocess_init_fn: Callable[..., None],
        subprocess_init_args: tuple[Any, ...],
        checkpoint_writer_init_fn: Callable[..., Any],
        checkpoint_writer_init_args: dict[str, Any],
    ) -> None:
        # torch's own pipe says what the process would die of; this one says what came of each write.
        self._outcomes, told = multiprocessing.get_context("spawn").Pipe(duplex=False)
        super().__init__(
            rank_info,
            config,
            subprocess_init_fn,
            subprocess_init_args,
            partial(_make_telling_writer, checkpoint_writer_init_fn, told),  # type: ignore[arg-type]  # writes, as one
            checkpoint_writer_init_args,
        )
        self.process_creation_future.add_done_callback(lambda _: told.close())

    def _write(self, state_dict: Any, path: str, **kwargs: Any) -> None:  # noqa: ANN401 - torch's signature
        try:
            super()._write(state_dict, path, **kwargs)
            error = self._outcomes.recv()
        except (RuntimeError, EOFError) as lost:  # what torch's class makes of a broken pipe
            raise CheckpointError(
                "the process that saves has ended, so this save was not made",
                key=path,
                cause=lost,
                hint="look for what killed it (memory?), and make a new checkpointer",
            ) from lost
        if error is not None:
            raise error

    def close(self) -> None:
        """End the process, waiting for the saves that were begun."""
        self._executor.shutdown(wait=True)  # torch's class would cancel what has not begun
        try:
            super().close()
        except ProcessExitedException as lost:  # the save under way has told, if there was one
            logger.warning("the process that saves had ended before it was closed: %s", lost)
        finally:
            self._outcomes.close()


class _TellingWriter:
    """Writes, and tells what came of it instead of raising, which would end the process.

    Args:
        writer: The writer.
        outcomes: Where to tell.
    """

    def __init__(self, writer: Any, outcomes: Connection) -> None:  # noqa: ANN401 - whatever the user's function makes
        self._writer = writer
        self._outcomes = outcomes

    def write(self, path: str, state_dict: dict[str, Any], **kwargs: Any) -> None:  # noqa: ANN401
        error: BaseException | None = None
        try:
            pending = self._writer.write(path=path, state_dict=state_dict, **kwargs)
            if isinstance(pending, Future):
                pending.result()  # torch would take a pending future for a success
        except (Exception, CheckpointException) as caught:  # torch's is no Exception
            error = _portable(caught)
            logger.error("the save to %s failed: %s", path, describe(error))
        self._outcomes.send(error)


def _make_telling_writer(make: Callable[..., Any], outcomes: Connection, **kwargs: Any) -> _TellingWriter:  # noqa: ANN401
    return _TellingWriter(make(**kwargs), outcomes)


def _portable(error: BaseException) -> BaseException:
    """Give an error that can be sent: an exception of the user's hook can be of any length and have any constructor."""
    try:
        pickled = pickle.dumps(error)
        if len(pickled) <= _MAX_OUTCOME_BYTES and isinstance(pickle.loads(pickled), type(error)):  # noqa: S301 - our own
            return error
        text = describe(error)
    except Exception:  # code of the error itself
        text = type(error).__name__
    return DcpCloudError("the save failed", cause=text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} …")


class _Outcome(Future[None]):
    """A future that knows whether anybody asked for its result."""

    was_heard = False

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()  # nobody can call off what another process does

    def result(self, timeout: float | None = None) -> None:
        error = self.exception(timeout)
        if error is not None:
            raise error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        error = super().exception(timeout)
        self.was_heard = True
        return error

    def raise_unheard(self) -> None:
        """Wait, and raise the error if nobody has asked for it."""
        error = super().exception()
        if error is not None and not self.was_heard:
            self.was_heard = True
            raise error


class CloudAsyncCheckpointer(AsyncCheckpointer):
    """torch's ``AsyncCheckpointer``, which gets over a failed save and passes arguments to hooks.

    Takes the arguments of torch's class.
    """

    def save(self, path: str, state_dict: dict[str, Any], **kwargs: Any) -> tuple[Future[Any], Future[Any]]:  # noqa: ANN401
        """Begin to save; waits for the save before.

        Args:
            path: URI of the checkpoint.
            state_dict: What to save; it may be changed when the first future is done.
            **kwargs: For the writer and its hook, not for the stager.

        Returns:
            Two futures: the state dict was copied; the checkpoint is committed.

        Raises:
            Exception: The error of the save before, if nobody asked its future for it. It is raised once.
        """
        previous, self._write_future = self._write_future, None
        if isinstance(previous, _Outcome):
            previous.raise_unheard()
        staged = self._checkpoint_stager.stage(state_dict=state_dict)
        outcome = _Outcome()
        pending = self._checkpoint_process.write(staged, path, **kwargs)
        assert pending is not None  # noqa: S101 - torch's class always gives one
        pending.add_done_callback(partial(_pass_on, outcome))
        self._write_future = outcome
        return wrap_future(staged), outcome

    def close(self) -> None:
        """Wait for the save under way, then end the process and release connections.

        Raises:
            Exception: The error of the last save, if nobody asked its future for it. Everything is closed then, too.
        """
        last, self._write_future = self._write_future, None
        if isinstance(last, _Outcome):
            wait([last])  # what was staged must stay until it is written, and closing the stager drops it
        super().close()
        _close(self._reader)
        if isinstance(last, _Outcome):
            last.raise_unheard()


def _close(reader: CheckpointReader) -> None:
    if isinstance(reader, CloudCheckpointReader):
        reader.close()


def _pass_on(outcome: _Outcome, done: Future[None]) -> None:
    if done.cancelled():
        error: BaseException | None = CheckpointError(
            "the save was not made", cause="the process that saves was closed before", hint="save again"
        )
    else:
        error = done.exception()
    if error is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(None)


def make_cloud_sync_checkpointer(
    config: CheckpointerConfig | None = None,
    rank_info: RankInfo | None = None,
    commit_hook: WriterHook | None = None,
    *,
    run_id: str | None = None,
    **settings: Any,  # noqa: ANN401 - of the writer and the reader
) -> CloudSyncCheckpointer:
    """Make a checkpointer that saves before it returns; torch's own factory takes no other writer.

    Args:
        config: torch's settings.
        rank_info: This rank; by default that of the default process group.
        commit_hook: Told before and after each commit.
        run_id: See :class:`~dcp_cloud.CloudCheckpointWriter`.
        **settings: ``transfer``, ``store``, ``store_config``, ``on_event`` for both, ``safe_globals`` for the reader.

    Returns:
        The checkpointer: ``save(path, state_dict)``, ``load(path, state_dict=None, strict=False)``, ``close()``.
    """
    config, rank_info = config or CheckpointerConfig(), rank_info or _default_rank_info()
    reader = CloudCheckpointReader(rank_info, **settings)
    settings.pop("safe_globals", None)
    writer = CloudCheckpointWriter(
        config.writer_config,
        rank_info,
        create_barrier_from_config(config.barrier_config),
        commit_hook,
        run_id=run_id,
        **settings,
    )
    return CloudSyncCheckpointer(writer=writer, reader=reader)


def make_cloud_async_checkpointer(
    config: CheckpointerConfig | None = None,
    rank_info: RankInfo | None = None,
    commit_hook: WriterHook | None = None,
    *,
    run_id: str | None = None,
    subprocess_init_fn: Callable[..., None] | None = None,
    subprocess_init_args: tuple[Any, ...] = (),
    **settings: Any,  # noqa: ANN401 - of the writer and the reader
) -> CloudAsyncCheckpointer:
    """Make a checkpointer that copies the state dict and saves it in a process of its own.

    Args:
        config: torch's settings. Without it, no setting needs an accelerator that is not there, and the process may
            take 300 s to begin.
        rank_info: This rank; by default that of the default process group.
        commit_hook: Told before and after each commit, in the other process; it has to be picklable.
        run_id: See :class:`~dcp_cloud.CloudCheckpointWriter`.
        subprocess_init_fn: Called first in the other process; a function of a module.
        subprocess_init_args: Its arguments.
        **settings: As for :func:`make_cloud_sync_checkpointer`; all but ``safe_globals`` have to be picklable.

    Returns:
        The checkpointer: ``save(path, state_dict)`` gives two futures; ``load`` and ``close`` wait.
    """
    config, rank_info = config or _default_config(), rank_info or _default_rank_info()
    reader = CloudCheckpointReader(rank_info, **settings)
    settings.pop("safe_globals", None)
    process = CloudCheckpointProcess(
        rank_info,
        config.process_config,
        subprocess_init_fn or _do_nothing,
        subprocess_init_args,
        _make_writer,
        {
            "config": config,
            "commit_hook": commit_hook,
            "run_id": run_id or agree_on_run_id(rank_info),
            "settings": settings,
        },
    )
    return CloudAsyncCheckpointer(
        checkpoint_stager=DefaultStager(config.staging_config), checkpoint_process=process, reader=reader
    )


def _make_writer(
    *,
    rank_info: RankInfo,
    config: CheckpointerConfig,
    commit_hook: WriterHook | None,
    run_id: str,
    settings: dict[str, Any],
) -> CloudCheckpointWriter:
    barrier = create_barrier_from_config(config.barrier_config)
    return CloudCheckpointWriter(config.writer_config, rank_info, barrier, commit_hook, run_id=run_id, **settings)


def _do_nothing(*_: Any) -> None:  # noqa: ANN401
    pass


def _default_rank_info() -> RankInfo:
    if dist.is_available() and dist.is_initialized():
        return RankInfo(global_rank=dist.get_rank(), global_world_size=dist.get_world_size())
    return RankInfo(global_rank=0, global_world_size=1)


def _default_config() -> CheckpointerConfig:
    process = CheckpointProcessConfig(subprocess_init_timeout_secs=_INIT_TIMEOUT_S)
    if torch.accelerator.is_available():
        return CheckpointerConfig(process_config=process)
    staging = replace(
        CheckpointStagerConfig(), use_pinned_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    return CheckpointerConfig(process_config=process, staging_config=staging)
