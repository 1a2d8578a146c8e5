"""The runs that must not be repeated, or must not overlap: which are going on, and which have ended."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from datetime import datetime

from celery_pgleader.config import Config
from celery_pgleader.election.lock_session import session_name
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.store import sql as statements

PATIENCE = 5.0


class Runs:
    """The runs of one process, each held by an advisory lock for as long as it lasts.

    A process that dies ends its session, and with it its runs, at once. All methods raise `psycopg.Error` if the
    database cannot be asked.
    """

    def __init__(self, config: Config, node: str) -> None:
        """Prepare; a session is opened when it is first needed."""
        self._config = config
        self._node = node
        self._turn = threading.Lock()
        self._session: Session | None = None
        # Session locks may be taken again by their holder, so those of this process are told apart here.
        self._held: set[int] = set()

    def begin(self, keys: Iterable[int]) -> bool:
        """Take the locks of a run; return false, and take none, if one of them is held."""
        wanted = list(keys)
        with self._turn:
            if self._held.intersection(wanted):
                return False
            taken: list[int] = []
            for key in wanted:
                if not self._ask(statements.TRY_RUN, key=key)[0]:
                    self._let_go(taken)
                    return False
                taken.append(key)
            self._held.update(wanted)
            return True

    def has_finished(self, task_id: str) -> bool:
        """Tell whether a task has come to its end before."""
        with self._turn:
            return bool(self._ask(statements.HAS_FINISHED, task_id=task_id)[0])

    def finish(self, task_id: str) -> None:
        """Write down that a task has come to its end."""
        with self._turn:
            self._ask(statements.FINISH, task_id=task_id)

    def skip(self, election: str, entry: str, slot: datetime, reason: str) -> None:
        """Write down that a slot was published, but not run."""
        with self._turn:
            self._ask(statements.SKIP, election=election, entry=entry, slot=slot, reason=reason)

    def end(self, keys: Iterable[int]) -> None:
        """Give the locks of a run back."""
        with self._turn:
            ended = list(keys)
            self._held.difference_update(ended)
            self._let_go(ended)

    def _let_go(self, keys: list[int]) -> None:
        for key in keys:
            self._ask(statements.END_RUN, key=key)

    def _ask(self, statement: str, **parameters: object) -> tuple[object, ...]:
        session = self._session
        if session is not None and not session.is_alive():
            session.close()
            session = None
        if session is None:
            session = self._session = self._open()
        try:
            with session.bounded(PATIENCE):
                row = session.execute(statement, parameters).fetchone()
        except BaseException:
            self._session = None
            session.close()
            raise
        return row or (None,)

    def _open(self) -> Session:
        name = session_name("runs", self._node)
        session = open_session(self._config.database_url, name, unresponsive_after=self._config.ttl)
        with session.bounded(PATIENCE):
            session.execute(statements.STAY)
        return session


def run_key(*words: str) -> int:
    """Return the key of the lock of a run, a signed 64-bit number."""
    digest = hashlib.blake2b("\n".join(["pgleader run", *words]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def entry_key(election: str, entry: str) -> int:
    """Return the key of the lock that runs of an entry hold if they must not overlap."""
    return run_key(election, entry)


def task_key(task_id: str) -> int:
    """Return the key of the lock that the run of a task holds if it must not be repeated."""
    return run_key(task_id)
