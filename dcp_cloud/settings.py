"""Settings from outside the program: environment variables, and a file with named profiles.

Whoever says something first, in this order, is believed: an argument, the URI's options, the environment, the file, and
last the default, which for most of a provider's settings is the SDK's own chain.

* ``DCP_CLOUD_PART_SIZE=32MiB`` sets an option for every store, ``DCP_CLOUD_S3_REGION=eu-west-1`` one of S3's. An empty
  variable sets nothing.
* The file is ``DCP_CLOUD_CONFIG``, else ``$XDG_CONFIG_HOME/dcp-cloud/config.toml`` (``~/.config/…``). Its tables are
  profiles, of which ``DCP_CLOUD_PROFILE`` names the one to use; without it that is ``default``::

      [default]
      part_size = "32MiB"
      [default.s3]
      region = "eu-west-1"

Credentials have no place here: no option takes any.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcp_cloud.config import ConfigT, RetryConfig, TransferConfig, merge_options, option_fields
from dcp_cloud.errors import ConfigError, UnknownOptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PREFIX = "DCP_CLOUD_"
_FILE, _PROFILE = f"{_PREFIX}CONFIG", f"{_PREFIX}PROFILE"
# Names of the project's own tests and test servers; DCP_CLOUD_TEST_… besides.
_NOT_SETTINGS = frozenset({_FILE, _PROFILE, f"{_PREFIX}REQUIRE_SERVERS", f"{_PREFIX}AZURITE"})
_DEFAULT_PROFILE = "default"
SECTIONS = ("s3", "gcs", "azure")
"""What separates the providers' settings: the second word of a variable, the inner table of a profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value in force that is not a default.

    Args:
        name: The field it sets.
        text: Its value, as text.
        origin: Where it comes from, for people.
    """

    name: str
    text: str
    origin: str


def gather_settings(
    config_type: type[Any], options: Mapping[str, str], *, section: str | None = None
) -> dict[str, Setting]:
    """Look up what the URI, the environment and the file say.

    Args:
        config_type: The settings record to fill.
        options: Options of the URI.
        section: The provider whose settings these are, one of ``SECTIONS``; None for those of every transfer.

    Returns:
        Field name to setting, for the fields that somebody has set.

    Raises:
        ConfigError: The file cannot be read, or has another form.
        UnknownOptionError: A variable or a line of the file names no setting.
    """
    fields = dict(option_fields(config_type))
    if config_type is TransferConfig:
        fields.update(option_fields(RetryConfig))
    found: dict[str, Setting] = {}
    for layer in (_of_file(fields, section), _of_environment(fields, section), _of_uri(fields, options)):
        found.update({setting.name: setting for setting in layer})
    return found


def merge_settings(
    argument: ConfigT | None, config_type: type[ConfigT], options: Mapping[str, str], *, section: str | None = None
) -> ConfigT:
    """Put an argument over the URI's options over the environment over the file over defaults.

    Args:
        argument: Settings that the caller passed, or None.
        config_type: The settings dataclass.
        options: Options of the URI; those that belong to other records are passed over.
        section: As for :func:`gather_settings`.

    Returns:
        The settings in force.

    Raises:
        ConfigError: A value cannot be read or is out of range; the message says where it comes from.
    """
    found = gather_settings(config_type, options, section=section)
    try:
        return merge_options(argument, config_type, {name: setting.text for name, setting in found.items()})
    except ConfigError:
        for setting in found.values():
            _check(config_type, setting)
        raise


def settings_file() -> Path | None:
    """Find the file with profiles.

    Returns:
        Its path, whether it exists or not; None if ``DCP_CLOUD_CONFIG`` is empty, which switches it off.
    """
    named = os.environ.get(_FILE)
    if named is not None:
        return Path(named) if named else None
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(home) / "dcp-cloud" / "config.toml"


def _check(config_type: type[Any], setting: Setting) -> None:
    try:
        merge_options(None, config_type, {setting.name: setting.text})
    except ConfigError as error:
        if setting.origin == "URI":
            raise
        raise ConfigError(error.message, cause=f"it comes from {setting.origin}", hint=error.hint) from None


def _of_uri(fields: Mapping[str, str], options: Mapping[str, str]) -> Iterable[Setting]:
    for option, text in options.items():
        if option in fields:
            yield Setting(name=fields[option], text=text, origin="URI")


def _of_environment(fields: Mapping[str, str], section: str | None) -> Iterable[Setting]:
    prefix = _PREFIX if section is None else f"{_PREFIX}{section.upper()}_"
    others = () if section is not None else tuple(f"{_PREFIX}{name.upper()}_" for name in (*SECTIONS, "test"))
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(prefix) or variable.startswith(others) or variable in _NOT_SETTINGS:
            continue
        if not text:  # how a shell or a job's template leaves a variable out
            continue
        option = variable.removeprefix(prefix).lower()
        if option not in fields:
            names = [f"{prefix}{name.upper()}" for name in fields]
            raise _unknown(f"the environment variable {variable} is no setting", variable, names)
        yield Setting(name=fields[option], text=text, origin=f"environment: {variable}")


def _of_file(fields: Mapping[str, str], section: str | None) -> Iterable[Setting]:
    path = settings_file()
    if path is None:
        return
    table, where = _profile(path)
    if section is not None:
        table, where = _table(table.get(section, {}), f"{where}.{section}", path), f"{where}.{section}"
    for option, value in table.items():
        if section is None and option in SECTIONS:
            continue
        if option not in fields:
            names = [*fields, *(SECTIONS if section is None else ())]
            raise _unknown(f"{option!r} in [{where}] of {path} is no setting", option, names)
        if not isinstance(value, (str, int, float)):
            raise ConfigError(f"{option} in [{where}] of {path} is no single value", hint="write a string or a number")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        yield Setting(name=fields[option], text=text, origin=f"file: {path} [{where}]")


def _profile(path: Path) -> tuple[Mapping[str, Any], str]:
    """Read the profile in use, and tell its name."""
    chosen = os.environ.get(_PROFILE)
    name = chosen or _DEFAULT_PROFILE
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if chosen or os.environ.get(_FILE):
            asker = f"{_PROFILE}={chosen}" if chosen else _FILE
            hint = f"write it, or unset {asker.partition('=')[0]}"
            raise ConfigError(f"there is no file {path}", cause=f"{asker} asks for it", hint=hint) from None
        return {}, name
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}", cause=str(error), hint="it must be a TOML file in UTF-8") from error
    if chosen and chosen not in profiles:
        raise _unknown(f"{path} has no profile {chosen!r}", chosen, profiles)
    return _table(profiles.get(name, {}), name, path), name


def _table(value: object, where: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where!r} in {path} is no table", hint=f"begin it with a line [{where}]")
    return value


def _unknown(message: str, given: str, valid: Collection[str]) -> UnknownOptionError:
    near = difflib.get_close_matches(given, valid, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(valid))}"
    return UnknownOptionError(message, hint=hint)
