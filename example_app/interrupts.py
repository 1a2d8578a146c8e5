"""Ctrl-C, TERM and a closed terminal, all treated alike."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The demo was told to stop, by the signal that is its only argument."""


class Interrupts:
    """Has the first such signal raise `Interrupted`, and the rest do nothing: they must not disturb the cleaning up."""

    def __init__(self) -> None:
        """Take the signals over."""
        self._number: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise `Interrupted` if there was a signal.

        It is raised by the signal's handler in the first place. But Python drops what is raised in some places, such as
        a finalizer or a hook of `os.fork`, so long waits ask again.
        """
        if self._number is not None:
            raise Interrupted(self._number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        self._number = number
        self.check()
