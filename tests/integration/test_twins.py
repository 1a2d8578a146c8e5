"""The simulated Postgres does what the real one does: with the same statements, by several sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from celery_pgleader.config import Config
from celery_pgleader.election import sql as election_statements
from celery_pgleader.election.lock_key import leader_key, place_key
from celery_pgleader.postgres import Session, open_session
from celery_pgleader.store import Schema
from celery_pgleader.store import sql as statements
from celery_pgleader.store.runs import run_key
from tests.simulation import twins
from tests.simulation.postgres import EXCLUSIVE, SHARE, Database, Lock, LockNotAvailable, Request, Steps, Transaction
from tests.simulation.postgres import Session as SimSession
from tests.support.eventually import eventually

PATIENCE = 30.0
SEQUENCES, LENGTH, SESSIONS = 12, 80, 3
CONFIG = Config(database_url="host=nowhere", election="shop")
KEY = leader_key(CONFIG)
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
NODES = ("a", "b")
ENTRIES = ("one", "two")
# No whole number of seconds, which Postgres would show in another unit.
HOUR = 3_600_001
ORDERS: list[tuple[str, Any]] = [
    *[("held_at", NOON), ("held_at", None), ("held_at", None), ("paused_at", NOON), ("paused_at", None)],
    *[("cordoned", ["a"]), ("cordoned", []), ("cordoned", []), ("resign_to", "b"), ("resign_term", 1)],
    *[("resign_at", NOON), ("resign_at", NOON + timedelta(days=9999))],
]
# What is told by the clock, or by chance.
BY_CHANCE = {"gained_at", "ended_at", "last_run_at", "retired_at", "claimed_at", "settled_at", "sent_at", "died_at"}
BY_CHANCE |= {"finished_at", "seen_at", "started_at", "next_until", "uid"}
# These set something of their session, which a transaction that is rolled back would undo.
ALONE = {"TAKE_PLACE", "AWAIT_LOCK", "MINT_TERM", "MINT_TRANSACTION", "RELEASE", "RELEASE_TRANSACTION", "GET_UP"}


class Pair:
    """A session with each of the two."""

    def __init__(self, number: int, real: Session, simulated: SimSession, pool: ThreadPoolExecutor) -> None:
        """Begin with both open."""
        self.number = number
        self.real = real
        self.simulated = simulated
        self.in_transaction = False
        self._pool = pool
        self._steps: Steps | None = None
        self._waits_for: Request | None = None
        self._result: list[Any] | None = None
        self.future: Future[list[Any]] | None = None

    @property
    def waits(self) -> bool:
        """Whether a statement waits in the simulation."""
        return self._steps is not None

    def start(self, name: str, query: Any, parameters: dict[str, Any]) -> None:
        """Have a statement executed by both."""
        _, twin = twins.twin_of(query)
        transaction = self.simulated.transaction or self.simulated.begin()
        self._steps = twin(transaction, *twins.arguments_of(query), **parameters)
        self.go_on()
        self.future = self._pool.submit(self._execute, query, parameters)

    def _execute(self, query: Any, parameters: dict[str, Any]) -> list[Any]:
        cursor = self.real.execute(query, parameters)
        # How many rows were written is all that there is to compare without a result.
        return cursor.fetchall() if cursor.description else [(1,)] * max(0, cursor.rowcount)

    def go_on(self) -> None:
        """Go on in the simulation, as far as that is possible."""
        if self._waits_for is not None and not self._waits_for.granted:
            return
        self._waits_for = None
        assert self._steps is not None
        error: Exception | None = None
        while True:
            try:
                request = self._steps.throw(error) if error is not None else self._steps.send(None)
            except StopIteration as stop:
                self._steps, self._result = None, stop.value
                break
            error = None
            if request is not None and request.timeout is not None:
                error = LockNotAvailable()
            elif request is not None:
                self._waits_for = request
                return
        if not self.in_transaction and self.simulated.transaction is not None:
            self.simulated.transaction.commit()

    def results(self, name_of: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Return what came of the statement with each of the two."""
        assert self.future is not None
        assert self._result is not None
        real, self.future = self.future.result(PATIENCE), None
        return _plain(real, name_of), _plain(self._result, name_of)

    def end(self, *, commit: bool) -> None:
        """End the transaction in both."""
        self.in_transaction = False
        transaction = self.simulated.transaction
        self.real.execute("commit" if commit else "rollback")
        if transaction is not None and commit:
            transaction.commit()
        elif transaction is not None:
            transaction.roll_back()


def _plain(rows: list[Any], name_of: Callable[[Any], Any]) -> list[Any]:
    """Return rows in some order, with lists in some order, and without what is told by chance."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return sorted(value)
        if isinstance(value, float):
            # Seconds from now.
            return round(value, -3)
        return "uid" if isinstance(value, UUID) else name_of(value)

    return sorted(([plain(value) for value in row] for row in rows), key=repr)


class Both:
    """Some sessions, and what they do at random."""

    def __init__(self, url: str, seed: int, stack: ExitStack) -> None:
        """Open the sessions."""
        self.random = Random(seed)
        self.simulated = Database(lambda: datetime.now(timezone.utc), lambda: UUID(int=self.random.getrandbits(128)))
        pool = stack.enter_context(ThreadPoolExecutor(SESSIONS))
        self.monitor = stack.enter_context(psycopg.connect(url, autocommit=True))
        self.monitor.execute("set time zone 'UTC'")
        self.pairs: list[Pair] = []
        for number in range(SESSIONS):
            name = f"pgleader follower {NODES[number % 2]}"
            real = stack.enter_context(open_session(url, name, unresponsive_after=5))
            real.execute("set time zone 'UTC'")
            psycopg.types.json.set_json_loads(lambda text: text if isinstance(text, str) else text.decode(), real)
            simulated = self.simulated.connect()
            simulated.application_name = name
            self.pairs.append(Pair(number, real, simulated, pool))
        self.log: list[str] = []

    def elect(self) -> None:
        """Have the first session gain a term, so that there is one to write for."""
        pair = self.pairs[0]
        for name, draw in (("TAKE_PLACE", _take_place), ("AWAIT_LOCK", _await_lock), ("MINT_TERM", _first_term)):
            query, parameters = draw(self, pair)
            self.log.append(f"{pair.number}: {name} {parameters}")
            pair.start(name, query, parameters)
            self._compare()

    def step(self) -> None:
        """Have one of the sessions do something."""
        random = self.random
        waiting = [pair for pair in self.pairs if pair.waits]
        if not waiting and random.random() < 0.05:
            self._order()
        pair = random.choice([pair for pair in self.pairs if not pair.waits])
        if pair.in_transaction and (waiting or random.random() < 0.3):
            commit = random.random() < 0.8
            self.log.append(f"{pair.number}: {'commit' if commit else 'rollback'}")
            pair.end(commit=commit)
        elif waiting:
            return
        else:
            name, (query, parameters) = self._draw(pair)
            if not pair.in_transaction and name not in ALONE and random.random() < 0.3:
                pair.real.execute("begin")
                pair.in_transaction = True
                self.log.append(f"{pair.number}: begin")
            self.log.append(f"{pair.number}: {name} {parameters}")
            pair.start(name, query, parameters)
        self._compare()

    def _order(self) -> None:
        """Have an operator order something, unless somebody has locked the election's row."""
        session = self.simulated.connect()
        transaction = session.begin()
        row = transaction.latest("elections", "shop")
        if row is not None and transaction.has_free("elections", "shop"):
            column, value = self.random.choice(ORDERS)
            self.log.append(f"operator: {column} = {value}")
            query = sql.SQL("update pgleader.elections set {} = %s").format(sql.Identifier(column))
            self.monitor.execute(query, [value])
            transaction.write("elections", "shop", {**row, column: value})
            transaction.commit()
        session.end()

    def _compare(self) -> None:
        for pair in self.pairs:
            if pair.waits:
                pair.go_on()
        for pair in self.pairs:
            if pair.waits:
                eventually(lambda pair=pair: self._is_blocked(pair), timeout=PATIENCE)  # type: ignore[misc]  # the same
            elif pair.future is not None:
                real, simulated = pair.results(self._name_of)
                assert real == simulated, "\n".join(self.log)
            if not pair.waits:
                name = pair.real.info.parameter_status("application_name")
                assert name == pair.simulated.application_name, "\n".join(self.log)

    def _is_blocked(self, pair: Pair) -> bool:
        pid = pair.real.info.backend_pid
        row = self.monitor.execute("select cardinality(pg_blocking_pids(%s)) > 0", [pid]).fetchone()
        assert pair.future is not None
        assert not pair.future.done(), "it did not wait:\n" + "\n".join(self.log)
        return row is not None and bool(row[0])

    def _name_of(self, value: Any) -> Any:
        for pair in self.pairs:
            if value in {pair.real.info.backend_pid, pair.simulated.pid} and not isinstance(value, bool):
                return f"session {pair.number}"
        return value

    def compare_all(self) -> None:
        """Compare what is there at the end."""
        for pair in self.pairs:
            if pair.in_transaction and not pair.waits:
                pair.end(commit=True)
                self._compare()
        for pair in self.pairs:
            if pair.in_transaction:
                pair.end(commit=True)
                self._compare()
        for table, rows in self.simulated.tables.items():
            assert self._rows(table) == self._simulated_rows(table, rows), f"{table}:\n" + "\n".join(self.log)
        assert self._locks() == self._simulated_locks(), "\n".join(self.log)

    def _rows(self, table: str) -> list[Any]:
        query = sql.SQL("select * from {}").format(sql.Identifier("pgleader", table))
        with self.monitor.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return self._sorted(cursor.execute(query).fetchall())

    def _simulated_rows(self, table: str, rows: dict[Any, Any]) -> list[Any]:
        keys = {"elections": ("election",), "terms": ("election", "term"), "entries": ("election", "entry")}
        keys |= {"slots": ("election", "entry", "slot"), "finished": ("task_id",), "notifications": ("id",)}
        keys |= {"dead_letters": ("id",), "nodes": ("election", "node", "instance")}
        named = (
            dict(zip(keys[table], key if isinstance(key, tuple) else (key,), strict=True)) | row
            for key, row in rows.items()
        )
        return self._sorted(named)

    def _sorted(self, rows: Any) -> list[Any]:
        # What no statement of the package reads is not simulated.
        left_out = {"schedule", "app_version", "package_version", "clock_skew"} | BY_CHANCE
        plain = [
            {
                name: str(self._name_of(value)) if not isinstance(value, list | tuple) else sorted(value)
                for name, value in row.items()
                if name not in left_out
            }
            for row in rows
        ]
        return sorted(plain, key=repr)

    def _locks(self) -> set[Any]:
        rows = self.monitor.execute(
            "select pid, classid::bigint, objid::bigint, objsubid::int, mode from pg_locks"
            " where locktype = 'advisory' and granted"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        modes = {"ExclusiveLock": "exclusive", "ShareLock": "share"}
        return {(self._name_of(pid), (classid, objid, sub), modes[mode]) for pid, classid, objid, sub, mode in rows}

    def _simulated_locks(self) -> set[Any]:
        return {
            (self._name_of(owner.session.pid if isinstance(owner, Transaction) else owner.pid), key, mode)
            for key, lock in self.simulated.advisory.items()
            for owner, mode in lock.held
        }

    # What is done.

    def _draw(self, pair: Pair) -> tuple[str, tuple[Any, dict[str, Any]]]:
        while True:
            name, draw = self.random.choice(OPERATIONS)
            if not (pair.in_transaction and name in ALONE):
                return name, draw(self, pair)

    @property
    def common(self) -> dict[str, Any]:
        """Return what most statements are told: often of the latest term, sometimes of another."""
        row = self.simulated.tables["elections"].get("shop")
        latest = row["term"] if row is not None else 1
        term = latest if self.random.random() < 0.8 else self.random.randint(1, 3)
        return {"election": "shop", "term": term}

    @property
    def entry(self) -> str:
        """Return the name of some entry."""
        return self.random.choice(ENTRIES)

    @property
    def slot(self) -> datetime:
        """Return some slot."""
        return NOON + timedelta(hours=self.random.randint(0, 5))


KEPT = {"election": "shop", "node": "a", "follower": "pgleader follower a", "idle_ms": HOUR, "least_term": 0}
KEPT |= {"may_lead": False, "entries": None}
Draw = Callable[[Both, Pair], tuple[Any, dict[str, Any]]]


def _places() -> Iterator[sql.Composable]:
    return (place_key(CONFIG, place).as_arguments() for place in (1, 2, 3))


def _take_place(both: Both, _pair: Pair) -> Any:
    first, second, kept = _places()
    query = election_statements.TAKE_PLACE.format(first=first, second=second, kept=kept)
    return query, {"ttl_ms": HOUR, "asked_for": both.random.random() < 0.3}


def _await_lock(_both: Both, pair: Pair) -> Any:
    name = sql.Literal(f"pgleader leader {NODES[pair.number % 2]}")
    query = election_statements.AWAIT_LOCK.format(slice=sql.Literal("20ms"), key=KEY.as_arguments(), name=name)
    return query, {}


def _of_lock(pair: Pair) -> dict[str, Any]:
    return {
        "classid": KEY.classid,
        "objid": KEY.objid,
        "objsubid": KEY.objsubid,
        "node": NODES[pair.number % 2],
        "follower": f"pgleader follower {NODES[pair.number % 2]}",
        "idle_ms": HOUR,
        "reason": "resigned",
        "least_term": 0,
    }


def _mint(both: Both, pair: Pair) -> Any:
    place = place_key(CONFIG, both.random.randint(1, 3)).as_arguments()
    entries = both.random.choice((None, ["one"], ["one", "two"]))
    parameters = {**_of_lock(pair), **both.common, "may_lead": both.random.random() < 0.9, "entries": entries}
    return statements.MINT_TERM.format(place=place), parameters


def _first_term(_both: Both, pair: Pair) -> Any:
    place = place_key(CONFIG, 1).as_arguments()
    parameters = {**_of_lock(pair), "election": "shop", "may_lead": True, "entries": None}
    return statements.MINT_TERM.format(place=place), parameters


def _announce(both: Both, pair: Pair) -> Any:
    return statements.ANNOUNCE, {
        **both.common,
        "node": NODES[pair.number % 2],
        "instance": UUID(int=pair.number),
        "priority": both.random.randint(1, 2),
        "stands_back": both.random.choice((None, None, None, "on hold")),
        "entries": both.random.choice((None, ["one"], ["one", "two"])),
        "schedule": "1a",
        "app_version": "",
        "package_version": "0",
        "clock": 0.0,
        "started_at": NOON + timedelta(seconds=pair.number),
    }


def _renewal(statement: str) -> Draw:
    def draw(both: Both, pair: Pair) -> Any:
        parameters = {**_of_lock(pair), **both.common}
        # With a number of the server's own for each of the two.
        return statement, parameters | {"backend_pid": BackendPid(pair)}

    return draw


class BackendPid(int):
    """The pid of a pair's backend, which is not the same with each of the two."""

    _simulated: int

    def __new__(cls, pair: Pair) -> BackendPid:
        """Return the real one, that is equal to the other."""
        self = super().__new__(cls, pair.real.info.backend_pid)
        self._simulated = pair.simulated.pid
        return self

    def __eq__(self, other: object) -> bool:
        """Tell whether it is either of the two."""
        return other == self._simulated or super().__eq__(other)

    __hash__ = int.__hash__


def _register(both: Both, _pair: Pair) -> Any:
    entries = both.random.sample(ENTRIES, both.random.randint(1, 2))
    number = len(entries)
    return statements.REGISTER, {
        **both.common,
        "entries": entries,
        "tasks": ["task"] * number,
        "schedules": ["every hour"] * number,
        "anchors": [NOON] * number,
        "sinces": [both.slot for _ in entries],
        "next_slots": [None] * number,
    }


def _claim(both: Both, _pair: Pair) -> Any:
    entries = both.random.sample(ENTRIES, both.random.randint(1, 2))
    slots = [both.slot for _ in entries]
    states = [both.random.choice(("claimed", "claimed", "skipped")) for _ in entries]
    return statements.CLAIM, {
        **both.common,
        "entries": entries,
        "oldest": slots,
        "newest": slots,
        "nexts": [slot + timedelta(hours=1) for slot in slots],
        "runs": [int(state == "claimed") for state in states],
        "paused": [both.random.random() < 0.1 for _ in entries],
        "row_entries": entries,
        "row_slots": slots,
        "row_throughs": slots,
        "row_counts": [1] * len(entries),
        "row_states": states,
        "row_reasons": [None if state == "claimed" else "missed" for state in states],
        "row_task_ids": [UUID(int=7)] * len(entries),
    }


def _settle(both: Both, _pair: Pair) -> Any:
    return statements.SETTLE, {
        **both.common,
        "entries": [both.entry],
        "slots": [both.slot],
        "states": [both.random.choice(("published", "expired"))],
        "reasons": [both.random.choice((None, "late"))],
    }


def _prune(both: Both, _pair: Pair) -> Any:
    # All slots are in the past by now, and no term is.
    return statements.PRUNE, {**both.common, "seconds": both.random.choice((86_400.0, 1e9)), "limit": 2}


def _awake(both: Both) -> dict[str, Any]:
    rests = both.random.sample(("x", "y"), both.random.randint(0, 1))
    return {
        **both.common,
        "channels": ["orders"],
        "resting": [both.random.randint(1, 9)] if rests else [],
        "rest_channels": ["orders"] * len(rests),
        "rest_keys": rests,
    }


def _waiting(both: Both, _pair: Pair) -> Any:
    after, limit = both.random.randint(0, 4), both.random.randint(1, 5)
    more = {"after": after, "alone": both.random.random() < 0.5, "limit": limit, "bytes": 4_000_000}
    return statements.WAITING, {**_awake(both), **more}


def _notify(both: Both, _pair: Pair) -> Any:
    channel = both.random.choice(("orders", "orders", "others"))
    return statements.NOTIFY, {"channel": channel, "payload": "1", "key": both.random.choice((None, "x", "y"))}


def _of_one(statement: str) -> Draw:
    def draw(both: Both, _pair: Pair) -> Any:
        number = both.random.randint(1, 9)
        return statement, {**both.common, "id": number, "ids": [number, number + 2], "error": "no"} | {}

    return draw


def _node(statement: str, **more: Any) -> Draw:
    def draw(both: Both, _pair: Pair) -> Any:
        place = place_key(CONFIG, 1)
        places = {"place_objid": place.objid, "first_place": place.classid, "last_place": place.classid + 2}
        entries = both.random.choice((None, ["one"], ["one", "two"]))
        node = both.random.choice(NODES)
        return statement, {**both.common, **places, "entries": entries, "node": node, "priority": 1, **more}

    return draw


def _plain_statement(statement: str, **parameters: Any) -> Draw:
    return lambda both, _pair: (statement, {**both.common, **parameters})


def _run(statement: str) -> Draw:
    return lambda both, _pair: (statement, {"key": run_key(both.entry)})


def _task(statement: str) -> Draw:
    return lambda both, _pair: (statement, {"task_id": UUID(int=both.random.randint(1, 3))})


def _skip(both: Both, _pair: Pair) -> Any:
    return statements.SKIP, {"election": "shop", "entry": both.entry, "slot": both.slot, "reason": "overlap"}


def _lie_down(both: Both, _pair: Pair) -> Any:
    return statements.LIE_DOWN, {"lightly": both.random.random() < 0.5}


def _report(both: Both, _pair: Pair) -> Any:
    counted = {"names": ["renewal", "renewal"], "labels": ["1", "sum"], "values": [1.0, 0.5]}
    return statements.REPORT, {**both.common, **counted}


OPERATIONS: list[tuple[str, Draw]] = [
    *[("TAKE_PLACE", _take_place), ("AWAIT_LOCK", _await_lock), ("AWAIT_LOCK", _await_lock)],
    *[("MINT_TERM", _mint)] * 4,
    ("RENEW", _renewal(statements.RENEW)),
    ("RENEW_TRANSACTION", _renewal(election_statements.RENEW)),
    ("RELEASE", _renewal(statements.RELEASE)),
    ("ANNOUNCE", _announce),
    *[("REGISTER", _register)] * 2,
    ("RETIRE", lambda both, _pair: (statements.RETIRE, {**both.common, "entries": [both.entry]})),
    *[("CLAIM", _claim)] * 5,
    *[("SETTLE", _settle)] * 2,
    ("ENTRIES", _plain_statement(statements.ENTRIES)),
    ("CLAIMED", _plain_statement(statements.CLAIMED, limit=3)),
    ("PRUNE", _prune),
    ("RUNNING", _plain_statement(statements.RUNNING, entries=list(ENTRIES), keys=[run_key(e) for e in ENTRIES])),
    *[("TRY_RUN", _run(statements.TRY_RUN)), ("END_RUN", _run(statements.END_RUN))],
    *[("HAS_FINISHED", _task(statements.HAS_FINISHED)), ("FINISH", _task(statements.FINISH))],
    ("SKIP", _skip),
    *[("NOTIFY", _notify)] * 4,
    *[("WAITING", _waiting)] * 2,
    ("IS_ANY_WAITING", lambda both, _pair: (statements.IS_ANY_WAITING, _awake(both))),
    ("NEWEST", _plain_statement(statements.NEWEST)),
    *[("LIE_DOWN", _lie_down)] * 2,
    ("GET_UP", _plain_statement(statements.GET_UP)),
    ("ORDERS", _node(statements.ORDERS)),
    ("REPORT", _report),
    ("PREFERRED", _node(statements.PREFERRED)),
    ("IN_LINE", _node(statements.IN_LINE)),
    (
        "PREFER",
        lambda both, pair: _node(statements.PREFER, next_node=both.random.choice(NODES), seconds=0.0)(both, pair),
    ),
    ("WITHDRAW", _node(statements.WITHDRAW)),
    ("FORGET_NODES", _plain_statement(statements.FORGET_NODES)),
]


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_both_agree(database: str, seed: int) -> None:
    """In every result, in who waits for whom, and in what is there at the end."""
    with open_session(database, "pgleader test", unresponsive_after=5) as session:
        Schema(session).ensure()
    with ExitStack() as stack:
        both = Both(database, seed, stack)
        both.elect()
        for _ in range(LENGTH):
            both.step()
        both.compare_all()


def test_a_lock_that_was_granted_twice_is_handed_on_wholly(database: str) -> None:
    """A slice may be over in the moment in which the lock is granted; the next one then has it granted again."""
    with open_session(database, "pgleader test", unresponsive_after=5) as session:
        Schema(session).ensure()
        for _ in range(2):
            session.execute(
                election_statements.AWAIT_LOCK.format(
                    slice=sql.Literal("20ms"), key=KEY.as_arguments(), name=sql.Literal("pgleader leader a")
                )
            )
        place = place_key(CONFIG, 1).as_arguments()
        parameters = {**KEPT, "classid": KEY.classid, "objid": KEY.objid, "objsubid": KEY.objsubid}
        row = session.execute(statements.MINT_TERM.format(place=place), parameters).fetchone()
        assert row is not None
        assert row[0] is None
        held = session.execute("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
        assert held.fetchone() == (0,)


def test_who_shares_a_row_goes_before_who_waits_to_write_it(database: str) -> None:
    """If it is to write it itself, and had to wait for another who shared it."""
    lock = Lock(lambda owner: owner, fair=False)
    assert [lock.request(owner, SHARE).granted for owner in "ab"] == [True, True]
    waiting, mine = lock.request("c", EXCLUSIVE), lock.request("b", EXCLUSIVE)
    lock.release("a", SHARE)
    assert (waiting.granted, mine.granted) == (False, True)

    write, share = "update counted set number = number + 1", "select from counted for share"
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(database, autocommit=True) as db,
        psycopg.connect(database) as a,
        psycopg.connect(database) as b,
        psycopg.connect(database) as c,
    ):
        db.execute("create table counted as select 0 as number")
        a.execute(share)
        b.execute(share)
        their_write = pool.submit(c.execute, write)
        eventually(lambda: _waits(db, c))
        own_write = pool.submit(b.execute, write)
        eventually(lambda: _waits(db, b))
        a.commit()
        own_write.result(PATIENCE)
        assert not their_write.done()
        b.commit()
        their_write.result(PATIENCE)


def _waits(db: psycopg.Connection[Any], session: psycopg.Connection[Any]) -> bool:
    row = db.execute("select count(*) from pg_locks where not granted and pid = %s", [session.info.backend_pid])
    return row.fetchone() == (1,)
