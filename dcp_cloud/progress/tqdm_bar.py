"""Progress as a bar of tqdm."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from dcp_cloud.errors import MissingExtraError
from dcp_cloud.transfer.events import PhaseDone, Planned, Progressed, RequestDone, TransferEvent


class TqdmProgress:
    """Draws a bar for each save or load while it runs; in a notebook, tqdm's own widget.

    Args:
        **settings: Settings of ``tqdm.auto.tqdm``: ``desc``, ``position``, ``leave``, ``file`` …

    Raises:
        MissingExtraError: tqdm is not installed.
    """

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - tqdm's own
        try:
            import tqdm.auto  # noqa: F401, PLC0415 - not a dependency
        except ModuleNotFoundError as error:
            raise MissingExtraError("TqdmProgress needs the package 'tqdm'", hint="pip install tqdm") from error
        self._settings: Mapping[str, Any] = settings
        self._lock = threading.Lock()
        self._bar: Any = None
        self._retries = 0

    def __reduce__(self) -> tuple[object, ...]:
        return _tqdm_progress, (dict(self._settings),)

    def __call__(self, event: TransferEvent) -> None:
        """Show an event."""
        with self._lock:
            if isinstance(event, Planned):
                self._begin(event)
            elif self._bar is None:
                return
            elif isinstance(event, Progressed):
                self._bar.update(event.size_bytes)
            elif isinstance(event, RequestDone) and event.will_retry:
                self._retries += 1
                self._bar.set_postfix(retries=self._retries, refresh=False)
            elif isinstance(event, PhaseDone) and event.phase != "commit":
                if event.error is None:  # a save plans with an upper bound of what its items take
                    self._bar.total = self._bar.n
                self._bar.close()
                self._bar = None

    def _begin(self, event: Planned) -> None:
        from tqdm.auto import tqdm  # noqa: PLC0415

        if self._bar is None:
            self._retries = 0
            settings = {"desc": event.phase, "unit": "B", "unit_scale": True, "unit_divisor": 1024, **self._settings}
            self._bar = tqdm(total=0, **settings)
        self._bar.total += event.size_bytes
        self._bar.refresh()


def _tqdm_progress(settings: Mapping[str, Any]) -> TqdmProgress:
    return TqdmProgress(**settings)
