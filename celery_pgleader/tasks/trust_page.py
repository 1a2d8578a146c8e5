"""A page of memory in which a worker tells the processes of its pool which term it leads, and for how long.

The other way round, each leader-only run holds a shared lock on the page's file for as long as it lasts. So the worker
knows of every run, also of one that Celery has lost sight of, as it does when the connection to the broker is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

VARIABLE = "PGLEADER_TRUST_PAGE"
# Memory, where there is such a file system.
SHARED = Path("/dev/shm")  # noqa: S108 - the file's name cannot be foretold
PREFIX = "pgleader-trust-"
# The term, and the end of trust on the system's monotonic clock, which all processes of a host share; twice the latter,
# so that a reader can tell that it came while the page was being written.
PAGE = struct.Struct("dqd")
# Behind it, the term whose turn it is to run tasks, and whether none may begin any more.
TURN = struct.Struct("q")
SHUT = PAGE.size + TURN.size
# How many runs have begun; counted by those who begin them, for metrics.
COUNT = struct.Struct("q")
COUNT_AT = SHUT + 8
SIZE = COUNT_AT + COUNT.size


class TrustPage:
    """The writer's side. Inherited by children through a fork, found by its name after a spawn."""

    def __init__(self) -> None:
        """Make the page."""
        folder = SHARED if os.access(SHARED, os.W_OK) else Path(tempfile.gettempdir())
        _sweep(folder)
        self._fd, name = tempfile.mkstemp(prefix=f"{_prefix()}{os.getpid()}-", dir=folder)
        os.ftruncate(self._fd, SIZE)
        self._memory = mmap.mmap(self._fd, SIZE)
        # Not at the end of the process, when a thread may still look at it.
        weakref.finalize(self, os.close, self._fd).atexit = False
        self._path = Path(name)
        os.environ[VARIABLE] = name

    def write(self, term: int, trusted_until: float) -> None:
        """Tell which term is led, and until when to trust it; 0 and 0 for none."""
        self._memory[: PAGE.size] = PAGE.pack(0.0, term, 0.0)
        self._memory[: PAGE.size] = PAGE.pack(trusted_until, term, trusted_until)

    def give_turn(self, term: int) -> None:
        """Have runs begin while that term is led."""
        self._memory[PAGE.size : SHUT] = TURN.pack(term)

    def shut(self) -> None:
        """Have no run begin any more; those that have begun may still trust the term. Safe in a signal handler."""
        self._memory[SHUT] = 1

    def has_runs(self) -> bool:
        """Tell whether a run is going on. Once that is over after `shut`, none will be. Safe in a signal handler."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        return False

    def runs_begun(self) -> int:
        """Return how many runs have begun."""
        begun: int = COUNT.unpack(self._memory[COUNT_AT:SIZE])[0]
        return begun

    def close(self) -> None:
        """Tell that no term is led, and leave nothing behind."""
        self.write(0, 0.0)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class TrustReader:
    """The reader's side, in whichever process a task runs."""

    def __init__(self) -> None:
        """Prepare; the page is looked for when it is first needed."""
        self._opened: tuple[str, mmap.mmap] | None = None
        self._of_worker: tuple[tuple[int, str | None], Callable[[], bool]] | None = None
        self._counting = threading.Lock()

    def also_ask(self, trusted: Callable[[], bool]) -> None:
        """For the page of now, in this process though not in its children, also ask who knows before the page does."""
        self._of_worker = _whose(), trusted

    def term(self) -> int | None:
        """Return the term that may be trusted now, or none."""
        memory = self._page()
        if memory is None:
            return None
        if self._of_worker is not None and self._of_worker[0] == _whose() and not self._of_worker[1]():
            return None
        first, term, last = PAGE.unpack(memory[: PAGE.size])
        return term if first == last and time.monotonic() < first else None

    def is_shut(self) -> bool:
        """Tell whether no run may begin any more, since the worker is about to end."""
        memory = self._page()
        return memory is not None and bool(memory[SHUT])

    def may_begin(self) -> bool:
        """Tell whether a run may begin now."""
        memory, term = self._page(), self.term()
        if memory is None or term is None or self.is_shut():
            return False
        return bool(TURN.unpack(memory[PAGE.size : SHUT])[0] == term)

    def begin(self) -> BegunRun | None:
        """Begin a run, or return none if it may not begin."""
        try:
            file = Path(os.environ[VARIABLE]).open("r+b", buffering=0)  # noqa: SIM115 - it is open for as long as the run lasts
        except (KeyError, OSError):
            return None
        # Nobody holds it against a run for longer than `has_runs` takes.
        fcntl.flock(file, fcntl.LOCK_SH)
        # In this order: whoever shuts the page looks for runs after that.
        term = self.term()
        if term is None or not self.may_begin():
            file.close()
            return None
        self._count(file)
        return BegunRun(term, file)

    def _count(self, file: BinaryIO) -> None:
        # Against other processes by a lock of the file, which is another than that of runs, against threads by ours. No
        # run is left out for the sake of a number.
        with self._counting, contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX, COUNT.size, COUNT_AT)
            try:
                begun = COUNT.unpack(os.pread(file.fileno(), COUNT.size, COUNT_AT))[0]
                os.pwrite(file.fileno(), COUNT.pack(begun + 1), COUNT_AT)
            finally:
                fcntl.lockf(file, fcntl.LOCK_UN, COUNT.size, COUNT_AT)

    def _page(self) -> mmap.mmap | None:
        name = os.environ.get(VARIABLE, "")
        # A process may have several workers, one after the other, each with a page of its own.
        if self._opened is None or self._opened[0] != name:
            memory = _open(name)
            self._opened = (name, memory) if memory is not None else None
        return self._opened[1] if self._opened is not None else None


@dataclass(frozen=True)
class BegunRun:
    """A run that is going on, as its worker can see, until `end` is called or the process dies.

    Attributes:
        term: under which it has begun.
        file: whose lock tells that it is going on.

    """

    term: int
    file: BinaryIO

    def end(self) -> None:
        """Be over, also for processes that the task has left behind."""
        fcntl.flock(self.file, fcntl.LOCK_UN)
        self.file.close()


def _whose() -> tuple[int, str | None]:
    return os.getpid(), os.environ.get(VARIABLE)


def _prefix() -> str:
    # Containers may share the folder, and each has process ids of its own.
    try:
        return f"{PREFIX}{Path('/proc/self/ns/pid').stat().st_ino}-"
    except OSError:
        return f"{PREFIX}0-"


def _sweep(folder: Path) -> None:
    """Remove what workers that were killed have left behind."""
    prefix = _prefix()
    for path in folder.glob(f"{prefix}*-*"):
        pid = path.name.removeprefix(prefix).partition("-")[0]
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and pid.isdecimal() and not _is_alive(int(pid)):
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        # Also a number that cannot be a process id, in a file of another version.
        return False
    except PermissionError:
        pass
    return True


def _open(name: str) -> mmap.mmap | None:
    try:
        with Path(name).open("rb") as file:
            return mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None


reader = TrustReader()
