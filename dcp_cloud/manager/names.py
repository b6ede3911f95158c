"""Where a step lies below the manager's URI: one directory each, named by a template."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dcp_cloud.errors import ConfigError

DEFAULT_TEMPLATE = "step-{step}"

# A template has one field for the step, which may be padded: {step} or {step:08d}.
_FIELD = re.compile(r"\{step(?::0\d{1,2}d)?\}")
# No more digits than any counter of steps has; a bucket can hold any name.
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class StepNames:
    """Makes the name of a step's directory, and reads the step out of it.

    Args:
        template: ``step-{step}``, ``{step:08d}`` …: one segment with one ``{step}`` in it.

    Raises:
        ConfigError: The template names no step, or more than a segment.
    """

    template: str = DEFAULT_TEMPLATE
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fields = _FIELD.findall(self.template)
        rest = _FIELD.sub("", self.template)
        # A digit beside the field would make the step ambiguous; a leading dot or underscores mean files of torch.
        if (
            len(fields) != 1
            or re.search(r"[{}/\\?#\x00-\x1f]|\d\{|\}\d", rest)
            or re.search(r"\d\{|\}\d", self.template)
        ):
            raise ConfigError(
                f"name={self.template!r} is no template for the directories of steps",
                cause="it has to be one segment of a path with one {step} in it, and no digit next to that",
                hint="use something like 'step-{step}' or 'step_{step:08d}'",
            )
        before, after = _FIELD.split(self.template)
        pattern = re.compile(f"{re.escape(before)}(\\d{{1,{_MAX_DIGITS}}}){re.escape(after)}", re.ASCII)
        object.__setattr__(self, "_pattern", pattern)

    def name_of(self, step: int) -> str:
        """Name the directory of a step.

        Args:
            step: The step, at least 0.

        Returns:
            One path segment.

        Raises:
            ConfigError: It is no step.
        """
        if type(step) is not int or not 0 <= step < 10**_MAX_DIGITS:
            raise ConfigError(f"step={step!r} is no step", hint="pass a whole number, at least 0")
        return self.template.format(step=step)

    def step_in(self, name: str) -> int | None:
        """Read the step out of a directory's name.

        Args:
            name: One path segment.

        Returns:
            The step, or None if the directory of no step is called so.
        """
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        step = int(match[1])
        return step if self.template.format(step=step) == name else None
