"""What each statement of the package does, for the simulated Postgres.

`tests/integration/test_twins.py` runs the same sequences of statements here and on a real server, and compares.
A twin gets the transaction, the statement's parameters, and the numbers and texts that are put into its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from inspect import isgeneratorfunction
from types import SimpleNamespace
from typing import Any, TypeAlias, TypeVar

from psycopg import sql

from celery_pgleader.election import sql as of_election
from celery_pgleader.store import sql as of_store
from tests.simulation.postgres import (
    SHARE,
    TABLES,
    AdvisoryKey,
    LockNotAvailable,
    Row,
    Rows,
    Steps,
    Transaction,
    Waits,
)

T = TypeVar("T")
Twin: TypeAlias = Callable[..., Steps]
Tx: TypeAlias = Transaction
P: TypeAlias = SimpleNamespace

# By their names, and the names by how the statements begin.
TWINS: dict[str, Twin] = {}
NAMES: dict[str, str] = {}
# What `deadlock_timeout` is set to, which says how long slices are.
DEADLOCK_TIMEOUT = 1.0


def name_of(query: str | sql.Composable) -> str:
    """Return the name of a statement's twin."""
    head = _head(query)
    if head not in NAMES:
        raise NotImplementedError(f"the simulated Postgres knows no such statement:\n{head}")
    return NAMES[head]


def begin(transaction: Transaction, query: str | sql.Composable, parameters: dict[str, Any]) -> Steps:
    """Begin a statement."""
    transaction.begin_statement()
    arguments = _literals(query) if type(query) is sql.Composed else ()
    return TWINS[name_of(query)](transaction, SimpleNamespace(**parameters), *arguments)


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


def twin(statement: str | sql.SQL, name: str = "") -> Callable[[T], T]:
    """Make a function the twin of a statement: a generator, or what returns its rows at once."""
    head = statement if isinstance(statement, str) else _head(statement).partition("{")[0]

    def register(function: Any) -> Any:
        def at_once(*arguments: Any) -> Steps:
            rows: Rows = function(*arguments)
            return rows
            yield

        NAMES[head] = name or function.__name__
        TWINS[NAMES[head]] = function if isgeneratorfunction(function) else at_once
        return function

    return register


def key_of(*arguments: int) -> AdvisoryKey:
    """Return an advisory lock's key as `pg_locks` shows it."""
    if len(arguments) == 1:
        return arguments[0] >> 32 & 0xFFFFFFFF, arguments[0] & 0xFFFFFFFF, 1
    return arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, 2


def unnest(p: P, prefix: str, columns: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(getattr(p, f"{prefix}{column}") for column in columns.split()), strict=True)


def like(p: P, *columns: str, **values: Any) -> Callable[[Row], bool]:
    """Return what tells whether a row has the values of these parameters, and those."""
    values |= {column: getattr(p, column) for column in columns}
    return lambda row: all(row[column] == value for column, value in values.items())


def each(rows: list[Row]) -> Rows:
    """Return what `returning 1` does."""
    return [(1,)] * len(rows)


# The election's.


@twin(of_election.GREET)
def greet_election(tx: Tx, p: P) -> Rows:
    tx.session.idle_timeout = p.idle_ms / 1000
    return [(180_000, False, DEADLOCK_TIMEOUT)]


@twin(of_election.TAKE_PLACE)
def take_place(tx: Tx, p: P, *keys: int) -> Rows:
    third = len(keys) // 3
    for place in (1, 2, 3) if p.asked_for else (1, 2):
        if tx.session.try_lock(key_of(*keys[(place - 1) * third : place * third])):
            tx.session.idle_timeout = p.ttl_ms / 1000
            return [(place, f"{p.ttl_ms}ms")]
    return [(None, None)]


@twin(of_election.AWAIT_LOCK)
def await_lock(tx: Tx, _p: P, lock_timeout: str, *key_and_name: Any) -> Steps:
    *key, name = key_and_name
    request = tx.session.lock(key_of(*key))
    if not request.granted:
        request.timeout = int(lock_timeout.removesuffix("ms")) / 1000
        try:
            yield request
        except LockNotAvailable:
            request.withdraw()
            return []
    tx.session.application_name = name
    return []


@twin(of_election.MINT_TERM)
def mint_transaction(tx: Tx, p: P, *place: int) -> Rows:
    if not _holds_lock(tx, p):
        return []
    tx.database.xid += 1
    return [(tx.database.xid, tx.session.pid, tx.session.unlock(key_of(*place)), 0)]


def _holds_lock(tx: Tx, p: P) -> bool:
    return tx.session.holds((p.classid, p.objid, p.objsubid))


def _still_holds(tx: Tx, p: P) -> bool:
    return _holds_lock(tx, p) and tx.session.pid == p.backend_pid


# Terms.

ORDERLESS = {"paused_at": None, "held_at": None, "cordoned": (), "resign_at": None, "resign_to": None}
ORDERLESS |= {"resign_term": None, "next_node": None, "next_until": None}


def _election(tx: Tx, p: P) -> Row | None:
    return tx.view("elections").get(p.election)


def _is_latest(tx: Tx, p: P) -> bool:
    election = _election(tx, p)
    return election is not None and election["term"] == p.term


@twin(of_store.MINT_TERM)
def mint(tx: Tx, p: P, *keys: int) -> Steps:
    session, place, now = tx.session, key_of(*keys), tx.database.clock()
    if not _holds_lock(tx, p):
        return []
    known = _election(tx, p)
    may_lead = p.may_lead and not (known is not None and _is_kept_from(known, p.node, now))
    if not may_lead or _fuller(tx, p):
        session.application_name, session.idle_timeout = p.follower, p.idle_ms / 1000
        return [(None, session.pid, session.unlock(place), p.follower, f"{p.idle_ms}ms", session.let_go())]
    highest = max((number for election, number in tx.view("terms") if election == p.election), default=0)
    yield None
    new = {"election": p.election, "term": max(highest + 1, p.least_term), "node": p.node, **ORDERLESS}

    def follow(known: Row) -> Row:
        kept = {name: known[name] for name in ("paused_at", "held_at", "cordoned")}
        if known["resign_at"] is not None and known["resign_at"] > tx.database.clock():
            kept |= {name: known[name] for name in ("resign_at", "resign_to", "resign_term")}
        return {**new, **kept, "term": max(known["term"] + 1, new["term"])}

    term = (yield from tx.upsert("elections", new, follow))["term"]
    yield from tx.update(
        "terms", like(p, "election", ended_at=None), {"ended_at": tx.database.clock(), "reason": "lost"}
    )
    begun = {"node": p.node, "backend_pid": session.pid, "ended_at": None, "reason": None}
    yield from tx.insert("terms", {"election": p.election, "term": term, **begun})
    return [(term, session.pid, session.unlock(place), None, None, None)]


def _is_kept_from(election: Row, node: str, now: Any) -> bool:
    other = election["next_node"] not in {None, node}
    return (
        election["held_at"] is not None
        or node in election["cordoned"]
        or (other and election["next_until"] is not None and election["next_until"] > now)
    )


def _fuller(tx: Tx, p: P) -> list[Row]:
    """Return the nodes that have all entries of this one's schedule and more."""
    if p.entries is None:
        return []
    return [node for node in _standing(tx, p) if node["entries"] is not None and {*node["entries"]} > {*p.entries}]


def _standing(tx: Tx, p: P) -> list[Row]:
    election = _election(tx, p)
    return [
        node
        for node in tx.view("nodes").values()
        if election is not None
        and node["election"] == p.election
        and node["stands_back"] is None
        and node["node"] not in election["cordoned"]
        and _is_present(tx, node)
    ]


def _is_present(tx: Tx, node: Row) -> bool:
    session = tx.database.sessions.get(node["backend_pid"])
    return session is not None and session.application_name.startswith("pgleader ")


@twin(of_store.RELEASE)
def release(tx: Tx, p: P) -> Steps:
    ended = {"reason": p.reason, "ended_at": tx.database.clock()}
    yield from tx.update("terms", like(p, "election", "term", ended_at=None), ended)
    return [(tx.session.let_go(),)]


# The ledger's.


def fence(tx: Tx, p: P) -> Waits[Row | None]:
    """Return the election's row if a term is the latest, and keep it so until the end of the transaction."""
    tx.fenced = p.election, p.term
    if not _is_latest(tx, p):
        return None
    yield None
    yield from tx.lock_row("elections", p.election, SHARE)
    row = tx.latest("elections", p.election)
    return row if row is not None and row["term"] == p.term else None


@twin(of_store.ENTRIES)
def entries(tx: Tx, p: P) -> Rows:
    election = _election(tx, p)
    if election is None:
        return []
    return [
        (
            *(row[name] for name in ("entry", "task", "schedule", "anchor", "since", "last_slot")),
            row["retired_at"] is not None,
            row["next_slot"],
            row["paused_at"] is not None or election["paused_at"] is not None,
        )
        for row in tx.view("entries").values()
        if row["election"] == p.election
    ]


NEW_ENTRY = {"last_slot": None, "last_run_at": None, "run_count": 0, "paused_at": None}


@twin(of_store.REGISTER)
def register(tx: Tx, p: P) -> Steps:
    if not (yield from fence(tx, p)):
        return []
    for values in unnest(p, "", "entries tasks schedules anchors sinces next_slots"):
        new = dict(zip(("entry", "task", "schedule", "anchor", "since", "next_slot"), values, strict=True))
        new |= {"election": p.election, "retired_at": None}
        yield from tx.upsert("entries", NEW_ENTRY | new, new.__ror__)
    return each(p.entries)


@twin(of_store.RETIRE)
def retire(tx: Tx, p: P) -> Steps:
    def is_gone(row: Row) -> bool:
        return row["election"] == p.election and row["entry"] in p.entries and row["retired_at"] is None

    # A statement that finds nothing to write does not come to lock the term.
    if not any(map(is_gone, tx.view("entries").values())) or not (yield from fence(tx, p)):
        return []
    return each((yield from tx.update("entries", is_gone, {"retired_at": tx.database.clock()})))


@twin(of_store.CLAIM)
def claim(tx: Tx, p: P) -> Steps:
    election = yield from fence(tx, p)
    if not election:
        return [(0, [])]
    now = tx.database.clock()
    wanted = {entry: wish for entry, *wish in unnest(p, "", "entries oldest newest nexts runs paused")}

    def is_open(row: Row) -> bool:
        if row["election"] != p.election or row["entry"] not in wanted:
            return False
        oldest, *_, paused = wanted[row["entry"]]
        is_paused = election["paused_at"] is not None or row["paused_at"] is not None
        return bool(max(row["since"], row["last_slot"] or row["since"]) < oldest) and is_paused == paused

    def advance(row: Row) -> Row:
        _, newest, following, runs, _ = wanted[row["entry"]]
        last_run_at, run_count = now if runs else row["last_run_at"], row["run_count"] + runs
        return row | {
            "last_slot": newest,
            "next_slot": following,
            "last_run_at": last_run_at,
            "run_count": run_count,
        }

    claimed = [row["entry"] for row in (yield from tx.update("entries", is_open, advance))]
    columns = "slots throughs counts states reasons task_ids"
    for entry, slot, through, slots, state, reason, task_id in unnest(p, "row_", f"entries {columns}"):
        if entry in claimed:
            row = {"election": p.election, "entry": entry, "slot": slot, "through": through, "slots": slots}
            row |= {"state": state, "reason": reason, "term": p.term, "task_id": task_id}
            yield from tx.insert_if_absent("slots", row | {"settled_at": now if state != "claimed" else None})
    return [(1, claimed)]


@twin(of_store.SETTLE)
def settle(tx: Tx, p: P) -> Steps:
    tx.durable = False
    outcomes = {(entry, slot): rest for entry, slot, *rest in unnest(p, "", "entries slots states reasons")}

    def is_due(row: Row) -> bool:
        return row["election"] == p.election and row["state"] == "claimed" and (row["entry"], row["slot"]) in outcomes

    def close(row: Row) -> Row:
        state, reason = outcomes[row["entry"], row["slot"]]
        return row | {"state": state, "reason": reason or row["reason"], "settled_at": tx.database.clock()}

    return each((yield from tx.update("slots", is_due, close, order=TABLES["slots"])))


@twin(of_store.CLAIMED)
def claimed(tx: Tx, p: P) -> Rows:
    rows = [row for row in tx.view("slots").values() if row["election"] == p.election and row["state"] == "claimed"]
    return [(row["entry"], row["slot"], row["term"]) for row in sorted(rows, key=_slot_of)[: p.limit]]


def _slot_of(row: Row) -> Any:
    return row["slot"]


@twin(of_store.PRUNE)
def prune(tx: Tx, p: P) -> Steps:
    before = tx.database.clock() - timedelta(seconds=p.seconds)

    def is_old(row: Row) -> bool:
        old = row["election"] == p.election and row["state"] != "claimed" and row["slot"] < before
        return old and row["through"] < before and tx.has_free("slots", TABLES["slots"](row))

    def has_ended(row: Row) -> bool:
        return row["election"] == p.election and row["ended_at"] is not None and row["ended_at"] < before

    slots = yield from tx.update("slots", is_old, order=_slot_of, limit=p.limit)
    yield from tx.update("terms", has_ended)
    yield from tx.update("finished", lambda row: row["finished_at"] < before, limit=p.limit)
    return each(slots)


# Runs.


@twin(of_store.TRY_TURN)
def try_turn(tx: Tx, p: P, *key: int) -> Rows:
    tx.session.idle_timeout = p.ttl_ms / 1000
    return [(tx.session.try_lock(key_of(*key)), f"{p.ttl_ms}ms")]


@twin(of_store.STAY)
def stay(tx: Tx, _p: P) -> Rows:
    tx.session.idle_timeout = None
    return [("0", "15", "5", "3")]


@twin(of_store.RELAY)
def relay(tx: Tx, _p: P) -> Rows:
    tx.session.durable = False
    return [("off", "force_generic_plan", "off", "off")]


@twin(of_store.FINISH)
def finish(tx: Tx, p: P) -> Steps:
    row = {"task_id": p.task_id, "finished_at": tx.database.clock()}
    return [(1,)] if (yield from tx.insert_if_absent("finished", row)) else []


@twin(of_store.SKIP)
def skip(tx: Tx, p: P) -> Steps:
    is_it = like(p, "election", "entry", "slot")
    skipped = {"state": "skipped", "reason": p.reason, "settled_at": tx.database.clock()}
    is_open = ("claimed", "published")
    return each((yield from tx.update("slots", lambda row: is_it(row) and row["state"] in is_open, skipped)))


# Durable notifications.


# `pgleader.notify` and docs/adr/0013-sleep.md tell what they are for.
ASLEEP, ON_THE_WAY = (1885826128, 0, 2), (1885826128, 1, 2)


@twin(of_store.NOTIFY)
def notify(tx: Tx, p: P) -> Steps:
    database, session = tx.database, tx.session
    database.sequence += 1
    row = {"id": database.sequence, "uid": database.draw_uuid(), "channel": p.channel, "key": p.key}
    row |= {"payload": p.payload, "sent_at": database.clock(), "attempts": 0, "error": None}
    yield from tx.insert("notifications", row)
    yield None
    nobody_sleeps = False
    if tx.try_lock(ON_THE_WAY, SHARE):
        yield None
        nobody_sleeps = session.try_lock(ASLEEP)
        if nobody_sleeps:
            session.unlock(ASLEEP)
    if not nobody_sleeps:
        tx.notified.add("pgleader")
    return [("",)]


@twin(of_store.LIE_DOWN)
def lie_down(tx: Tx, p: P) -> Steps:
    session = tx.session
    if not session.try_lock(ASLEEP, SHARE):
        return [(False,)]
    yield None
    if session.try_lock(ON_THE_WAY):
        return [(session.unlock(ON_THE_WAY),)]
    return [(False if p.lightly else not session.unlock(ASLEEP, SHARE),)]


def _is_awake(row: Row, p: P) -> bool:
    rests = row["id"] in p.resting or (row["channel"], row["key"]) in unnest(p, "rest_", "channels keys")
    return row["channel"] in p.channels and not rests


@twin(of_store.WAITING)
def waiting(tx: Tx, p: P) -> Rows:
    if not _is_latest(tx, p):
        return []
    rows = sorted(tx.view("notifications").values(), key=TABLES["notifications"])
    keyed = [(row["channel"], row["key"]) for row in rows]
    awake = [
        row
        for place, row in enumerate(rows)
        if row["id"] > p.after
        and _is_awake(row, p)
        and not (p.alone and row["key"] is not None and keyed[place] in keyed[:place])
    ]
    found: Rows = []
    size = 0
    for row in awake[: p.limit]:
        if size >= p.bytes:
            break
        size += len(row["payload"])
        values = (row[name] for name in ("id", "uid", "channel", "key", "payload", "attempts"))
        found.append((*values, min(len(awake), p.limit)))
    return found


@twin(of_store.DISPATCHED)
def dispatched(tx: Tx, p: P) -> Steps:
    if not (yield from fence(tx, p)):
        return []
    yield from tx.update("notifications", lambda row: row["id"] in p.ids)
    return [(1,)]


@twin(of_store.TRIED)
def tried(tx: Tx, p: P) -> Steps:
    if not (yield from fence(tx, p)):
        return []
    yield from tx.update("notifications", like(p, "id"), lambda row: _failed(row, p))
    return [(1,)]


@twin(of_store.BURY)
def bury(tx: Tx, p: P) -> Steps:
    if not (yield from fence(tx, p)):
        return []
    for row in (yield from tx.update("notifications", like(p, "id"))):
        yield from tx.insert("dead_letters", _failed(row, p))
    return [(1,)]


def _failed(row: Row, p: P) -> Row:
    return row | {"attempts": row["attempts"] + 1, "error": p.error}


@twin(of_store.LISTEN)
def listen(tx: Tx, _p: P) -> Rows:
    tx.session.channels.add("pgleader")
    return []


# Nodes, and what operators order.


@twin(of_store.ANNOUNCE)
def announce(tx: Tx, p: P) -> Steps:
    election, fuller = _election(tx, p), bool(_fuller(tx, p))
    said = {"backend_pid": tx.session.pid, "stands_back": p.stands_back, "seen_at": tx.database.clock()}
    kept = {name: getattr(p, name) for name in ("election", "node", "instance", "entries", "priority", "started_at")}
    yield from tx.upsert("nodes", kept | said, lambda known: known | said)
    if election is None:
        return [(fuller, False)]
    kept_back = election["held_at"] is not None or p.node in election["cordoned"]
    return [(kept_back or fuller, p.node in {election["resign_to"], election["next_node"]})]


@twin(of_store.LISTEN_FOR_ORDERS)
def listen_for_orders(tx: Tx, _p: P) -> Rows:
    tx.session.channels.add("pgleader_orders")
    return []


@twin(of_store.ORDERS)
def orders(tx: Tx, p: P) -> Rows:
    row = _election(tx, p)
    if row is None or row["term"] != p.term:
        return []
    at = row["resign_at"] if row["resign_term"] in {None, p.term} else None
    resign_in = max(0.0, (at - tx.database.clock()).total_seconds()) if at is not None else None
    return [(resign_in, row["resign_to"], p.node in row["cordoned"])]


@twin(of_store.REPORT)
def report(tx: Tx, p: P) -> Steps:
    """Note that the leader is there. What is counted holds up nobody, and is read by no statement of a worker."""
    seen = yield from tx.update("terms", like(p, "election", "term", ended_at=None), {})
    return [("",)] * len(p.names) if seen else []


@twin(of_store.PREFERRED)
def preferred(tx: Tx, p: P) -> Rows:
    election = _election(tx, p)

    def first(nodes: list[Row], *, fuller: bool) -> Rows:
        nodes = sorted(nodes, key=lambda node: (-node["priority"], node["started_at"]))
        return [(node["node"], fuller) for node in nodes[:1]]

    higher = [
        node
        for node in _standing(tx, p)
        if election is not None
        and node["priority"] > p.priority
        and election["held_at"] is None
        and (node["entries"] is None or p.entries is None or {*node["entries"]} >= {*p.entries})
    ]
    return first(_fuller(tx, p), fuller=True) + first(higher, fuller=False)


@twin(of_store.IN_LINE)
def in_line(tx: Tx, p: P) -> Rows:
    places = [(place, p.place_objid, 2) for place in range(p.first_place, p.last_place + 1)]
    sessions = [
        tx.database.sessions[row["backend_pid"]]
        for row in tx.view("nodes").values()
        if (row["election"], row["node"]) == (p.election, p.node) and _is_present(tx, row)
    ]
    return [(any(session.holds(place) for session in sessions for place in places),)]


@twin(of_store.PREFER)
def prefer(tx: Tx, p: P) -> Steps:
    if not (yield from fence(tx, p)):
        return []
    following = {"next_node": p.next_node, "next_until": tx.database.clock() + timedelta(seconds=p.seconds)}
    return each((yield from tx.update("elections", like(p, "election"), following)))


@twin(of_store.WITHDRAW)
def withdraw(tx: Tx, p: P) -> Steps:
    nothing = {"resign_at": None, "resign_to": None, "resign_term": None}
    return each((yield from tx.update("elections", like(p, "election", "term"), nothing)))


@twin(of_store.FORGET_NODES)
def forget_nodes(tx: Tx, p: P) -> Steps:
    before = tx.database.clock() - timedelta(days=1)

    def is_gone(row: Row) -> bool:
        return row["election"] == p.election and row["seen_at"] < before and not _is_present(tx, row)

    return each((yield from tx.update("nodes", is_gone)))


# Those that are an expression.
for _name, _statement, _rows in [
    ("renew_transaction", of_election.RENEW, lambda tx, p: [(1,)] * _still_holds(tx, p)),
    ("release_transaction", of_election.RELEASE, lambda tx, _p: [(tx.session.let_go(),)]),
    ("renew", of_store.RENEW, lambda tx, p: [(1,)] * (_still_holds(tx, p) and _is_latest(tx, p))),
    ("timeline", of_store.TIMELINE, lambda _tx, _p: [(1,)]),
    ("greet_ledger", of_store.GREET, lambda _tx, _p: []),
    ("clock", of_store.CLOCK, lambda tx, _p: [(tx.database.clock().timestamp(),)]),
    (
        "running",
        of_store.RUNNING,
        lambda tx, p: [
            (entry,) for entry, key in unnest(p, "", "entries keys") if tx.database.advisory[key_of(key)].held
        ],
    ),
    ("sign_of_life", "select 1", lambda _tx, _p: [(1,)]),
    ("try_run", of_store.TRY_RUN, lambda tx, p: [(tx.session.try_lock(key_of(p.key)),)]),
    ("end_run", of_store.END_RUN, lambda tx, p: [(tx.session.unlock(key_of(p.key)),)]),
    ("has_finished", of_store.HAS_FINISHED, lambda tx, p: [(p.task_id in tx.view("finished"),)]),
    ("get_up", of_store.GET_UP, lambda tx, _p: [(tx.session.let_go(),)]),
    (
        "is_any_waiting",
        of_store.IS_ANY_WAITING,
        lambda tx, p: [(_is_latest(tx, p) and any(_is_awake(row, p) for row in tx.view("notifications").values()),)],
    ),
    ("newest", of_store.NEWEST, lambda tx, _p: [(max(tx.view("notifications"), default=0),)]),
]:
    twin(_statement, _name)(_rows)
