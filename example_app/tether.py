"""Runs a command that dies with the process that started it, also when that one is killed with `kill -9`.

    python tether.py <process id of the parent> <command> [<argument> ...]

Linux does it; elsewhere the command just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tied(command: list[str]) -> list[str]:
    """Return the command that runs `command` tied to this process.

    Linux ties it to the thread that starts it, so that has to be one that lasts.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    """Tie this process, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # Too late: it is dead already.
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
