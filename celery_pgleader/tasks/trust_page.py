"""A page of memory in which a worker tells the processes of its pool which term it leads, and for how long."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import time
from pathlib import Path

VARIABLE = "PGLEADER_TRUST_PAGE"
# Memory, where there is such a file system.
SHARED = Path("/dev/shm")  # noqa: S108 - the file's name cannot be foretold
PREFIX = "pgleader-trust-"
# The term, and the end of trust on the system's monotonic clock, which all processes of a host share; twice the latter,
# so that a reader can tell that it came while the page was being written.
PAGE = struct.Struct("dqd")


class TrustPage:
    """The writer's side. Inherited by children through a fork, found by its name after a spawn."""

    def __init__(self) -> None:
        """Make the page."""
        folder = SHARED if os.access(SHARED, os.W_OK) else Path(tempfile.gettempdir())
        _sweep(folder)
        fd, name = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder)
        try:
            os.ftruncate(fd, PAGE.size)
            self._memory = mmap.mmap(fd, PAGE.size)
        finally:
            os.close(fd)
        self._path = Path(name)
        os.environ[VARIABLE] = name

    def write(self, term: int, trusted_until: float) -> None:
        """Tell which term is led, and until when to trust it; 0 and 0 for none."""
        self._memory[:] = PAGE.pack(0.0, term, 0.0)
        self._memory[:] = PAGE.pack(trusted_until, term, trusted_until)

    def close(self) -> None:
        """Tell that no term is led, and leave nothing behind."""
        self.write(0, 0.0)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()


class TrustReader:
    """The reader's side, in whichever process a task runs."""

    def __init__(self) -> None:
        """Prepare; the page is looked for when it is first needed."""
        self._memory: mmap.mmap | None = None

    def term(self) -> int | None:
        """Return the term that may be trusted now, or none."""
        if self._memory is None:
            self._memory = _open()
        if self._memory is None:
            return None
        first, term, last = PAGE.unpack(self._memory[:])
        return term if first == last and time.monotonic() < first else None


def _sweep(folder: Path) -> None:
    """Remove what workers that were killed have left behind."""
    for path in folder.glob(f"{PREFIX}*-*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and pid.isdecimal() and not _is_alive(int(pid)):
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _open() -> mmap.mmap | None:
    try:
        with Path(os.environ[VARIABLE]).open("rb") as file:
            return mmap.mmap(file.fileno(), PAGE.size, access=mmap.ACCESS_READ)
    except (KeyError, OSError, ValueError):
        return None


reader = TrustReader()
