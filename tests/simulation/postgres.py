"""As much of Postgres as the package relies on: sessions, locks, transactions and what they see. Without time.

A statement is a generator (see `twins`). It yields where it has to wait for a lock, and where others may come in
between, and returns its rows. What drives it decides how long each of that takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

SHARE, EXCLUSIVE = "share", "exclusive"
TABLES = ("elections", "terms", "entries", "slots", "finished", "notifications", "dead_letters", "nodes")

Row: TypeAlias = dict[str, Any]
Steps: TypeAlias = Generator["Request | None", None, list[tuple[Any, ...]]]


class LockNotAvailable(Exception):
    """The lock was not granted within `lock_timeout`, or the statement was cancelled."""


class UniqueViolation(Exception):
    """There is such a row already."""


@dataclass
class Request:
    """Somebody's wish for a lock.

    Attributes:
        lock: which.
        owner: who: a session, or a transaction.
        mode: whether with others.
        granted: whether it was granted.
        on_grant: called when it is.
        timeout: seconds after which to give up; none is for ever.

    """

    lock: Lock
    owner: Hashable
    mode: str
    granted: bool = False
    on_grant: Callable[[], object] | None = None
    timeout: float | None = None

    def withdraw(self) -> None:
        """Want it no more."""
        if not self.granted:
            self.lock.queue.remove(self)
            self.lock.grant()


@dataclass
class Lock:
    """A lock, in the order in which it was asked for.

    Attributes:
        held: how often, by owner and mode: who holds it may take it again.
        queue: who waits.
        group: tells which owners are of one session, who never wait for each other.
        fair: whether who could share it waits for those who asked before; with the lock of a row it does not.

    """

    group: Callable[[Any], object]
    fair: bool = True
    held: dict[tuple[Any, str], int] = field(default_factory=dict)
    queue: deque[Request] = field(default_factory=deque)

    def request(self, owner: Any, mode: str) -> Request:
        """Ask for it."""
        request = Request(self, owner, mode)
        group = self.group(owner)
        mine = [held for held in self.held if self.group(held[0]) == group]
        if any(held[1] == mode for held in mine):
            self._take(request)
            return request
        behind = [waiting for waiting in self.queue if self.fair and EXCLUSIVE in {mode, waiting.mode}]
        if not self._conflicts(request) and (not behind or self._blocks(group, self.queue)):
            self._take(request)
        elif mine:
            # Who holds what others wait for goes before them.
            place = next((i for i, waiting in enumerate(self.queue) if self._blocks(group, [waiting])), len(self.queue))
            self.queue.insert(place, request)
        else:
            self.queue.append(request)
        return request

    def attempt(self, owner: Any, mode: str) -> bool:
        """Take it if it is free."""
        request = self.request(owner, mode)
        if not request.granted:
            self.queue.remove(request)
        return request.granted

    def release(self, owner: Any, mode: str, *, wholly: bool = False) -> bool:
        """Give it back, once or as often as it was taken; tell whether it was held."""
        count = self.held.get((owner, mode), 0)
        if count <= 1 or wholly:
            self.held.pop((owner, mode), None)
            self.grant()
        else:
            self.held[owner, mode] = count - 1
        return count > 0

    def grant(self) -> None:
        """Grant it to those whose turn it is."""
        ahead: list[Request] = []
        for request in list(self.queue):
            if self._conflicts(request) or any(EXCLUSIVE in {request.mode, other.mode} for other in ahead):
                ahead.append(request)
                continue
            self.queue.remove(request)
            self._take(request)
            if request.on_grant is not None:
                request.on_grant()

    def _take(self, request: Request) -> None:
        request.granted = True
        self.held[request.owner, request.mode] = self.held.get((request.owner, request.mode), 0) + 1

    def _conflicts(self, request: Request) -> bool:
        group = self.group(request.owner)
        return any(EXCLUSIVE in {mode, request.mode} and self.group(owner) != group for owner, mode in self.held)

    def _blocks(self, group: object, waiting: Any) -> bool:
        return any(
            EXCLUSIVE in {mode, request.mode} and self.group(owner) == group
            for request in waiting
            for owner, mode in self.held
        )


class Database:
    """What is committed, who is connected, and what is locked."""

    def __init__(self, clock: Callable[[], Any], draw_uuid: Callable[[], Any]) -> None:
        """Begin with an empty ledger.

        Args:
            clock: what `clock_timestamp()` returns.
            draw_uuid: what `gen_random_uuid()` returns.

        """
        self.clock = clock
        self.draw_uuid = draw_uuid
        self.tables: dict[str, dict[Any, Row]] = {name: {} for name in TABLES}
        self.sessions: dict[int, Session] = {}
        self.advisory: dict[tuple[int, int, int], Lock] = {}
        self.rows: dict[tuple[str, Any], Lock] = {}
        self.sequence = 0
        self.xid = 700
        # Called with each transaction, right before what it has written is there for others to see.
        self.committing: Callable[[Transaction], object] = lambda _transaction: None
        # What was committed, and would not be there after a crash.
        self.unflushed: list[list[tuple[str, Any, Row | None]]] = []
        self._last_pid = 100

    def connect(self) -> Session:
        """Begin a session."""
        self._last_pid += 1
        session = self.sessions[self._last_pid] = Session(self, self._last_pid)
        return session

    def crash(self, lose: int) -> None:
        """Lose all sessions, and the last so many of the transactions that were committed without waiting."""
        for session in list(self.sessions.values()):
            session.end()
        for written in reversed(self.unflushed[len(self.unflushed) - lose :] if lose else []):
            for table, key, before in written:
                _write(self.tables[table], key, before)
        self.unflushed = []

    def advisory_lock(self, key: tuple[int, int, int]) -> Lock:
        """Return an advisory lock."""
        lock = self.advisory.get(key)
        if lock is None:
            lock = self.advisory[key] = Lock(_session_of)
        return lock

    def holds(self, session: Session, key: tuple[int, int, int]) -> bool:
        """Tell what `pg_locks` shows."""
        lock = self.advisory.get(key)
        return lock is not None and any(_session_of(owner) is session for owner, _ in lock.held)

    def row_lock(self, table: str, key: Any) -> Lock:
        """Return the lock of a row."""
        lock = self.rows.get((table, key))
        if lock is None:
            lock = self.rows[table, key] = Lock(_itself, fair=False)
        return lock


def _itself(owner: Any) -> Any:
    return owner


def _session_of(owner: Any) -> Any:
    return owner.session if isinstance(owner, Transaction) else owner


class Session:
    """A session, seen from the server."""

    def __init__(self, database: Database, pid: int) -> None:
        """Begin without any lock."""
        self.database = database
        self.pid = pid
        self.application_name = ""
        self.idle_timeout: float | None = None
        # Whether what it commits is on disk then.
        self.durable = True
        self.channels: set[str] = set()
        self.woken: Callable[[], object] = lambda: None
        self.transaction: Transaction | None = None
        self._locks: list[tuple[Lock, str]] = []

    def lock(self, key: tuple[int, int, int], mode: str = EXCLUSIVE) -> Request:
        """Ask for an advisory lock, to be held by the session."""
        lock = self.database.advisory_lock(key)
        self._locks.append((lock, mode))
        return lock.request(self, mode)

    def try_lock(self, key: tuple[int, int, int], mode: str = EXCLUSIVE) -> bool:
        """Take an advisory lock if it is free."""
        lock = self.database.advisory_lock(key)
        self._locks.append((lock, mode))
        return lock.attempt(self, mode)

    def unlock(self, key: tuple[int, int, int], mode: str = EXCLUSIVE) -> bool:
        """Give an advisory lock back."""
        return self.database.advisory_lock(key).release(self, mode)

    def unlock_all(self) -> str:
        """Give back all that the session holds; return what the function of that name does."""
        locks, self._locks = self._locks, []
        for lock, mode in locks:
            lock.release(self, mode, wholly=True)
        return ""

    def begin(self) -> Transaction:
        """Begin a transaction."""
        self.transaction = Transaction(self)
        return self.transaction

    def end(self) -> None:
        """End the session, rolling back what it was in the middle of."""
        if self.database.sessions.pop(self.pid, None) is not None:
            if self.transaction is not None:
                self.transaction.roll_back()
            for lock, _ in self._locks:
                _withdraw(lock, self)
            self.unlock_all()


class Transaction:
    """A transaction, READ COMMITTED: each statement sees what was committed before it began."""

    def __init__(self, session: Session) -> None:
        """Begin."""
        self.session = session
        self.database = session.database
        self.durable = session.durable
        self.notified: set[str] = set()
        # The term for which it writes, for those who check.
        self.fenced: tuple[str, int] | None = None
        self.written: dict[tuple[str, Any], Row | None] = {}
        self._locks: list[tuple[Lock, str]] = []

    def view(self, table: str) -> dict[Any, Row]:
        """Return a table as a statement that begins now sees it."""
        rows = dict(self.database.tables[table])
        for (name, key), row in self.written.items():
            if name == table:
                _write(rows, key, row)
        return rows

    def latest(self, table: str, key: Any) -> Row | None:
        """Return the newest version of a row, as who has locked it sees it."""
        if (table, key) in self.written:
            return self.written[table, key]
        return self.database.tables[table].get(key)

    def lock_row(self, table: str, key: Any, mode: str = EXCLUSIVE) -> Generator[Request | None, None, None]:
        """Lock a row until the end of the transaction."""
        lock = self.database.row_lock(table, key)
        self._locks.append((lock, mode))
        request = lock.request(self, mode)
        if not request.granted:
            yield request

    def has_free(self, table: str, key: Any) -> bool:
        """Tell whether a row is locked by nobody else."""
        return all(owner is self for owner, _ in self.database.row_lock(table, key).held)

    def try_lock(self, key: tuple[int, int, int], mode: str) -> bool:
        """Take an advisory lock until the end of the transaction if it is free."""
        lock = self.database.advisory_lock(key)
        self._locks.append((lock, mode))
        return lock.attempt(self, mode)

    def write(self, table: str, key: Any, row: Row | None) -> None:
        """Write a row that is locked, or delete it."""
        self.written[table, key] = row

    def insert(self, table: str, key: Any, row: Row) -> Generator[Request | None, None, None]:
        """Insert a row, after anybody else who is inserting the same."""
        yield from self.lock_row(table, key)
        if self.latest(table, key) is not None:
            raise UniqueViolation(table)
        self.write(table, key, row)

    def insert_if_absent(self, table: str, key: Any, row: Row) -> Generator[Request | None, None, bool]:
        """Insert a row if there is none, and lock none if there is; tell whether there was none."""
        if self.latest(table, key) is not None:
            return False
        yield from self.lock_row(table, key)
        if self.latest(table, key) is not None:
            lock, mode = self._locks.pop()
            lock.release(self, mode)
            return False
        self.write(table, key, row)
        return True

    def commit(self) -> None:
        """Make what was written visible, and let go of the locks."""
        database = self.database
        database.committing(self)
        before = [(table, key, database.tables[table].get(key)) for table, key in self.written]
        for (table, key), row in self.written.items():
            _write(database.tables[table], key, row)
        if before:
            database.unflushed = [] if self.durable else [*database.unflushed, before]
        self._let_go()
        if self.notified:
            for session in list(database.sessions.values()):
                if session.channels & self.notified:
                    session.woken()

    def roll_back(self) -> None:
        """Undo everything."""
        self.written = {}
        self._let_go()

    def _let_go(self) -> None:
        self.session.transaction = None
        locks, self._locks = self._locks, []
        for lock, mode in locks:
            _withdraw(lock, self)
            lock.release(self, mode, wholly=True)


def _withdraw(lock: Lock, owner: object) -> None:
    for request in [request for request in lock.queue if request.owner is owner]:
        request.withdraw()


def _write(rows: dict[Any, Row], key: Any, row: Row | None) -> None:
    if row is None:
        rows.pop(key, None)
    else:
        rows[key] = row
