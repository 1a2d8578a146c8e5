"""A RabbitMQ node of one's own, from Debian's package, apart from any that the system runs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from example_app.servers import ServerFailed, dies_with_parent, free_port

START_TIMEOUT = 120.0
STOP_TIMEOUT = 30.0
GLANCE = 0.1

# Celery's settings for an app with quorum queues only; what is sent with an `eta` waits in the broker then.
QUORUM = {
    # Of its own: on a broker that tests share there is a classic one of the usual name.
    "task_default_queue": "quorum",
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",
    "task_create_missing_queue_type": "quorum",
    "task_create_missing_queue_exchange_type": "topic",
}


def find_rabbitmq() -> Path | None:
    """Return the server's own script, or none if it is not installed."""
    for path in Path("/usr/lib/rabbitmq").glob("lib/rabbitmq_server-*/sbin/rabbitmq-server"):
        return path
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class RabbitMQ:
    """A node with a folder, ports, a cookie and a port mapper (epmd) of its own.

    Both die with the thread that starts them.
    """

    def __init__(self, script: Path) -> None:
        """Choose a folder and ports; nothing runs before `start`."""
        self._script = script
        self.folder = Path(tempfile.mkdtemp(prefix="rabbitmq-"))
        self.port = free_port()
        self.log = self.folder / "log.txt"
        (self.folder / "plugins").write_text("[].\n")
        # Debian's script changes to its own user; the one that it is a wrapper of does not.
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            # Has the script become the node, rather than stay in between.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "none"),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Commands, too, would start one as a daemon, which stays.
            "ERL_ZFLAGS": "-start_epmd false",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where Celery finds it."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Start, and return once it answers."""
        if self._mapper is None:
            # Nobody else starts one.
            self._mapper = self._popen("epmd")
        self._process = self._popen(str(self._script))
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log_end = self.log.read_text(errors="replace")[-3000:]
                self.close()
                raise ServerFailed(f"RabbitMQ did not start: {log_end}")
            time.sleep(GLANCE)

    def stop(self) -> None:
        """Stop in good order; harmless if it does not run."""
        process, self._process = self._process, None
        _end(process)

    def restart(self) -> None:
        """Stop and start again, on the same port, with the same data."""
        self.stop()
        self.start()

    def diagnose(self, *arguments: str) -> int:
        """Run `rabbitmq-diagnostics` on it; return the exit code."""
        command = [str(self._script.with_name("rabbitmq-diagnostics")), *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, check=False).returncode

    def close(self) -> None:
        """Stop it and its port mapper, and leave nothing behind."""
        self.stop()
        mapper, self._mapper = self._mapper, None
        _end(mapper)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _popen(self, program: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [program],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(5)
                # Not the right protocol, so it tells which one it speaks, and so that it is up.
                connection.sendall(b"AMQP\x00\x00\x00\x00")
                return connection.recv(8).startswith(b"AMQP")
        except OSError:
            return False


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is None:
        return
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
