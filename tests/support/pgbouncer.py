"""A PgBouncer of one's own, from Debian's package, in front of a Postgres."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

from psycopg.conninfo import make_conninfo

from example_app.servers import Server

CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={postgres} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
default_pool_size = {pool_size}
server_round_robin = {round_robin:d}
"""


def find_pgbouncer() -> Path | None:
    """Return the program, or none if it is not installed."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return Path(found) if found else None


class PgBouncer(Server):
    """A pooler that lets everybody in, as the superuser."""

    name = "pgbouncer"

    def __init__(
        self, program: Path, postgres: int, pool_mode: str, pool_size: int = 20, *, round_robin: bool = False
    ) -> None:
        """Choose a folder and a port; nothing runs before `start`.

        Args:
            program: PgBouncer.
            postgres: the server's port on the loopback address.
            pool_mode: session, transaction or statement.
            pool_size: server sessions for each database.
            round_robin: whether each transaction gets the session that was idle for longest, not the last one used.

        """
        super().__init__()
        # It will not be root, and reads its configuration as who it is then.
        self.folder.chmod(0o755)
        self._program = program
        self._configuration = self.folder / "pgbouncer.ini"
        self._settings = {"postgres": postgres, "port": self.port, "pool_size": pool_size, "round_robin": round_robin}
        self.pool_mode = pool_mode

    def in_front_of(self, database: str) -> str:
        """Return the URL of a database through the pooler."""
        return make_conninfo(database, port=self.port)

    def _launch(self) -> subprocess.Popen[bytes]:
        self._configuration.write_text(self._configuration_text())
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        return self._popen([str(self._program), "-q", *as_user, str(self._configuration)])

    def _configuration_text(self) -> str:
        return CONFIGURATION.format(pool_mode=self.pool_mode, **self._settings)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True
