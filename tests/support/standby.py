"""A streaming standby of an embedded Postgres."""

from __future__ import annotations

from pathlib import Path

import psycopg

from example_app.servers import EmbeddedPostgres, ServerFailed
from tests.support.eventually import eventually


class Standby(EmbeddedPostgres):
    """A copy of a server, that follows it until it is promoted, and can be read meanwhile."""

    name = "standby"

    def __init__(self, primary: EmbeddedPostgres, bin_dir: Path | None = None, port: int | None = None) -> None:
        """Choose a folder and a port; nothing runs before `start`.

        Args:
            primary: the server to follow.
            bin_dir: the server's programs; by default those of the wheel.
            port: where to reach the primary, if not at its own.

        """
        super().__init__(bin_dir)
        self._primary = port or primary.port

    def promote(self) -> None:
        """Make it a primary."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute("select pg_promote()")

    def _initialise(self, data: Path) -> None:
        command = [str(self.bin_dir / "pg_basebackup"), "-h", "127.0.0.1", "-p", str(self._primary), "-U", "postgres"]
        command += ["-D", str(data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        if self._popen(command, cwd=self.folder, **self._as_user()).wait():
            raise ServerFailed(f"pg_basebackup failed: {self._end_of_log()}")


def replicate_synchronously(primary: EmbeddedPostgres) -> None:
    """Have each commit wait for the standby."""
    ask(primary, "alter system set synchronous_standby_names = '*'")
    ask(primary, "select pg_reload_conf()")
    eventually(lambda: ask(primary, "select sync_state from pg_stat_replication") == "sync")


def ask(server: EmbeddedPostgres, query: str) -> str:
    """Return the only value of a query, as text."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""
