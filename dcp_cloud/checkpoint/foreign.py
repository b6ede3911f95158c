"""What other programs store where a distributed checkpoint is looked for, known by its names alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcp_cloud.errors import CheckpointNotFoundError

# The narrower pattern first. Names only: looking into the objects would cost requests for each of them.
_LAYOUTS = (
    (
        re.compile(r"\.safetensors$"),
        "a model in safetensors files",
        "load it with CloudHuggingFaceStorageReader, or make a distributed checkpoint of it: dcp-cloud convert",
    ),
    (
        re.compile(r"^checkpoint_\d+\.pt$"),
        "a checkpoint of torch's experimental checkpointers",
        "load it with CloudCheckpointReader",
    ),
    (
        re.compile(r"\.(pt|pth|bin|ckpt)$"),
        "a file of torch.save",
        "load it with CloudTorchSaveReader, or make a distributed checkpoint of it: dcp-cloud convert",
    ),
)


def explain_foreign(names: Sequence[str], *, name: str, uri: str) -> CheckpointNotFoundError | None:
    """Say which other layout is at a place.

    Args:
        names: Names of the objects directly below it.
        name: The place's own name.
        uri: The place, without options.

    Returns:
        The error to raise, or None if nothing is recognised.
    """
    is_file = not names
    for pattern, what, hint in _LAYOUTS:
        found = sorted(filter(pattern.search, [name] if is_file else names))
        if found:
            return CheckpointNotFoundError(
                "no distributed checkpoint is committed here",
                key=uri,
                cause=f"this is the name of a file: {what}" if is_file else f"{found[0]} is here: {what}",
                hint=hint,
            )
    return None
