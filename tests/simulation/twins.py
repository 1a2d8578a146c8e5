"""What each statement of the package does, for the simulated Postgres.

`tests/integration/test_twins.py` runs the same sequences of statements here and on a real server, and compares.
A twin is told the parameters as they are executed with, and the numbers and texts that are put into the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

from psycopg import sql

from celery_pgleader.election import sql as of_election
from celery_pgleader.store import sql as of_store
from tests.simulation.postgres import SHARE, TABLES, AdvisoryKey, LockNotAvailable, Row, Rows, Steps, Transaction, Waits

# What `deadlock_timeout` is set to, which says how long slices are.
DEADLOCK_TIMEOUT = 1.0

ORDERLESS = {"paused_at": None, "held_at": None, "cordoned": (), "resign_at": None, "resign_to": None}
ORDERLESS |= {"resign_term": None, "next_node": None, "next_until": None}
NEW_ENTRY = {"last_slot": None, "last_run_at": None, "run_count": 0, "paused_at": None}

# `pgleader.notify` and docs/adr/0013-sleep.md tell what they are for.
ASLEEP, ON_THE_WAY = (1885826128, 0, 2), (1885826128, 1, 2)


class Twin:
    """A statement that is executed."""

    def __init__(self, tx: Transaction, parameters: dict[str, Any]) -> None:
        """Prepare."""
        self.tx = tx
        self.session = tx.session
        self.database = tx.database
        self.p = SimpleNamespace(**parameters)

    def unnest(self, prefix: str, columns: str) -> Iterator[tuple[Any, ...]]:
        return zip(*(getattr(self.p, f"{prefix}{column}") for column in columns.split()), strict=True)

    def like(self, *columns: str, **values: Any) -> Callable[[Row], bool]:
        """Return what tells whether a row has the values of these parameters, and those."""
        values |= {column: getattr(self.p, column) for column in columns}
        return lambda row: all(row[column] == value for column, value in values.items())

    def _holds_lock(self) -> bool:
        return self.session.holds((self.p.classid, self.p.objid, self.p.objsubid))

    def _still_holds(self) -> bool:
        return self._holds_lock() and self.session.pid == self.p.backend_pid

    def _election(self) -> Row | None:
        return self.tx.view("elections").get(self.p.election)

    def _is_latest(self) -> bool:
        election = self._election()
        return election is not None and election["term"] == self.p.term

    def _is_kept_from(self, election: Row) -> bool:
        kept_free = election["next_node"] not in {None, self.p.node} and election["next_until"] is not None
        ordered = election["held_at"] is not None or self.p.node in election["cordoned"]
        return ordered or (kept_free and election["next_until"] > self.database.clock())

    def _fuller(self) -> list[Row]:
        """Return the nodes that have all entries of this one's schedule and more."""
        if self.p.entries is None:
            return []
        nodes = [node for node in self._standing() if node["entries"] is not None]
        return [node for node in nodes if {*node["entries"]} > {*self.p.entries}]

    def _standing(self) -> list[Row]:
        election = self._election()
        return [
            node
            for node in self.tx.view("nodes").values()
            if election is not None
            and node["election"] == self.p.election
            and node["stands_back"] is None
            and node["node"] not in election["cordoned"]
            and self._is_present(node)
        ]

    def _is_present(self, node: Row) -> bool:
        session = self.database.sessions.get(node["backend_pid"])
        return session is not None and session.application_name.startswith("pgleader ")


class OfElection(Twin):
    """Those of the election; each is the method of its name in lower case."""

    def greet(self) -> Rows:
        self.session.idle_timeout = self.p.idle_ms / 1000
        return [(180_000, False, DEADLOCK_TIMEOUT)]

    def take_place(self, *keys: int) -> Rows:
        third = len(keys) // 3
        for place in (1, 2, 3) if self.p.asked_for else (1, 2):
            if self.session.try_lock(key_of(*keys[(place - 1) * third : place * third])):
                self.session.idle_timeout = self.p.ttl_ms / 1000
                return [(place, f"{self.p.ttl_ms}ms")]
        return [(None, None)]

    def await_lock(self, lock_timeout: str, *key_and_name: Any) -> Steps:
        *key, name = key_and_name
        request = self.session.lock(key_of(*key))
        if not request.granted:
            request.timeout = int(lock_timeout.removesuffix("ms")) / 1000
            try:
                yield request
            except LockNotAvailable:
                request.withdraw()
                return []
        self.session.application_name = name
        return []

    def renew(self) -> Rows:
        return [(1,)] if self._still_holds() else []


class OfStore(Twin):
    """Those of the store, likewise."""

    # Terms.

    def mint_term(self, *keys: int) -> Steps:
        p, session, place = self.p, self.session, key_of(*keys)
        if not self._holds_lock():
            return []
        known = self._election()
        may_lead = p.may_lead and not (known is not None and self._is_kept_from(known))
        if not may_lead or self._fuller():
            session.application_name, session.idle_timeout = p.follower, p.idle_ms / 1000
            return [(None, session.pid, session.unlock(place), p.follower, f"{p.idle_ms}ms", session.let_go())]
        highest = max((number for election, number in self.tx.view("terms") if election == p.election), default=0)
        yield None
        new = {"election": p.election, "term": max(highest + 1, p.least_term), "node": p.node, **ORDERLESS}

        def follow(known: Row) -> Row:
            kept = {name: known[name] for name in ("paused_at", "held_at", "cordoned")}
            if known["resign_at"] is not None and known["resign_at"] > self.database.clock():
                kept |= {name: known[name] for name in ("resign_at", "resign_to", "resign_term")}
            return {**new, **kept, "term": max(known["term"] + 1, new["term"])}

        term = (yield from self.tx.upsert("elections", new, follow))["term"]
        lost = {"ended_at": self.database.clock(), "reason": "lost"}
        yield from self.tx.update("terms", self.like("election", ended_at=None), lost)
        begun = {"node": p.node, "backend_pid": session.pid, "ended_at": None, "reason": None}
        yield from self.tx.insert("terms", {"election": p.election, "term": term, **begun})
        return [(term, session.pid, session.unlock(place), None, None, None)]

    def timeline(self) -> Rows:
        return [(1,)]

    def renew(self) -> Rows:
        return [(1,)] if self._still_holds() and self._is_latest() else []

    def release(self) -> Steps:
        ended = {"reason": self.p.reason, "ended_at": self.database.clock()}
        yield from self.tx.update("terms", self.like("election", "term", ended_at=None), ended)
        return [(self.session.let_go(),)]

    # The ledger's.

    def greet(self) -> Rows:
        return []

    def clock(self) -> Rows:
        return [(self.database.clock().timestamp(),)]

    def fence(self) -> Waits[Row | None]:
        """Return the election's row if a term is the latest, and keep it so until the end of the transaction."""
        self.tx.fenced = self.p.election, self.p.term
        if not self._is_latest():
            return None
        yield None
        yield from self.tx.lock_row("elections", self.p.election, SHARE)
        row = self.tx.latest("elections", self.p.election)
        return row if row is not None and row["term"] == self.p.term else None

    def entries(self) -> Rows:
        election = self._election()
        if election is None:
            return []
        return [
            (
                *(row[name] for name in ("entry", "task", "schedule", "anchor", "since", "last_slot")),
                row["retired_at"] is not None,
                row["next_slot"],
                row["paused_at"] is not None or election["paused_at"] is not None,
            )
            for row in self.tx.view("entries").values()
            if row["election"] == self.p.election
        ]

    def register(self) -> Steps:
        if not (yield from self.fence()):
            return []
        for values in self.unnest("", "entries tasks schedules anchors sinces next_slots"):
            new = dict(zip(("entry", "task", "schedule", "anchor", "since", "next_slot"), values, strict=True))
            new |= {"election": self.p.election, "retired_at": None}
            yield from self.tx.upsert("entries", NEW_ENTRY | new, new.__ror__)
        return each(self.p.entries)

    def retire(self) -> Steps:
        def is_gone(row: Row) -> bool:
            return row["election"] == self.p.election and row["entry"] in self.p.entries and row["retired_at"] is None

        # A statement that finds nothing to write does not come to lock the term.
        if not any(map(is_gone, self.tx.view("entries").values())) or not (yield from self.fence()):
            return []
        return each((yield from self.tx.update("entries", is_gone, {"retired_at": self.database.clock()})))

    def claim(self) -> Steps:
        election = yield from self.fence()
        if not election:
            return [(0, [])]
        now = self.database.clock()
        wanted = {entry: wish for entry, *wish in self.unnest("", "entries oldest newest nexts runs paused")}

        def is_open(row: Row) -> bool:
            if row["election"] != self.p.election or row["entry"] not in wanted:
                return False
            oldest, *_, paused = wanted[row["entry"]]
            is_paused = election["paused_at"] is not None or row["paused_at"] is not None
            return bool(max(row["since"], row["last_slot"] or row["since"]) < oldest) and is_paused == paused

        def advance(row: Row) -> Row:
            _, newest, following, runs, _ = wanted[row["entry"]]
            last_run_at, run_count = now if runs else row["last_run_at"], row["run_count"] + runs
            changes = {"last_slot": newest, "next_slot": following}
            return row | changes | {"last_run_at": last_run_at, "run_count": run_count}

        claimed = [row["entry"] for row in (yield from self.tx.update("entries", is_open, advance))]
        columns = "slots throughs counts states reasons task_ids"
        for entry, slot, through, slots, state, reason, task_id in self.unnest("row_", f"entries {columns}"):
            if entry in claimed:
                row = {"election": self.p.election, "entry": entry, "slot": slot, "through": through, "slots": slots}
                row |= {"state": state, "reason": reason, "term": self.p.term, "task_id": task_id}
                yield from self.tx.insert_if_absent("slots", row | {"settled_at": now if state != "claimed" else None})
        return [(1, claimed)]

    def settle(self) -> Steps:
        self.tx.durable = False
        outcomes = {(entry, slot): rest for entry, slot, *rest in self.unnest("", "entries slots states reasons")}

        is_claimed = self.like("election", state="claimed")

        def is_due(row: Row) -> bool:
            return is_claimed(row) and (row["entry"], row["slot"]) in outcomes

        def close(row: Row) -> Row:
            state, reason = outcomes[row["entry"], row["slot"]]
            return row | {"state": state, "reason": reason or row["reason"], "settled_at": self.database.clock()}

        return each((yield from self.tx.update("slots", is_due, close, order=TABLES["slots"])))

    def claimed(self) -> Rows:
        rows = filter(self.like("election", state="claimed"), self.tx.view("slots").values())
        oldest = sorted(rows, key=itemgetter("slot"))[: self.p.limit]
        return [(row["entry"], row["slot"], row["term"]) for row in oldest]

    def prune(self) -> Steps:
        before = self.database.clock() - timedelta(seconds=self.p.seconds)

        def is_old(row: Row) -> bool:
            old = row["election"] == self.p.election and row["state"] != "claimed" and row["slot"] < before
            return old and row["through"] < before and self.tx.has_free("slots", TABLES["slots"](row))

        def has_ended(row: Row) -> bool:
            return row["election"] == self.p.election and row["ended_at"] is not None and row["ended_at"] < before

        slots = yield from self.tx.update("slots", is_old, order=itemgetter("slot"), limit=self.p.limit)
        yield from self.tx.update("terms", has_ended)
        yield from self.tx.update("finished", lambda row: row["finished_at"] < before, limit=self.p.limit)
        return each(slots)

    # Runs.

    def running(self) -> Rows:
        runs = self.unnest("", "entries keys")
        return [(entry,) for entry, key in runs if self.database.advisory[key_of(key)].held]

    def sign_of_life(self) -> Rows:
        return [(1,)]

    def try_turn(self, *key: int) -> Rows:
        self.session.idle_timeout = self.p.ttl_ms / 1000
        return [(self.session.try_lock(key_of(*key)), f"{self.p.ttl_ms}ms")]

    def stay(self) -> Rows:
        self.session.idle_timeout = None
        return [("0", "15", "5", "3")]

    def relay(self) -> Rows:
        self.session.durable = False
        return [("off", "force_generic_plan", "off", "off")]

    def try_run(self) -> Rows:
        return [(self.session.try_lock(key_of(self.p.key)),)]

    def end_run(self) -> Rows:
        return [(self.session.unlock(key_of(self.p.key)),)]

    def has_finished(self) -> Rows:
        return [(self.p.task_id in self.tx.view("finished"),)]

    def finish(self) -> Steps:
        row = {"task_id": self.p.task_id, "finished_at": self.database.clock()}
        return [(1,)] if (yield from self.tx.insert_if_absent("finished", row)) else []

    def skip(self) -> Steps:
        is_it = self.like("election", "entry", "slot")
        skipped = {"state": "skipped", "reason": self.p.reason, "settled_at": self.database.clock()}
        is_open = ("claimed", "published")
        return each((yield from self.tx.update("slots", lambda row: is_it(row) and row["state"] in is_open, skipped)))

    # Durable notifications.

    def notify(self) -> Steps:
        database, session = self.database, self.session
        database.sequence += 1
        row = {"id": database.sequence, "uid": database.draw_uuid(), "channel": self.p.channel, "key": self.p.key}
        row |= {"payload": self.p.payload, "sent_at": database.clock(), "attempts": 0, "error": None}
        yield from self.tx.insert("notifications", row)
        yield None
        nobody_sleeps = False
        if self.tx.try_lock(ON_THE_WAY, SHARE):
            yield None
            nobody_sleeps = session.try_lock(ASLEEP)
            if nobody_sleeps:
                session.unlock(ASLEEP)
        if not nobody_sleeps:
            self.tx.notified.add("pgleader")
        return [("",)]

    def lie_down(self) -> Steps:
        session = self.session
        if not session.try_lock(ASLEEP, SHARE):
            return [(False,)]
        yield None
        if session.try_lock(ON_THE_WAY):
            return [(session.unlock(ON_THE_WAY),)]
        return [(False if self.p.lightly else not session.unlock(ASLEEP, SHARE),)]

    def get_up(self) -> Rows:
        return [(self.session.let_go(),)]

    def is_any_waiting(self) -> Rows:
        return [(self._is_latest() and any(map(self._is_awake, self.tx.view("notifications").values())),)]

    def newest(self) -> Rows:
        return [(max(self.tx.view("notifications"), default=0),)]

    def _is_awake(self, row: Row) -> bool:
        rests = row["id"] in self.p.resting or (row["channel"], row["key"]) in self.unnest("rest_", "channels keys")
        return row["channel"] in self.p.channels and not rests

    def waiting(self) -> Rows:
        if not self._is_latest():
            return []
        rows = sorted(self.tx.view("notifications").values(), key=TABLES["notifications"])
        keyed = [(row["channel"], row["key"]) for row in rows]
        awake = [
            row
            for place, row in enumerate(rows)
            if row["id"] > self.p.after
            and self._is_awake(row)
            and not (self.p.alone and row["key"] is not None and keyed[place] in keyed[:place])
        ]
        found: Rows = []
        size = 0
        for row in awake[: self.p.limit]:
            if size >= self.p.bytes:
                break
            size += len(row["payload"])
            values = (row[name] for name in ("id", "uid", "channel", "key", "payload", "attempts"))
            found.append((*values, min(len(awake), self.p.limit)))
        return found

    def dispatched(self) -> Steps:
        if not (yield from self.fence()):
            return []
        yield from self.tx.update("notifications", lambda row: row["id"] in self.p.ids)
        return [(1,)]

    def tried(self) -> Steps:
        if not (yield from self.fence()):
            return []
        yield from self.tx.update("notifications", self.like("id"), self._failed)
        return [(1,)]

    def bury(self) -> Steps:
        if not (yield from self.fence()):
            return []
        for row in (yield from self.tx.update("notifications", self.like("id"))):
            yield from self.tx.insert("dead_letters", self._failed(row))
        return [(1,)]

    def _failed(self, row: Row) -> Row:
        return row | {"attempts": row["attempts"] + 1, "error": self.p.error}

    def listen(self) -> Rows:
        self.session.channels.add("pgleader")
        return []

    # Nodes, and what operators order.

    def announce(self) -> Steps:
        election, fuller = self._election(), bool(self._fuller())
        said = {"backend_pid": self.session.pid, "stands_back": self.p.stands_back, "seen_at": self.database.clock()}
        kept = ("election", "node", "instance", "entries", "priority", "started_at")
        new = {name: getattr(self.p, name) for name in kept} | said
        yield from self.tx.upsert("nodes", new, lambda known: known | said)
        if election is None:
            return [(fuller, False)]
        kept_back = election["held_at"] is not None or self.p.node in election["cordoned"]
        return [(kept_back or fuller, self.p.node in {election["resign_to"], election["next_node"]})]

    def listen_for_orders(self) -> Rows:
        self.session.channels.add("pgleader_orders")
        return []

    def orders(self) -> Rows:
        row = self._election()
        if row is None or row["term"] != self.p.term:
            return []
        at = row["resign_at"] if row["resign_term"] in {None, self.p.term} else None
        resign_in = max(0.0, (at - self.database.clock()).total_seconds()) if at is not None else None
        return [(resign_in, row["resign_to"], self.p.node in row["cordoned"])]

    def report(self) -> Steps:
        """Note that the leader is there. What is counted holds up nobody, and is read by no statement of a worker."""
        seen = yield from self.tx.update("terms", self.like("election", "term", ended_at=None), {})
        return [("",)] * len(self.p.names) if seen else []

    def preferred(self) -> Rows:
        election = self._election()

        def first(nodes: list[Row], *, fuller: bool) -> Rows:
            nodes = sorted(nodes, key=lambda node: (-node["priority"], node["started_at"]))
            return [(node["node"], fuller) for node in nodes[:1]]

        higher = [
            node
            for node in self._standing()
            if election is not None
            and node["priority"] > self.p.priority
            and election["held_at"] is None
            and (node["entries"] is None or self.p.entries is None or {*node["entries"]} >= {*self.p.entries})
        ]
        return first(self._fuller(), fuller=True) + first(higher, fuller=False)

    def in_line(self) -> Rows:
        places = [(place, self.p.place_objid, 2) for place in range(self.p.first_place, self.p.last_place + 1)]
        sessions = [
            self.database.sessions[row["backend_pid"]]
            for row in self.tx.view("nodes").values()
            if (row["election"], row["node"]) == (self.p.election, self.p.node) and self._is_present(row)
        ]
        return [(any(session.holds(place) for session in sessions for place in places),)]

    def prefer(self) -> Steps:
        if not (yield from self.fence()):
            return []
        until = self.database.clock() + timedelta(seconds=self.p.seconds)
        following = {"next_node": self.p.next_node, "next_until": until}
        return each((yield from self.tx.update("elections", self.like("election"), following)))

    def withdraw(self) -> Steps:
        nothing = {"resign_at": None, "resign_to": None, "resign_term": None}
        return each((yield from self.tx.update("elections", self.like("election", "term"), nothing)))

    def forget_nodes(self) -> Steps:
        before = self.database.clock() - timedelta(days=1)

        def is_gone(row: Row) -> bool:
            return row["election"] == self.p.election and row["seen_at"] < before and not self._is_present(row)

        return each((yield from self.tx.update("nodes", is_gone)))


def key_of(*arguments: int) -> AdvisoryKey:
    """Return an advisory lock's key as `pg_locks` shows it."""
    if len(arguments) == 1:
        return arguments[0] >> 32 & 0xFFFFFFFF, arguments[0] & 0xFFFFFFFF, 1
    return arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, 2


def each(rows: list[Row]) -> Rows:
    """Return what `returning 1` does."""
    return [(1,)] * len(rows)


# By the very types, since psycopg's are abstract ones, and looking them up takes its time.
def _head(query: Any) -> Any:
    if type(query) is str:
        return query
    return query._obj[0]._obj if type(query) is sql.Composed else query._obj  # noqa: SLF001 - nothing else tells


def _literals(query: Any) -> Iterator[Any]:
    for part in query._obj:  # noqa: SLF001 - nothing else tells
        if type(part) is sql.Composed:
            yield from _literals(part)
        elif type(part) is sql.Literal:
            yield part._obj  # noqa: SLF001 - the same


# By how they begin, up to what is put in.
TWINS: dict[str, tuple[type[Twin], str]] = {
    _head(statement).partition("{")[0]: (twin, name.lower())
    for module, twin in ((of_election, OfElection), (of_store, OfStore))
    for name, statement in vars(module).items()
    if name.isupper() and name.lower() in vars(twin)
}
TWINS["select 1"] = OfStore, "sign_of_life"


def name_of(query: str | sql.Composable) -> str:
    """Return a statement's name."""
    head = query if type(query) is str else _head(query)
    if head not in TWINS:
        raise NotImplementedError(f"the simulated Postgres knows no such statement:\n{head}")
    return TWINS[head][1]


def begin(transaction: Transaction, query: str | sql.Composable, parameters: dict[str, Any]) -> Steps:
    """Begin a statement."""
    transaction.begin_statement()
    twin, name = TWINS[query if type(query) is str else _head(query)]
    arguments = _literals(query) if type(query) is sql.Composed else ()
    steps = getattr(twin(transaction, parameters), name)(*arguments)
    return _at_once(steps) if type(steps) is list else steps


def _at_once(rows: Rows) -> Steps:
    return rows
    yield
