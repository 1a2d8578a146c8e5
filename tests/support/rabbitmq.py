"""A RabbitMQ node of one's own, from Debian's package, apart from any that the system runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from example_app.servers import Server, free_port

# Bytes; much less than by default, so that a test can send more.
LARGEST_MESSAGE = 1_000_000

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


class RabbitMQ(Server):
    """A node with a folder, ports, a cookie and a port mapper (epmd) of its own."""

    name = "rabbitmq"
    start_timeout = 120.0

    def __init__(self, script: Path) -> None:
        """Choose a folder and ports; nothing runs before `start`."""
        super().__init__()
        self._script = script
        (self.folder / "plugins").write_text("[].\n")
        (self.folder / "rabbitmq.conf").write_text(f"max_message_size = {LARGEST_MESSAGE}\n")
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
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Commands, too, would start one as a daemon, which stays.
            "ERL_ZFLAGS": "-start_epmd false",
            # One would be written wherever the program runs.
            "ERL_CRASH_DUMP_BYTES": "0",
        }
        self._mapper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where Celery finds it."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def diagnose(self, *arguments: str) -> int:
        """Run `rabbitmq-diagnostics` on it; return the exit code."""
        command = [str(self._script.with_name("rabbitmq-diagnostics")), *arguments]
        return subprocess.run(command, env=self._environment, capture_output=True, check=False).returncode

    def close(self) -> None:
        """Stop it and its port mapper, and leave nothing behind."""
        self.stop()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
        super().close()

    def _launch(self) -> subprocess.Popen[bytes]:
        options = {"env": self._environment, "cwd": self.folder}
        if self._mapper is None:
            # Nobody else starts one.
            self._mapper = self._popen(["epmd"], **options)
        return self._popen([str(self._script)], **options)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.settimeout(5)
                # Not the right protocol, so it tells which one it speaks, and so that it is up.
                connection.sendall(b"AMQP\x00\x00\x00\x00")
                return connection.recv(8).startswith(b"AMQP")
        except OSError:
            return False
