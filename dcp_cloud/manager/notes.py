"""What the manager writes into ``.metadata`` beside torch's own fields: the step and the metrics of a checkpoint.

They travel in one extra attribute of ``storage_meta``, which torch's readers ignore, so they are committed with the
checkpoint, by the same write, and move with it when it is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from dcp_cloud.errors import ConfigError

_ATTRIBUTE = "dcp_cloud_manager"
_VERSION = 1
_MAX_METRICS = 1000
_MAX_NAME_CHARS = 200


def check_metrics(metrics: Mapping[str, SupportsFloat] | None) -> dict[str, float]:
    """Turn the metrics that a user passed into plain numbers.

    Args:
        metrics: Name to anything that is a number, a tensor of one element included.

    Returns:
        Name to number.

    Raises:
        ConfigError: A name or a value is none, or there are too many.
    """
    found: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        if type(name) is not str or not 0 < len(name) <= _MAX_NAME_CHARS:
            raise ConfigError(f"a metric cannot be called {name!r}", hint=f"use up to {_MAX_NAME_CHARS} characters")
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: a tensor of many elements
            raise ConfigError(f"the metric {name!r} is no number", cause=error, hint="pass one number each") from error
    if len(found) > _MAX_METRICS:
        raise ConfigError(f"{len(found)} metrics are too many for one checkpoint", hint=f"keep to {_MAX_METRICS}")
    return found


def attach_notes(meta: StorageMeta, *, step: int, metrics: Mapping[str, float]) -> None:
    """Write step and metrics into what ``.metadata`` says of the save.

    Args:
        meta: torch's record.
        step: The step.
        metrics: Checked metrics.
    """
    setattr(meta, _ATTRIBUTE, (_VERSION, step, dict(metrics)))


def read_metrics(metadata: Metadata) -> dict[str, float]:
    """Read the metrics of a checkpoint, trusting nothing.

    Args:
        metadata: What ``.metadata`` holds, whoever wrote it.

    Returns:
        Name to number; what is none is left out.
    """
    found = getattr(getattr(metadata, "storage_meta", None), _ATTRIBUTE, None)
    if not isinstance(found, tuple) or len(found) != 3 or found[0] != _VERSION or not isinstance(found[2], dict):
        return {}
    return {
        name: value
        for name, value in list(found[2].items())[:_MAX_METRICS]
        if type(name) is str and len(name) <= _MAX_NAME_CHARS and type(value) is float
    }
