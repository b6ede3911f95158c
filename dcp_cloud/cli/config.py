"""``dcp-cloud config show``: the settings in force, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from dcp_cloud.cli.session import JsonOption, VerboseOption, start
from dcp_cloud.cli.text import safe, size
from dcp_cloud.config import RetryConfig, TransferConfig, check_options, option_fields
from dcp_cloud.errors import redact
from dcp_cloud.settings import Setting, gather_settings, merge_settings, settings_file
from dcp_cloud.stores.registry import provider_section, provider_settings
from dcp_cloud.uri import StoreURI

_UriArgument = Annotated[
    str | None,
    typer.Argument(metavar="[URI]", help="Show what holds for this URI, the provider's settings included."),
]


def config_show(
    ctx: typer.Context, uri: _UriArgument = None, json: JsonOption = False, verbose: VerboseOption = 0
) -> None:
    """Show every setting, its value, and where it comes from.

    The first that says something is believed: an argument in the program, the options of the URI, the environment
    ([bold]DCP_CLOUD_PART_SIZE[/], [bold]DCP_CLOUD_S3_REGION[/] …), the profile of the settings file that
    [bold]DCP_CLOUD_PROFILE[/] names, the default. Where the default is a dash the provider's SDK decides, or what a
    transfer measures.

    Nothing is sent. A value that cannot be read, or a name that nobody knows, is an error that says where it stands.
    """
    session = start(ctx, json=json, verbose=verbose)
    rows = list(_rows(None if uri is None else StoreURI.parse(uri)))
    path = settings_file()
    if session.json:
        file = None if path is None else {"path": str(path), "exists": path.exists()}
        session.emit("config", {"file": file, "settings": {row.name: row.document() for row in rows}})
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("Setting", "Value", "From"):
        table.add_column(column, overflow="fold")
    for row in rows:
        origin = Text(safe(row.setting.origin), "green") if row.setting else Text("default", "dim")
        table.add_row(row.option, Text(row.text()), origin)
    session.out.print(table)
    state = "switched off" if path is None else str(path) if path.exists() else f"{path} (there is none)"
    session.out.print(Text(f"\nSettings file: {safe(state)}", "dim"), soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    value: Any
    setting: Setting | None

    @property
    def option(self) -> str:
        """As it is written in a URI: the value carries the unit."""
        return self.name.removesuffix("_bytes").removesuffix("_s")

    def text(self) -> str:
        """The value as one would write it."""
        if self.value is None:
            return "–"
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if self.name.endswith("_bytes"):
            return size(self.value)
        return f"{self.value:g} s" if self.name.endswith("_s") else safe(redact(str(self.value)))

    def document(self) -> dict[str, Any]:
        value = redact(self.value) if isinstance(self.value, str) else self.value
        value = dict(value) if isinstance(value, Mapping) else value
        return {"value": value, "from": self.setting.origin if self.setting else "default"}


def _rows(uri: StoreURI | None) -> Iterator[_Row]:
    options = {} if uri is None else uri.options
    settings_type = None if uri is None else provider_settings(uri)
    if uri is not None:
        known = [TransferConfig, RetryConfig, *([] if settings_type is None else [settings_type])]
        check_options(options, known, where=uri.root)
    transfer = merge_settings(None, TransferConfig, options)
    yield from _of_record(transfer, gather_settings(TransferConfig, options))
    yield from _of_record(transfer.retry, gather_settings(TransferConfig, options))
    if uri is None or settings_type is None:
        return
    section = provider_section(uri)
    settings = merge_settings(None, settings_type, options, section=section)
    yield from _of_record(settings, gather_settings(settings_type, options, section=section))


def _of_record(record: Any, found: Mapping[str, Setting]) -> Iterator[_Row]:  # noqa: ANN401 - any settings record
    for name in dict.fromkeys(option_fields(type(record)).values()):
        yield _Row(name=name, value=getattr(record, name), setting=found.get(name))
