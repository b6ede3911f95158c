"""What ``torch.distributed.checkpoint.format_utils`` has for local files, for URIs and in bounded memory."""

from __future__ import annotations

from dcp_cloud.checkpoint.location import URILike
from dcp_cloud.config import TransferConfig
from dcp_cloud.convert.run import ConversionSummary, convert_checkpoint
from dcp_cloud.transfer.events import EventHook


def dcp_to_torch_save(
    dcp_uri: URILike,
    torch_uri: URILike,
    *,
    allow_unsafe_pickle: bool = False,
    overwrite: bool = True,
    transfer: TransferConfig | None = None,
    on_event: EventHook | None = None,
) -> ConversionSummary:
    """Convert a distributed checkpoint into one file that ``torch.load`` opens.

    Args:
        dcp_uri: The checkpoint.
        torch_uri: The file, which ends in ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``.
        allow_unsafe_pickle: Open values that name types which are not known to be harmless; that runs their code.
        overwrite: Whether the file may be replaced.
        transfer: Part length, concurrency, memory, retries; wins over the URIs' options.
        on_event: Told of progress and requests, from worker threads.

    Returns:
        What was done.

    Raises:
        DcpCloudError: As :func:`~dcp_cloud.convert_checkpoint`.
    """
    return convert_checkpoint(
        dcp_uri,
        torch_uri,
        to="torch",
        allow_unsafe_pickle=allow_unsafe_pickle,
        overwrite=overwrite,
        transfer=transfer,
        on_event=on_event,
    )


def torch_save_to_dcp(
    torch_uri: URILike,
    dcp_uri: URILike,
    *,
    allow_unsafe_pickle: bool = False,
    overwrite: bool = True,
    transfer: TransferConfig | None = None,
    on_event: EventHook | None = None,
) -> ConversionSummary:
    """Convert a file of ``torch.save`` into a distributed checkpoint, which loads on any number of ranks.

    Args:
        torch_uri: The file, which ends in ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``.
        dcp_uri: Where the checkpoint goes.
        allow_unsafe_pickle: Open a pickle that names types which are not known to be harmless; that runs their code.
        overwrite: Whether a checkpoint that is there may be replaced.
        transfer: Part length, concurrency, memory, retries; wins over the URIs' options.
        on_event: Told of progress and requests, from worker threads.

    Returns:
        What was done.

    Raises:
        DcpCloudError: As :func:`~dcp_cloud.convert_checkpoint`.
    """
    return convert_checkpoint(
        torch_uri,
        dcp_uri,
        to="dcp",
        allow_unsafe_pickle=allow_unsafe_pickle,
        overwrite=overwrite,
        transfer=transfer,
        on_event=on_event,
    )
