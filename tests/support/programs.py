"""Programs that are started, harmed, and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from example_app.servers import dies_with_parent
from tests.support.eventually import eventually

PATIENCE = 90.0


class Tail:
    """The lines of a file that grows; each look reads only what is new."""

    def __init__(self, path: Path, begins_at: int = 0) -> None:
        """Begin at a byte of the file."""
        self._path = path
        self._at = begins_at
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """Return all lines so far; the last one may be half there, and is left out then."""
        with self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._at += len(whole)
        self._lines += whole.decode(errors="replace").split("\n")[:-1]
        return self._lines


class Program:
    """A program with a log, and all that it forks, in a process group of its own.

    Its main process dies with the thread that starts it.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        """Start it.

        Args:
            name: of the log, too.
            command: what to run.
            environment: all of it.
            folder: where the log goes.

        """
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = command
        self._environment = environment
        self.process = self._start()

    def __repr__(self) -> str:
        """Show what a failed test needs."""
        return f"<{self.name}: exit code {self.process.poll()}, log ends\n{self.logged()[-6000:]}>"

    def logged(self) -> str:
        """Return what it has logged since it was last started."""
        return "\n".join(self._tail.lines())

    def has_logged(self, words: str) -> bool:
        """Tell whether these words are in its log, since it was last started."""
        return words in self.logged()

    def await_line(self, words: str, times: int = 1) -> None:
        """Wait until these words were logged so many times."""

        def is_there() -> bool:
            assert self.logged().count(words) >= times, self
            return True

        eventually(is_there, timeout=PATIENCE)

    def send(self, number: int, *, group: bool = False) -> None:
        """Send a signal to its main process, or to all of it; nothing, if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def wait(self) -> int | None:
        """Return the exit code; none if it does not end, and its log says then where it is."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            return None

    def await_end(self) -> None:
        """Wait until it has ended, whatever its exit code."""
        assert self.wait() is not None, f"{self.name} has not ended: {self.logged()[-30000:]}"

    def restart(self) -> None:
        """Start it again, after its end, without what that has left."""
        self.end()
        self.process = self._start()

    def end(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self._tail = Tail(self.log, log.tell())
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
