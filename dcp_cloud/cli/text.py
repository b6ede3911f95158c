"""How numbers, times and foreign text are written."""

from __future__ import annotations

from datetime import datetime, timezone

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def safe(text: str) -> str:
    """Spell out what a terminal would obey or hide: names in a bucket are chosen by whoever writes to it.

    Args:
        text: Any text.

    Returns:
        The text with every unprintable character as an escape sequence of Python; line breaks too.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def size(nbytes: float) -> str:
    """Write a size: ``512 B``, ``1.5 KiB``, ``12 GiB``.

    Args:
        nbytes: Bytes.

    Returns:
        Three digits or fewer, and a unit.
    """
    value, unit = float(nbytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    digits = 1 if unit and value < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def count(number: int, noun: str) -> str:
    """Write a number of things: ``1 object``, ``1,024 objects``.

    Args:
        number: How many.
        noun: What, in the singular.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def moment(time: datetime | None) -> str:
    """Write a time in UTC; a dash if it is not known.

    Args:
        time: A time with time zone.
    """
    return time.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S") if time is not None else "–"


def iso(time: datetime | None) -> str | None:
    """Write a time for machines, in UTC.

    Args:
        time: A time with time zone.
    """
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if time is not None else None


def duration(seconds: float) -> str:
    """Write a duration: ``0.4 s``, ``75 s``, ``12 min``.

    Args:
        seconds: Seconds.
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def some(names: tuple[str, ...], limit: int = 3) -> str:
    """Write the first few of many names.

    Args:
        names: All of them.
        limit: How many to write.
    """
    shown = ", ".join(safe(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown
