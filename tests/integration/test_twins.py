"""The simulated Postgres does what the real one does: with the same statements, by several sessions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
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
from tests.simulation.postgres import EXCLUSIVE, SHARE, Database, LockNotAvailable, Request, Steps
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
# What no statement of the package reads, which is not simulated.
LEFT_OUT = BY_CHANCE | {"schedule", "app_version", "package_version", "clock_skew"}


class Pair:
    """A session with each of the two."""

    def __init__(self, number: int, real: Session, simulated: SimSession, pool: ThreadPoolExecutor) -> None:
        """Begin with both open."""
        self.number = number
        self.node = NODES[number % 2]
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

    def start(self, query: Any, parameters: dict[str, Any]) -> None:
        """Have a statement executed by both, each with a number of its own for the session."""
        transaction = self.simulated.transaction or self.simulated.begin()
        self._steps = twins.begin(transaction, query, {**parameters, "backend_pid": self.simulated.pid})
        self.go_on()
        self.future = self._pool.submit(self._execute, query, parameters)

    def _execute(self, query: Any, parameters: dict[str, Any]) -> list[Any]:
        cursor = self.real.execute(query, {**parameters, "backend_pid": self.real.info.backend_pid})
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

    def begin(self) -> None:
        """Begin a transaction that goes beyond a statement, in both."""
        self.real.execute("begin")
        self.in_transaction = True

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
            self.pairs.append(Pair(number, real, self.simulated.connect(name), pool))
        self.log: list[str] = []

    def elect(self) -> None:
        """Have the first session gain a term, so that there is one to write for."""
        for name in ("TAKE_PLACE", "AWAIT_LOCK", "MINT_TERM"):
            first = {"place": place_key(CONFIG, 1), "term": 1, "may_lead": True, "entries": None}
            self.execute(self.pairs[0], name, first)

    def execute(self, pair: Pair, name: str, given: dict[str, Any]) -> None:
        operation = OPERATIONS[name]
        drawn = {**_parameters(self, pair), **operation.parameters(self.random), **given}
        query = operation.query
        if isinstance(query, sql.SQL):
            keys = {"first": place_key(CONFIG, 1), "second": place_key(CONFIG, 2), "kept": place_key(CONFIG, 3)}
            keys |= {"key": KEY, "place": drawn.pop("place")}
            literals = {"slice": sql.Literal("20ms"), "name": sql.Literal(f"pgleader leader {pair.node}")}
            query = query.format(**{name: key.as_arguments() for name, key in keys.items()}, **literals)
        text = query if isinstance(query, str) else query.as_string()
        used = {name: value for name, value in drawn.items() if f"%({name})s" in text}
        self.log.append(f"{pair.number}: {name} {used}")
        pair.start(query, used)
        self._compare()

    def contend(self, first: str, second: str, given: dict[str, Any]) -> None:
        """Have a session wait for another that has written to the same row, and go on when that is committed."""
        one, other = self.pairs[:2]
        one.begin()
        self.execute(one, first, given)
        self.execute(other, second, given)
        assert other.waits, "\n".join(self.log)
        one.end(commit=True)
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
            name = random.choice([name for name in DRAWN if not (pair.in_transaction and OPERATIONS[name].alone)])
            if not pair.in_transaction and not OPERATIONS[name].alone and random.random() < 0.3:
                pair.begin()
                self.log.append(f"{pair.number}: begin")
            self.execute(pair, name, {})
            return
        self._compare()

    def _order(self) -> None:
        """Have an operator order something, unless somebody has locked the election's row."""
        column, value = self.random.choice(ORDERS)
        if self.simulated.order("shop", {column: value}):
            self.log.append(f"operator: {column} = {value}")
            query = sql.SQL("update pgleader.elections set {} = %s").format(sql.Identifier(column))
            self.monitor.execute(query, [value])

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
            query = sql.SQL("select * from {}").format(sql.Identifier("pgleader", table))
            with self.monitor.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                real = cursor.execute(query).fetchall()
            assert self._sorted(real) == self._sorted(rows.values()), f"{table}:\n" + "\n".join(self.log)
        assert self._locks() == self._simulated_locks(), "\n".join(self.log)

    def _sorted(self, rows: Any) -> list[Any]:
        plain = [
            {
                name: str(self._name_of(value)) if not isinstance(value, list | tuple) else sorted(value)
                for name, value in sorted(row.items())
                if name not in LEFT_OUT
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
            (self._name_of(owner.session.pid), key, mode)
            for key, lock in self.simulated.advisory.items()
            for owner, mode in lock.held
        }


def _parameters(both: Both, pair: Pair) -> dict[str, Any]:
    """Return what a statement may be told by any name, at random; most are told little of it."""
    random = both.random
    election = both.simulated.tables["elections"].get("shop", {"term": 1})
    # Often of one entry, sometimes of both, in any order.
    entries = random.sample(ENTRIES, random.randint(1, 2))
    slots = [_slot(random) for _ in entries]
    states = [random.choice(("claimed", "claimed", "skipped")) for _ in entries]
    rests = random.sample(("x", "y"), random.randint(0, 1))
    place, number = place_key(CONFIG, 1), random.randint(1, 9)
    # Often of the latest term, sometimes of another.
    drawn: dict[str, Any] = {
        "election": "shop",
        "term": election["term"] if random.random() < 0.8 else random.randint(1, 3),
    }
    drawn |= {"classid": KEY.classid, "objid": KEY.objid, "objsubid": KEY.objsubid}
    drawn |= {"ttl_ms": HOUR, "idle_ms": HOUR, "least_term": 0, "asked_for": random.random() < 0.3}
    drawn |= {"may_lead": random.random() < 0.9, "reason": "resigned", "place": place_key(CONFIG, random.randint(1, 3))}
    # Of the node.
    drawn |= {"node": pair.node, "follower": f"pgleader follower {pair.node}", "instance": UUID(int=pair.number)}
    drawn |= {"stands_back": random.choice((None, None, None, "on hold")), "priority": random.randint(1, 2)}
    drawn |= {"schedule": "1a", "app_version": "", "package_version": "0", "clock": 0.0}
    drawn |= {"started_at": NOON + timedelta(seconds=pair.number)}
    drawn |= {"place_objid": place.objid, "first_place": place.classid, "last_place": place.classid + 2}
    drawn |= {"next_node": random.choice(NODES)}
    drawn |= {"names": ["renewal", "renewal"], "labels": ["1", "sum"], "values": [1.0, 0.5]}
    # Of entries and slots.
    drawn |= {"entry": random.choice(ENTRIES), "slot": _slot(random), "entries": entries, "slots": slots}
    drawn |= {"tasks": ["task"] * len(entries), "schedules": ["every hour"] * len(entries)}
    drawn |= {"anchors": [NOON] * len(entries), "sinces": slots, "next_slots": [None] * len(entries)}
    drawn |= {"oldest": slots, "newest": slots, "nexts": [slot + timedelta(hours=1) for slot in slots]}
    drawn |= {"runs": [int(state == "claimed") for state in states], "paused": [random.random() < 0.1 for _ in entries]}
    drawn |= {"row_entries": entries, "row_slots": slots, "row_throughs": slots, "row_counts": [1] * len(entries)}
    drawn |= {"row_states": states, "row_reasons": [None if state == "claimed" else "missed" for state in states]}
    drawn |= {"row_task_ids": [UUID(int=7)] * len(entries)}
    drawn |= {"states": [random.choice(("published", "expired")) for _ in entries]}
    drawn |= {"reasons": [random.choice((None, "late")) for _ in entries]}
    drawn |= {"task_id": UUID(int=random.randint(1, 3))}
    # Of notifications.
    drawn |= {"channel": random.choice(("orders", "orders", "others")), "payload": "1"}
    drawn |= {"key": random.choice((None, "x", "y")), "id": number, "ids": [number, number + 2], "error": "no"}
    drawn |= {"channels": ["orders"], "resting": [random.randint(1, 9)] if rests else []}
    drawn |= {"rest_channels": ["orders"] * len(rests), "rest_keys": rests}
    drawn |= {"after": random.randint(0, 4), "alone": random.random() < 0.5, "bytes": 4_000_000}
    drawn |= {"limit": random.randint(1, 5), "lightly": random.random() < 0.5}
    return drawn


def _slot(random: Random) -> datetime:
    return NOON + timedelta(hours=random.randint(0, 5))


@dataclass(frozen=True)
class Operation:
    """Something that a session does.

    Attributes:
        query: the statement.
        parameters: those that it is told in another way than most.
        weight: how often it is drawn.
        alone: whether it sets something of its session, which a transaction that is rolled back would undo.

    """

    query: Any
    parameters: Callable[[Random], dict[str, Any]] = lambda _random: {}
    weight: int = 1
    alone: bool = False


def _schedule(random: Random) -> dict[str, Any]:
    return {"entries": random.choice((None, ["one"], ["one", "two"]))}


def _any_node(random: Random) -> dict[str, Any]:
    return {"node": random.choice(NODES)}


def _run(random: Random) -> dict[str, Any]:
    return {"key": run_key(random.choice(ENTRIES))}


OPERATIONS = {
    "TAKE_PLACE": Operation(election_statements.TAKE_PLACE, alone=True),
    "AWAIT_LOCK": Operation(election_statements.AWAIT_LOCK, weight=2, alone=True),
    "MINT_TERM": Operation(statements.MINT_TERM, _schedule, weight=4, alone=True),
    "RENEW": Operation(statements.RENEW),
    "RENEW_TRANSACTION": Operation(election_statements.RENEW),
    "RELEASE": Operation(statements.RELEASE, alone=True),
    "ANNOUNCE": Operation(statements.ANNOUNCE, _schedule),
    "REGISTER": Operation(statements.REGISTER, weight=2),
    "RETIRE": Operation(statements.RETIRE),
    "CLAIM": Operation(statements.CLAIM, weight=5),
    "SETTLE": Operation(statements.SETTLE, weight=2),
    "ENTRIES": Operation(statements.ENTRIES),
    "CLAIMED": Operation(statements.CLAIMED),
    # All slots are in the past by now, and no term is.
    "PRUNE": Operation(statements.PRUNE, lambda random: {"seconds": random.choice((86_400.0, 1e9)), "limit": 2}),
    "RUNNING": Operation(statements.RUNNING, lambda _: {"entries": list(ENTRIES), "keys": [*map(run_key, ENTRIES)]}),
    "TRY_RUN": Operation(statements.TRY_RUN, _run),
    "END_RUN": Operation(statements.END_RUN, _run),
    "HAS_FINISHED": Operation(statements.HAS_FINISHED),
    "FINISH": Operation(statements.FINISH),
    "SKIP": Operation(statements.SKIP),
    "NOTIFY": Operation(statements.NOTIFY, weight=4),
    "WAITING": Operation(statements.WAITING, weight=2),
    "IS_ANY_WAITING": Operation(statements.IS_ANY_WAITING),
    "NEWEST": Operation(statements.NEWEST),
    "DISPATCHED": Operation(statements.DISPATCHED),
    "TRIED": Operation(statements.TRIED),
    "BURY": Operation(statements.BURY),
    "LIE_DOWN": Operation(statements.LIE_DOWN, weight=2),
    "GET_UP": Operation(statements.GET_UP, alone=True),
    "ORDERS": Operation(statements.ORDERS, _any_node),
    "REPORT": Operation(statements.REPORT),
    "PREFERRED": Operation(statements.PREFERRED, _schedule),
    "IN_LINE": Operation(statements.IN_LINE, _any_node),
    "PREFER": Operation(statements.PREFER, lambda _: {"seconds": 0.0}),
    "WITHDRAW": Operation(statements.WITHDRAW),
    "FORGET_NODES": Operation(statements.FORGET_NODES),
}
DRAWN = [name for name, operation in OPERATIONS.items() for _ in range(operation.weight)]


# Pairs of statements of which the second finds another row than it saw, when it has waited for the first.
CONTENDING = [
    *(("CLAIM", "CLAIM"), ("CLAIM", "RETIRE"), ("RETIRE", "CLAIM"), ("RETIRE", "RETIRE"), ("REGISTER", "CLAIM")),
    *(("SETTLE", "SETTLE"), ("SETTLE", "SKIP"), ("SKIP", "SETTLE"), ("SKIP", "SKIP")),
    *(("FINISH", "FINISH"), ("DISPATCHED", "DISPATCHED"), ("DISPATCHED", "BURY"), ("BURY", "TRIED"), ("TRIED", "BURY")),
]


@pytest.mark.parametrize(("first", "second"), CONTENDING)
def test_both_look_again_at_a_row_that_they_have_waited_for(database: str, first: str, second: str) -> None:
    """As READ COMMITTED has it; drawn sequences rarely come to it."""
    slot = NOON + timedelta(hours=1)
    given = {"term": 1, "entries": ["one"], "entry": "one", "slot": slot, "slots": [slot], "sinces": [NOON]}
    given |= {"tasks": ["task"], "schedules": ["every hour"], "anchors": [NOON], "next_slots": [None]}
    given |= {name: [slot] for name in ("oldest", "newest", "nexts", "row_slots", "row_throughs")}
    given |= {"runs": [1], "paused": [False], "row_entries": ["one"], "row_counts": [1], "row_states": ["claimed"]}
    given |= {"row_reasons": [None], "row_task_ids": [UUID(int=7)], "states": ["expired"], "reasons": ["late"]}
    given |= {"channel": "orders", "id": 1, "ids": [1], "task_id": UUID(int=1)}
    with ExitStack() as stack:
        both = _begin(database, 0, stack)
        for name in ("REGISTER", "NOTIFY", *(["CLAIM"] if {first, second} <= {"SETTLE", "SKIP"} else [])):
            both.execute(both.pairs[0], name, given)
        both.contend(first, second, given)
        both.compare_all()


def _begin(database: str, seed: int, stack: ExitStack) -> Both:
    with open_session(database, "pgleader test", unresponsive_after=5) as session:
        Schema(session).ensure()
    both = Both(database, seed, stack)
    both.elect()
    return both


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_both_agree(database: str, seed: int) -> None:
    """In every result, in who waits for whom, and in what is there at the end."""
    with ExitStack() as stack:
        both = _begin(database, seed, stack)
        for _ in range(LENGTH):
            both.step()
        both.compare_all()


def test_a_lock_that_was_granted_twice_is_handed_on_wholly(database: str) -> None:
    """A slice may be over in the moment in which the lock is granted; the next one then has it granted again."""
    with open_session(database, "pgleader test", unresponsive_after=5) as session:
        Schema(session).ensure()
        names = {"slice": sql.Literal("20ms"), "key": KEY.as_arguments(), "name": sql.Literal("pgleader leader a")}
        for _ in range(2):
            session.execute(election_statements.AWAIT_LOCK.format(**names))
        place = place_key(CONFIG, 1).as_arguments()
        parameters = {"election": "shop", "node": "a", "follower": "pgleader follower a", "idle_ms": HOUR}
        parameters |= {"least_term": 0, "may_lead": False, "entries": None}
        parameters |= {"classid": KEY.classid, "objid": KEY.objid, "objsubid": KEY.objsubid}
        row = session.execute(statements.MINT_TERM.format(place=place), parameters).fetchone()
        assert row is not None
        assert row[0] is None
        held = session.execute("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()")
        assert held.fetchone() == (0,)


def test_who_shares_a_row_goes_before_who_waits_to_write_it(database: str) -> None:
    """If it is to write it itself, and had to wait for another who shared it."""
    simulated = Database(datetime.now, lambda: None)
    lock, sessions = simulated.rows["counted", 0], [simulated.connect() for _ in "abc"]
    assert [lock.request(session, SHARE).granted for session in sessions[:2]] == [True, True]
    waiting, mine = lock.request(sessions[2], EXCLUSIVE), lock.request(sessions[1], EXCLUSIVE)
    lock.release(sessions[0], SHARE)
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
