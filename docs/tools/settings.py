"""The tables of settings, made from the records that hold them."""

from __future__ import annotations

import dataclasses
import types
import typing

from dcp_cloud.config import GIB, KIB, MIB, RetryConfig, TransferConfig
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.s3_config import S3Config
from docs.tools.text import arguments, table


def transfer() -> str:
    """Settings of every save and load."""
    return _settings(TransferConfig, "DCP_CLOUD_")


def retry() -> str:
    """Settings of repeated requests."""
    return _settings(RetryConfig, "DCP_CLOUD_")


def s3() -> str:
    """Settings of S3."""
    return _settings(S3Config, "DCP_CLOUD_S3_")


def gcs() -> str:
    """Settings of Google Cloud Storage."""
    return _settings(GCSConfig, "DCP_CLOUD_GCS_")


def azure() -> str:
    """Settings of Azure."""
    return _settings(AzureConfig, "DCP_CLOUD_AZURE_")


def _settings(record: type, prefix: str) -> str:
    meanings, hints, rows = arguments(record), typing.get_type_hints(record), []
    for field in dataclasses.fields(record):
        if field.name == "retry":
            continue
        meaning = meanings[field.name].removesuffix(" Argument only.") + _choices(hints[field.name])
        if field.metadata.get("argument_only"):
            rows.append([f"`{field.name}`", "–", f"{meaning} As an argument only."])
            continue
        option = field.name.removesuffix("_bytes").removesuffix("_s")
        names = dict.fromkeys((option, field.name, f"{prefix}{option.upper()}"))
        rows.append(["<br>".join(f"`{name}`" for name in names), _default(field), meaning])
    return table(["Option, field, variable", "Default", "Meaning"], rows)


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and field.name.endswith("_bytes"):
        for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value % unit == 0:
                return f"`{value // unit}{name}`"
    return f"`{value:g}s`" if isinstance(value, float) and field.name.endswith("_s") else f"`{value}`"


def _choices(hint: object) -> str:
    for kind in (hint, *typing.get_args(hint)) if _is_union(hint) else (hint,):
        if typing.get_origin(kind) is typing.Literal:
            return " One of " + ", ".join(f"`{choice}`" for choice in typing.get_args(kind)) + "."
    return ""


def _is_union(hint: object) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
