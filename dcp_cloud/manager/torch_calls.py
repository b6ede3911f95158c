"""torch's save, load and background save, with the options that this version of torch knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, NoReturn, TypeAlias, cast

from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.checkpoint.storage import StorageReader

from dcp_cloud.errors import ConfigError
from dcp_cloud.manager.ranks import Ranks, plain_error
from dcp_cloud.manager.writer import StepWriter

AsyncMode: TypeAlias = Literal["thread", "process"]


class TorchCalls:
    """What the manager asks of torch, for one set of ranks.

    Args:
        ranks: The ranks.
        no_dist: This process acts alone.
        async_mode: Where saves in the background run.

    Raises:
        ConfigError: This version of torch cannot do it, or it makes no sense without ranks.
    """

    def __init__(self, ranks: Ranks, *, no_dist: bool, async_mode: AsyncMode | None) -> None:
        self._ranks = ranks
        self._no_dist = no_dist
        self._async_mode = async_mode
        if no_dist:
            _require(save, "no_dist")
        if async_mode == "process":
            _require(async_save, "async_checkpointer_type")
            if not ranks.is_distributed:
                raise ConfigError(
                    "async_mode='process' needs a process group",
                    cause="torch gives the process that saves the rank of this one",
                    hint="initialise torch.distributed first, or use async_mode='thread'",
                )

    def save(self, state_dict: dict[str, Any], writer: StepWriter, planner: SavePlanner | None) -> None:
        """Save, and return when it is committed.

        Raises:
            DcpCloudError: Why it is not.
        """
        try:
            save(
                state_dict,
                storage_writer=writer,
                planner=planner,
                process_group=self._ranks.group,
                **self._options(save),
            )
        except BaseException as error:  # torch's own exception for failed ranks is one
            _raise_plain(error, f"the save to {writer.checkpoint_id}")

    def async_save(self, state_dict: dict[str, Any], writer: StepWriter, planner: SavePlanner | None) -> Future[object]:
        """Copy a state dict and save the copy in the background.

        Returns:
            torch's future.

        Raises:
            DcpCloudError: It could not even be begun.
        """
        options = self._options(async_save)
        group = self._ranks.group
        if self._async_mode == "process":
            options["async_checkpointer_type"] = state_dict_saver.AsyncCheckpointerType.PROCESS
        else:
            group = self._ranks.background_group()
        try:
            started = async_save(
                state_dict,
                checkpoint_id=writer.checkpoint_id,  # makes torch reset the writer, which waits for its turn then
                storage_writer=writer,
                planner=planner,
                process_group=group,
                **options,
            )
        except BaseException as error:
            _raise_plain(error, f"the save to {writer.checkpoint_id}")
        # With a stager that works in the background torch gives two futures; the manager passes none.
        return cast("Future[object]", started)

    def load(self, state_dict: dict[str, Any], reader: StorageReader, planner: LoadPlanner) -> None:
        """Fill a state dict.

        Raises:
            DcpCloudError: Why it is not filled.
        """
        try:
            load(
                state_dict,
                storage_reader=reader,
                planner=planner,
                process_group=self._ranks.group,
                **self._options(load),
            )
        except BaseException as error:
            _raise_plain(error, "the load")

    def _options(self, function: Callable[..., Any]) -> dict[str, Any]:
        if not self._no_dist:
            return {}
        if "no_dist" in inspect.signature(function).parameters:
            return {"no_dist": True}
        if not self._ranks.is_initialised:
            return {}  # torch finds out by itself
        _require(function, "no_dist")
        return {}


def _require(function: Callable[..., Any], name: str) -> None:
    if name not in inspect.signature(function).parameters:
        raise ConfigError(
            f"this version of torch cannot do it: {function.__name__} does not take {name}", hint="update torch"
        )


def _raise_plain(error: BaseException, what: str) -> NoReturn:
    plain = plain_error(error, what)
    if plain is error:
        raise error
    raise plain from error
