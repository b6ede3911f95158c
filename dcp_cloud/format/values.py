"""Looking into the values that are no tensors before a load planner opens them.

torch's default planner opens them with ``torch.load(weights_only=False)``, which runs whatever code their pickle holds.
So the opening is rehearsed first, with a rule in place of each name; what does not pass is not handed to the planner.
"""

from __future__ import annotations

from collections.abc import Callable

from dcp_cloud.errors import CorruptCheckpointError, UnsafeCheckpointError
from dcp_cloud.format.items import require_stored
from dcp_cloud.format.rehearsal import RefusedError, is_archive, rehearse
from dcp_cloud.format.rules import SPARSE


def check_value(
    data: bytes, *, key: str, label: str, allow_global: Callable[[str, str], object | None] | None = None
) -> None:
    """See that opening a value without restriction runs no code of its writer, and costs no more than its length.

    Args:
        data: The value as ``torch.save`` wrote it.
        key: Key of the object, for messages.
        label: The value's name, for messages.
        allow_global: Allows further names: gets module and name, returns None to refuse.

    Raises:
        UnsafeCheckpointError: It names something that is not known to be harmless, or uses a name in a harmful way.
        CorruptCheckpointError: It is damaged.
    """
    if is_archive(data):
        require_stored(data, key=key)
    try:
        # Nobody checks the indices of a sparse tensor when the planner opens it.
        rehearse(data, allow_global=allow_global, refused={SPARSE})
    except RefusedError as error:
        raise UnsafeCheckpointError(
            f"the value {label} would do more than describe itself when it is opened",
            key=key,
            cause=str(error),
            hint="if you trust the checkpoint, allow the types with allow_global or torch.serialization."
            "add_safe_globals, or everything with unsafe_values=True",
        ) from error
    except Exception as error:  # whatever the unpickler trips over in foreign bytes
        raise CorruptCheckpointError(
            f"the value {label} is damaged",
            key=key,
            cause=error,
            hint="load another checkpoint; 'dcp-cloud verify' lists everything that is damaged",
        ) from error
