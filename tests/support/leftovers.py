"""What a run of tests has left behind, and the guard that removes it, however the run has ended.

All temporary files of a run are in one folder. A process of the run has the folder's name in its environment, its
command line or its working directory, which most servers keep one of, whatever they do to the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from celery_pgleader.tasks import trust_page
from tests.support.eventually import eventually

# Where there is room for them, servers keep their files in memory: a new database takes a tenth of the time.
MEMORY, ROOM = Path("/dev/shm"), 2 * 1024**3
PREFIX = "pgleader-tests-"
# What pytest keeps of tests for a while, and what multiprocessing removes when a process ends, as this one will.
PASSING = ("pytest-of-", "pymp-")
# Seconds for what has been told to end.
PATIENCE = 15.0


class Guarded:
    """A folder for all temporary files of this process and its children, and a process that outlives both."""

    def __init__(self) -> None:
        """Make the folder."""
        in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=MEMORY if in_memory else None))
        # Postgres is run by another user, who has to get through.
        self.folder.chmod(0o711)
        command = [sys.executable, "-m", __name__, str(self.folder)]
        self._guard = subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, start_new_session=True
        )
        self._before = tempfile.tempdir, os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)

    def left(self) -> list[str]:
        """Return what the run has left behind, now that all of it should have ended."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: not carrying(self.folder, self._guard.pid), PATIENCE)
        processes = [f"process {one.pid}: {next(_words(one), one)}" for one in carrying(self.folder, self._guard.pid)]
        files = {path for path in self.folder.iterdir() if not path.name.startswith(PASSING)}
        return processes + [f"file {path}" for path in sorted(files)]

    def remove(self) -> None:
        """Remove the folder."""
        tempfile.tempdir = self._before[0]
        if self._before[1] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = self._before[1]
        self._guard.communicate()


def carrying(folder: Path, *but: int) -> list[psutil.Process]:
    """Return the processes that have the name of a folder, but for these, this one, and those that it is a child of."""
    spared = {*but, os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for process in psutil.process_iter() if process.pid not in spared and _carries(process, folder)]


def _carries(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in words for words in _words(process))


def _words(process: psutil.Process) -> Iterator[str]:
    for look in (process.cmdline, process.environ, process.cwd):
        # It has ended, or is somebody else's.
        with contextlib.suppress(psutil.Error, OSError):
            yield str(look())


def abandoned_semaphores() -> list[Path]:
    """Return the files of multiprocessing's semaphores that no process has any more, as its pool was killed."""
    used: list[str] = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            used += [line for line in maps.read_text(errors="replace").splitlines() if f"{MEMORY}/sem.mp-" in line]
    return [path for path in MEMORY.glob("sem.mp-*") if not any(str(path) in line for line in used)]


def main(folder: Path) -> None:
    """Wait until the run has ended, and remove all of it that is there still."""
    sys.stdin.read()
    for process in carrying(folder):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    # Servers end by themselves when their parents do, and in better order.
    with contextlib.suppress(AssertionError):
        eventually(lambda: not carrying(folder), PATIENCE)
    for process in carrying(folder):
        with contextlib.suppress(psutil.Error):
            process.kill()
    shutil.rmtree(folder)
    # What is in memory might be another run's; of what nobody uses any more that does not matter.
    for path in abandoned_semaphores():
        path.unlink(missing_ok=True)
    trust_page._sweep(trust_page.SHARED)  # noqa: SLF001 - as the next worker to start does


if __name__ == "__main__":
    main(Path(sys.argv[1]))
