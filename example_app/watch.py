"""Looks at the election from outside: who holds which of its locks, as Postgres knows it."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from example_app.waiting import wait_until

# 1885826048 is the class of celery-pgleader's lock, the two after it are its successors' places. A session is named
# "pgleader <leader or follower> <node>".
SEATS = """
select l.classid::bigint = 1885826048 as leads, l.pid, split_part(a.application_name, ' ', 3) as node
  from pg_locks l join pg_stat_activity a using (pid)
 where l.locktype = 'advisory' and l.granted and l.objsubid = 2
   and l.classid::bigint between 1885826048 and 1885826050
   and l.database = (select oid from pg_database where datname = current_database())
"""
GLANCE = 0.001


@dataclass(frozen=True)
class Seats:
    """Who leads and who is next.

    Attributes:
        leader: node that holds the lock, if any.
        backend_pid: its Postgres session.
        successors: nodes that wait in line.

    """

    leader: str | None
    backend_pid: int | None
    successors: tuple[str, ...]


class Watch:
    """Watches the election's locks through a connection of its own."""

    def __init__(self, database_url: str) -> None:
        """Connect."""
        self._db = psycopg.connect(database_url, autocommit=True)

    def close(self) -> None:
        """Disconnect."""
        self._db.close()

    def seats(self) -> Seats:
        """Return who leads and who is next, now."""
        rows = self._db.execute(SEATS).fetchall()
        leader, backend_pid = next(((node, pid) for leads, pid, node in rows if leads), (None, None))
        return Seats(leader, backend_pid, tuple(sorted(node for leads, _, node in rows if not leads)))

    def wait_for_takeover(self, old: Seats, timeout: float) -> Seats | None:
        """Wait until another session than the old leader's holds the lock; return none if the time is up."""

        def new() -> Seats | None:
            seats = self.seats()
            return seats if seats.backend_pid not in {None, old.backend_pid} else None

        return wait_until(new, timeout, GLANCE)
