"""As much of Postgres as the package relies on: sessions, locks, transactions and what they see. Without time.

A statement is a generator (see `twins`). It yields where it has to wait for a lock, and where others may come in
between, and returns its rows. What drives it decides how long each of that takes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, TypeAlias, TypeVar

SHARE, EXCLUSIVE = "share", "exclusive"

T = TypeVar("T")
Row: TypeAlias = dict[str, Any]
Rows: TypeAlias = list[tuple[Any, ...]]
Waits: TypeAlias = Generator["Request | None", None, T]
Steps: TypeAlias = Waits[Rows]
Tables: TypeAlias = dict[str, dict[Any, Row]]
# As `pg_locks` shows it: classid, objid, objsubid.
AdvisoryKey: TypeAlias = tuple[int, int, int]

# The tables, and what their rows are told apart by.
TABLES: dict[str, Callable[[Row], Any]] = {
    "elections": itemgetter("election"),
    "terms": itemgetter("election", "term"),
    "entries": itemgetter("election", "entry"),
    "slots": itemgetter("election", "entry", "slot"),
    "finished": itemgetter("task_id"),
    "notifications": itemgetter("id"),
    "dead_letters": itemgetter("id"),
    "nodes": itemgetter("election", "node", "instance"),
}


class LockNotAvailable(Exception):
    """The lock was not granted within `lock_timeout`, or the statement was cancelled."""


class UniqueViolation(Exception):
    """There is such a row already."""


@dataclass(eq=False)
class Request:
    """A wish for a lock, which is given up after `timeout` seconds, if that is set."""

    lock: Lock
    owner: Holder
    mode: str
    granted: bool = False
    on_grant: Callable[[], object] | None = None
    timeout: float | None = None

    def withdraw(self) -> None:
        if not self.granted:
            self.lock.queue.remove(self)
            self.lock.grant()


@dataclass(eq=False)
class Lock:
    """A lock. Its owners of one session never wait for each other."""

    # Whether a request that could share it waits behind earlier ones; with the lock of a row it does not.
    fair: bool = True
    # How often, by owner and mode: an owner may take it again.
    held: dict[tuple[Holder, str], int] = field(default_factory=dict)
    # The requests that wait, in the order of their arrival.
    queue: deque[Request] = field(default_factory=deque)

    def request(self, owner: Holder, mode: str) -> Request:
        request = Request(self, owner, mode)
        if not self.held and not self.queue:
            self._take(request)
            return request
        mine = [held for holder, held in self.held if holder.session is owner.session]
        # A session that holds what others wait for goes before them.
        place = next((n for n, other in enumerate(self.queue) if _exclude(mine, other.mode)), None)
        is_behind = self.fair and place is None and _exclude([waiting.mode for waiting in self.queue], mode)
        if mode in mine or not (is_behind or self._conflicts(request)):
            self._take(request)
        else:
            self.queue.insert(len(self.queue) if place is None else place, request)
        return request

    def attempt(self, owner: Holder, mode: str) -> bool:
        """Take it if it is free."""
        request = self.request(owner, mode)
        if not request.granted:
            self.queue.remove(request)
        return request.granted

    def release(self, owner: Holder, mode: str, *, wholly: bool = False) -> bool:
        """Give it back, once or as often as it was taken; tell whether it was held."""
        count = self.held.get((owner, mode), 0)
        if count > 1 and not wholly:
            self.held[owner, mode] = count - 1
        else:
            self.held.pop((owner, mode), None)
            self.grant()
        return count > 0

    def grant(self) -> None:
        """Grant it to the requests whose turn it is."""
        ahead: list[str] = []
        for request in list(self.queue):
            if self._conflicts(request) or _exclude(ahead, request.mode):
                ahead.append(request.mode)
                continue
            self.queue.remove(request)
            self._take(request)
            if request.on_grant is not None:
                request.on_grant()

    def _take(self, request: Request) -> None:
        request.granted = True
        self.held[request.owner, request.mode] = self.held.get((request.owner, request.mode), 0) + 1

    def _conflicts(self, request: Request) -> bool:
        session = request.owner.session
        return _exclude([mode for owner, mode in self.held if owner.session is not session], request.mode)


def _exclude(modes: list[str], mode: str) -> bool:
    return bool(modes) and (mode == EXCLUSIVE or EXCLUSIVE in modes)


class Database:
    """What is committed, who is connected, and what is locked."""

    def __init__(self, clock: Callable[[], Any], draw_uuid: Callable[[], Any]) -> None:
        """Begin with an empty ledger, and with what `clock_timestamp()` and `gen_random_uuid()` return."""
        self.clock = clock
        self.draw_uuid = draw_uuid
        # A commit replaces them, so a snapshot is there for nothing.
        self.tables: Tables = {name: {} for name in TABLES}
        self.sessions: dict[int, Session] = {}
        self.advisory: dict[AdvisoryKey, Lock] = defaultdict(Lock)
        self.rows: dict[tuple[str, Any], Lock] = defaultdict(partial(Lock, fair=False))
        self.sequence = 0
        self.xid = 700
        # Called with each transaction, right before what it has written is there for others to see.
        self.committing: Callable[[Transaction], object] = lambda _transaction: None
        # What was committed, and would not be there after a crash.
        self.unflushed: list[list[tuple[str, Any, Row | None]]] = []
        self._last_pid = 100

    def connect(self, application_name: str = "") -> Session:
        self._last_pid += 1
        session = self.sessions[self._last_pid] = Session(self, self._last_pid, application_name)
        return session

    def crash(self, lose: int) -> None:
        """Lose all sessions, and the last so many of the transactions that were committed without waiting."""
        for session in list(self.sessions.values()):
            session.end()
        for written in reversed(self.unflushed[len(self.unflushed) - lose :] if lose else []):
            self.tables = _written(self.tables, {(table, key): before for table, key, before in written})
        self.unflushed = []

    def order(self, election: str, changes: Row) -> bool:
        """Have an operator change an election's row; tell whether there is one, and nobody has locked it."""
        session = self.connect()
        transaction = session.begin()
        row = transaction.latest("elections", election)
        free = row is not None and transaction.has_free("elections", election)
        if row is not None and free:
            transaction.write("elections", {**row, **changes})
            transaction.notified.add("pgleader_orders")
            transaction.commit()
        session.end()
        return free


class Holder:
    """What locks are held by: a session, or a transaction."""

    session: Session

    def __init__(self, database: Database) -> None:
        """Begin without any."""
        self.database = database
        self._locks: list[tuple[Lock, str]] = []

    def lock(self, key: AdvisoryKey) -> Request:
        return self._request(self.database.advisory[key], EXCLUSIVE)

    def try_lock(self, key: AdvisoryKey, mode: str = EXCLUSIVE) -> bool:
        lock = self.database.advisory[key]
        self._locks.append((lock, mode))
        return lock.attempt(self, mode)

    def let_go(self) -> str:
        """Give back everything, and wait for nothing; return what `pg_advisory_unlock_all` does."""
        locks, self._locks = self._locks, []
        for lock, mode in locks:
            for request in [request for request in lock.queue if request.owner is self]:
                request.withdraw()
            lock.release(self, mode, wholly=True)
        return ""

    def _request(self, lock: Lock, mode: str) -> Request:
        self._locks.append((lock, mode))
        return lock.request(self, mode)


class Session(Holder):
    """A session, seen from the server."""

    def __init__(self, database: Database, pid: int, application_name: str) -> None:
        """Begin."""
        super().__init__(database)
        self.session = self
        self.pid = pid
        self.application_name = application_name
        self.idle_timeout: float | None = None
        # Whether what it commits is on disk then.
        self.durable = True
        self.channels: set[str] = set()
        self.woken: Callable[[], object] = lambda: None
        self.transaction: Transaction | None = None

    def unlock(self, key: AdvisoryKey, mode: str = EXCLUSIVE) -> bool:
        return self.database.advisory[key].release(self, mode)

    def holds(self, key: AdvisoryKey) -> bool:
        """Tell what `pg_locks` shows."""
        return any(owner.session is self for owner, _ in self.database.advisory[key].held)

    def begin(self) -> Transaction:
        self.transaction = Transaction(self)
        return self.transaction

    def end(self) -> None:
        """End the session, rolling back what it was in the middle of."""
        if self.database.sessions.pop(self.pid, None) is not None:
            if self.transaction is not None:
                self.transaction.roll_back()
            self.let_go()


class Transaction(Holder):
    """A transaction, READ COMMITTED: each statement sees what was committed before it began."""

    def __init__(self, session: Session) -> None:
        """Begin."""
        super().__init__(session.database)
        self.session = session
        self.durable = session.durable
        self.notified: set[str] = set()
        # The term for which it writes, for those who check.
        self.fenced: tuple[str, int] | None = None
        self.written: dict[tuple[str, Any], Row | None] = {}
        self._snapshot: Tables = {}

    def begin_statement(self) -> None:
        """Take a snapshot for the statement that begins now."""
        self._snapshot = self.database.tables
        if self.written:
            self._snapshot = _written(self._snapshot, self.written)

    def view(self, table: str) -> dict[Any, Row]:
        """Return a table as the statement sees it."""
        return self._snapshot[table]

    def latest(self, table: str, key: Any) -> Row | None:
        """Return the newest version of a row, as a transaction that has locked it sees it."""
        if (table, key) in self.written:
            return self.written[table, key]
        return self.database.tables[table].get(key)

    def has_free(self, table: str, key: Any) -> bool:
        return all(owner is self for owner, _ in self.database.rows[table, key].held)

    def write(self, table: str, row: Row) -> None:
        self.written[table, TABLES[table](row)] = row

    # What statements are made of.

    def lock_row(self, table: str, key: Any, mode: str = EXCLUSIVE) -> Waits[None]:
        request = self._request(self.database.rows[table, key], mode)
        if not request.granted:
            yield request

    def update(
        self,
        table: str,
        where: Callable[[Row], Any],
        change: Row | Callable[[Row], Row] | None = None,
        *,
        order: Callable[[Row], Any] | None = None,
        limit: int | None = None,
    ) -> Waits[list[Row]]:
        """Change, or delete, the rows that fulfil a condition, and still do when they are locked; return them."""
        found = [row for row in self.view(table).values() if where(row)]
        changed: list[Row] = []
        for row in (sorted(found, key=order) if order else found)[:limit]:
            key = TABLES[table](row)
            yield from self.lock_row(table, key)
            latest = self.latest(table, key)
            if latest is not None and where(latest):
                new = change(latest) if callable(change) else None if change is None else latest | change
                self.written[table, key] = new
                changed.append(latest)
        return changed

    def upsert(self, table: str, row: Row, change: Callable[[Row], Row]) -> Waits[Row]:
        """Insert a row, or change the one that is there; return what is there then."""
        yield from self.lock_row(table, TABLES[table](row))
        known = self.latest(table, TABLES[table](row))
        row = row if known is None else change(known)
        self.write(table, row)
        return row

    def insert(self, table: str, row: Row) -> Waits[None]:
        """Insert a row, after anybody else who is inserting the same."""
        yield from self.lock_row(table, TABLES[table](row))
        if self.latest(table, TABLES[table](row)) is not None:
            raise UniqueViolation(table)
        self.write(table, row)

    def insert_if_absent(self, table: str, row: Row) -> Waits[bool]:
        """Insert a row if there is none, and lock none if there is; tell whether there was none."""
        key = TABLES[table](row)
        if self.latest(table, key) is not None:
            return False
        yield from self.lock_row(table, key)
        if self.latest(table, key) is not None:
            lock, mode = self._locks.pop()
            lock.release(self, mode)
            return False
        self.write(table, row)
        return True

    # Its end.

    def commit(self) -> None:
        """Make what was written visible, and let go of the locks."""
        database = self.database
        if self.written:
            database.committing(self)
            before = [(table, key, database.tables[table].get(key)) for table, key in self.written]
            database.unflushed = [] if self.durable else [*database.unflushed, before]
            database.tables = _written(database.tables, self.written)
        self._end()
        if self.notified:
            for session in list(database.sessions.values()):
                if session.channels & self.notified:
                    session.woken()

    def roll_back(self) -> None:
        self.written = {}
        self._end()

    def _end(self) -> None:
        self.session.transaction = None
        self.let_go()


def _written(tables: Tables, written: dict[tuple[str, Any], Row | None]) -> Tables:
    """Return tables as they are when rows were written, or deleted."""
    tables = tables | {name: dict(tables[name]) for name, _ in written}
    for (table, key), row in written.items():
        if row is None:
            tables[table].pop(key, None)
        else:
            tables[table][key] = row
    return tables
