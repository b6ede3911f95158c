"""What the settings of several providers have in common to be checked. No SDK is needed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dcp_cloud.errors import ConfigError

# What can stand in an HTTP header field: metadata and names of keys and classes travel in them.
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


def check_above_zero(config: object, names: Iterable[str]) -> None:
    """Refuse numbers that are not positive.

    Args:
        config: The settings.
        names: Fields to look at.

    Raises:
        ConfigError: One of them is zero or less.
    """
    for name in names:
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name}={getattr(config, name)!r} is out of range", hint="it must be above 0")


def check_choices(config: object, choices: Mapping[str, Collection[str | None]]) -> None:
    """Refuse words that are none of those that a field knows.

    Args:
        config: The settings.
        choices: The words by field, and None where a field may be left out.

    Raises:
        ConfigError: A field has another one.
    """
    for name, known in choices.items():
        if (value := getattr(config, name)) not in known:
            raise ConfigError(f"{name}={value!r} is not known", hint=f"use one of {', '.join(filter(None, known))}")


def check_header_values(config: object, names: Iterable[str]) -> None:
    """Refuse text that would break out of its header field; None is left alone.

    Args:
        config: The settings.
        names: Fields to look at.

    Raises:
        ConfigError: One of them is not plain ASCII.
    """
    for name in names:
        if not is_header_value(getattr(config, name) or ""):
            raise ConfigError(f"{name} is not plain ASCII", hint="copy it as the provider shows it")


def is_header_value(text: str) -> bool:
    """Tell whether a header field can hold a text."""
    return _HEADER_VALUE.fullmatch(text) is not None


def own_texts(config: object, names: Iterable[str]) -> None:
    """Put a plain dictionary in place of each mapping, since others may not pickle.

    Args:
        config: Settings that are being made.
        names: Fields with texts by name.

    Raises:
        ConfigError: Something in them is no text.
    """
    for name in names:
        texts: dict[Any, Any] = dict(getattr(config, name))
        for key, value in texts.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                # Not shown: nobody knows what it is.
                raise ConfigError(f"{name} holds something that is no text", hint="write str(…) around the value")
        object.__setattr__(config, name, texts)
