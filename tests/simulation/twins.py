"""What each statement of the package does, for the simulated Postgres.

`tests/integration/test_twins.py` runs the same sequences of statements here and on a real server, and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from psycopg import sql

from celery_pgleader.election import sql as election_statements
from celery_pgleader.store import sql as store_statements
from tests.simulation.postgres import SHARE, LockNotAvailable, Row, Steps, Transaction

Twin = Callable[..., Steps]

TWINS: dict[str, tuple[str, Twin]] = {}
# What `deadlock_timeout` is set to, which says how long slices are.
DEADLOCK_TIMEOUT = 1.0


def twin_of(query: str | sql.Composable) -> tuple[str, Twin]:
    """Return a statement's name and its twin."""
    head = query if type(query) is str else _head(query)
    found = TWINS.get(head)
    if found is None:
        raise NotImplementedError(f"the simulated Postgres knows no such statement:\n{head}")
    return found


def arguments_of(query: str | sql.Composable) -> list[Any]:
    """Return what was put into a statement's text, in order."""
    return list(_literals(query)) if type(query) is sql.Composed else []


def _head(query: Any) -> Any:
    return query._obj[0]._obj if type(query) is sql.Composed else query._obj  # noqa: SLF001 - nothing else tells


def _literals(query: Any) -> Iterator[Any]:
    # By the very types, since psycopg's are abstract ones, and looking them up takes its time.
    for part in query._obj:  # noqa: SLF001 - nothing else tells
        if type(part) is sql.Composed:
            yield from _literals(part)
        elif type(part) is sql.Literal:
            yield part._obj  # noqa: SLF001 - the same


def twin(statement: str | sql.SQL) -> Callable[[Twin], Twin]:
    """Make a function the twin of a statement."""
    head = statement if isinstance(statement, str) else str(statement._obj).partition("{")[0]  # noqa: SLF001 - as above

    def register(function: Twin) -> Twin:
        TWINS[head] = function.__name__, function
        return function

    return register


def find(name: str) -> Twin:
    """Return a twin by its name."""
    return next(function for known, function in TWINS.values() if known == name)


def substitute(name: str, function: Twin) -> Callable[[], None]:
    """Have a statement do something else, until what is returned is called."""
    head = next(head for head, (known, _) in TWINS.items() if known == name)
    before = TWINS[head]
    TWINS[head] = name, function
    return lambda: TWINS.__setitem__(head, before)


def key_of(*arguments: int) -> tuple[int, int, int]:
    """Return an advisory lock's key as `pg_locks` shows it."""
    if len(arguments) == 1:
        return arguments[0] >> 32 & 0xFFFFFFFF, arguments[0] & 0xFFFFFFFF, 1
    return arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, 2


# The election's.


@twin(election_statements.GREET)
def greet_election(tx: Transaction, *, idle_ms: int) -> Steps:
    """Set the session up."""
    tx.session.idle_timeout = idle_ms / 1000
    return [(180_000, False, DEADLOCK_TIMEOUT)]
    yield


@twin(election_statements.TAKE_PLACE)
def take_place(tx: Transaction, *keys: int, ttl_ms: int, asked_for: bool) -> Steps:
    """Take the first place that is free."""
    third = len(keys) // 3
    for place in (1, 2, 3) if asked_for else (1, 2):
        if tx.session.try_lock(key_of(*keys[(place - 1) * third : place * third])):
            tx.session.idle_timeout = ttl_ms / 1000
            return [(place, f"{ttl_ms}ms")]
    return [(None, None)]
    yield


@twin(election_statements.AWAIT_LOCK)
def await_lock(tx: Transaction, lock_timeout: str, *key_and_name: Any) -> Steps:
    """Wait for the lock."""
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


@twin(election_statements.MINT_TERM)
def mint_transaction(tx: Transaction, *place: int, **p: Any) -> Steps:
    """Take a transaction number for a term."""
    if not tx.database.holds(tx.session, _lock_key(p)):
        return []
    tx.database.xid += 1
    return [(tx.database.xid, tx.session.pid, tx.session.unlock(key_of(*place)), 0)]
    yield


@twin(election_statements.RENEW)
def renew_transaction(tx: Transaction, **p: Any) -> Steps:
    """Look whether the lock is held."""
    held = tx.database.holds(tx.session, _lock_key(p)) and tx.session.pid == p["backend_pid"]
    return [(1,)] if held else []
    yield


@twin(election_statements.RELEASE)
def release_transaction(tx: Transaction, **_: Any) -> Steps:
    """Let go of all locks."""
    tx.session.unlock_all()
    return [("",)]
    yield


# Terms.


ORDERLESS = {"paused_at": None, "held_at": None, "cordoned": (), "resign_at": None, "resign_to": None}
ORDERLESS |= {"resign_term": None, "next_node": None, "next_until": None}


@twin(store_statements.MINT_TERM)
def mint(tx: Transaction, *keys: int, **p: Any) -> Steps:
    """Count a term, and write it down; or hand the lock on."""
    election, node, session = p["election"], p["node"], tx.session
    place = key_of(*keys)
    seen, terms, now = tx.view("elections").get(election), tx.view("terms"), tx.database.clock()
    if not tx.database.holds(session, _lock_key(p)):
        return []
    may_lead = p["may_lead"] and not (seen is not None and _is_kept_from(seen, node, now))
    if not may_lead or _fuller(tx, election, p["entries"]):
        session.application_name, session.idle_timeout = p["follower"], p["idle_ms"] / 1000
        return [(None, session.pid, session.unlock(place), p["follower"], f"{p['idle_ms']}ms", session.unlock_all())]
    highest = max((term for name, term in terms if name == election), default=0)
    yield None
    yield from tx.lock_row("elections", election)
    known, now = tx.latest("elections", election), tx.database.clock()
    term = max(highest + 1, p["least_term"])
    row = {"term": term, "node": node, "gained_at": now, **ORDERLESS}
    if known is not None:
        row |= {"term": max(known["term"] + 1, term)}
        row |= {name: known[name] for name in ("paused_at", "held_at", "cordoned")}
        if known["resign_at"] is not None and known["resign_at"] > now:
            row |= {name: known[name] for name in ("resign_at", "resign_to", "resign_term")}
    tx.write("elections", election, row)
    for former in [known for known, old in terms.items() if known[0] == election and old["ended_at"] is None]:
        yield from tx.lock_row("terms", former)
        old = tx.latest("terms", former)
        if old is not None and old["ended_at"] is None:
            tx.write("terms", former, {**old, "ended_at": now, "reason": "lost"})
    begun = {"node": node, "backend_pid": session.pid, "gained_at": now, "ended_at": None, "reason": None}
    yield from tx.insert("terms", (election, row["term"]), begun)
    return [(row["term"], session.pid, session.unlock(place), None, None, None)]


def _is_kept_from(election: Row, node: str, now: Any) -> bool:
    other = election["next_node"] not in {None, node}
    return (
        election["held_at"] is not None
        or node in election["cordoned"]
        or (other and election["next_until"] is not None and election["next_until"] > now)
    )


def _fuller(tx: Transaction, election: str, entries: list[str] | None) -> list[Row]:
    row = tx.view("elections").get(election)
    if row is None or entries is None:
        return []
    return [
        node
        for node in _standing(tx, election, row)
        if node["entries"] is not None and set(node["entries"]) > set(entries)
    ]


def _standing(tx: Transaction, election: str, row: Row) -> list[Row]:
    return [
        node
        for key, node in tx.view("nodes").items()
        if key[0] == election
        and node["stands_back"] is None
        and node["node"] not in row["cordoned"]
        and _is_present(tx, node)
    ]


def _is_present(tx: Transaction, node: Row) -> bool:
    session = tx.database.sessions.get(node["backend_pid"])
    return session is not None and session.application_name.startswith("pgleader ")


@twin(store_statements.TIMELINE)
def timeline(tx: Transaction) -> Steps:
    """Tell how often the server was promoted."""
    return [(1,)]
    yield


@twin(store_statements.RENEW)
def renew(tx: Transaction, **p: Any) -> Steps:
    """Look whether the lock is held, and the term is the latest."""
    row = tx.view("elections").get(p["election"])
    held = tx.database.holds(tx.session, _lock_key(p)) and tx.session.pid == p["backend_pid"]
    return [(1,)] if held and row is not None and row["term"] == p["term"] else []
    yield


@twin(store_statements.RELEASE)
def release(tx: Transaction, **p: Any) -> Steps:
    """Write down that the term is over, and let go of all locks."""
    key = p["election"], p["term"]
    row = tx.view("terms").get(key)
    if row is not None and row["ended_at"] is None:
        yield from tx.lock_row("terms", key)
        row = tx.latest("terms", key)
        if row is not None and row["ended_at"] is None:
            tx.write("terms", key, {**row, "ended_at": tx.database.clock(), "reason": p["reason"]})
    tx.session.unlock_all()
    return [("",)]


# The ledger's.


@twin(store_statements.GREET)
def greet_ledger(tx: Transaction, **_: Any) -> Steps:
    """Set the session up."""
    return []
    yield


@twin(store_statements.CLOCK)
def clock(tx: Transaction) -> Steps:
    """Return the server's time."""
    return [(tx.database.clock().timestamp(),)]
    yield


def fence(tx: Transaction, election: str, term: int) -> Any:
    """Return the election's row if a term is the latest, and keep it so until the end of the transaction."""
    tx.fenced = election, term
    row = tx.view("elections").get(election)
    if row is None or row["term"] != term:
        return None
    yield None
    yield from tx.lock_row("elections", election, SHARE)
    row = tx.latest("elections", election)
    return row if row is not None and row["term"] == term else None


@twin(store_statements.ENTRIES)
def entries(tx: Transaction, *, election: str, **_: Any) -> Steps:
    """Read what is known of entries."""
    known = tx.view("elections").get(election)
    if known is None:
        return []
    columns = ("task", "schedule", "anchor", "since", "last_slot")
    return [
        (
            entry,
            *(row[name] for name in columns),
            row["retired_at"] is not None,
            row["next_slot"],
            row["paused_at"] is not None or known["paused_at"] is not None,
        )
        for (name, entry), row in tx.view("entries").items()
        if name == election
    ]
    yield


NEW_ENTRY = {"last_slot": None, "last_run_at": None, "run_count": 0, "paused_at": None}


@twin(store_statements.REGISTER)
def register(tx: Transaction, *, election: str, term: int, **p: Any) -> Steps:
    """Write entries."""
    if not (yield from fence(tx, election, term)):
        return []
    columns = ("tasks", "schedules", "anchors", "sinces", "next_slots")
    for entry, task, schedule, anchor, since, following in zip(
        p["entries"], *(p[column] for column in columns), strict=True
    ):
        yield from tx.lock_row("entries", (election, entry))
        known = tx.latest("entries", (election, entry)) or NEW_ENTRY
        row = {"task": task, "schedule": schedule, "anchor": anchor, "since": since, "retired_at": None}
        tx.write("entries", (election, entry), {**known, **row, "next_slot": following})
    return [(1,)] * len(p["entries"])


@twin(store_statements.RETIRE)
def retire(tx: Transaction, *, election: str, term: int, entries: list[str]) -> Steps:
    """Write down that entries are gone."""
    gone = [
        key
        for key, row in tx.view("entries").items()
        if key[0] == election and key[1] in entries and row["retired_at"] is None
    ]
    if not gone or not (yield from fence(tx, election, term)):
        return []
    found: list[tuple[Any, ...]] = []
    for key in gone:
        yield from tx.lock_row("entries", key)
        latest = tx.latest("entries", key)
        if latest is not None and latest["retired_at"] is None:
            tx.write("entries", key, {**latest, "retired_at": tx.database.clock()})
            found.append((1,))
    return found


@twin(store_statements.CLAIM)
def claim(tx: Transaction, *, election: str, term: int, **p: Any) -> Steps:
    """Claim slots."""
    seen = tx.view("entries")
    fenced = yield from fence(tx, election, term)
    if not fenced:
        return [(0, [])]
    now = tx.database.clock
    claimed = []
    columns = ("entries", "oldest", "newest", "nexts", "runs", "paused")
    for entry, oldest, newest, following, runs, paused in zip(*(p[column] for column in columns), strict=True):
        key = election, entry

        def is_open(row: Row | None, oldest: Any = oldest, paused: Any = paused) -> bool:
            is_paused = row is not None and (fenced["paused_at"] is not None or row["paused_at"] is not None)
            return row is not None and _is_open(row, oldest) and is_paused == paused

        if not is_open(seen.get(key)):
            continue
        yield from tx.lock_row("entries", key)
        row = tx.latest("entries", key)
        if row is not None and is_open(row):
            last_run_at = now() if runs else row["last_run_at"]
            changes = {"last_slot": newest, "next_slot": following, "last_run_at": last_run_at}
            tx.write("entries", key, {**row, **changes, "run_count": row["run_count"] + runs})
            claimed.append(entry)
    rows = ("entries", "slots", "throughs", "counts", "states", "reasons", "task_ids")
    for entry, slot, through, slots, state, reason, task_id in zip(*(p[f"row_{name}"] for name in rows), strict=True):
        if entry in claimed:
            settled_at = now() if state != "claimed" else None
            row = {"through": through, "slots": slots, "state": state, "reason": reason, "term": term}
            row |= {"task_id": task_id, "settled_at": settled_at}
            yield from tx.insert_if_absent("slots", (election, entry, slot), row)
    return [(1, claimed)]


def _is_open(entry: Row, oldest: Any) -> bool:
    since, last = entry["since"], entry["last_slot"]
    return bool((since if last is None else max(since, last)) < oldest)


@twin(store_statements.SETTLE)
def settle(tx: Transaction, *, election: str, **p: Any) -> Steps:
    """Write down what became of slots."""
    tx.durable = False
    seen = tx.view("slots")
    settled: list[tuple[Any, ...]] = []
    outcomes = zip(p["entries"], p["slots"], p["states"], p["reasons"], strict=True)
    for entry, slot, state, reason in sorted(outcomes, key=lambda outcome: outcome[:2]):
        key = election, entry, slot
        if key in seen and seen[key]["state"] == "claimed":
            yield from tx.lock_row("slots", key)
            row = tx.latest("slots", key)
            if row is not None and row["state"] == "claimed":
                changes = {"state": state, "reason": reason or row["reason"], "settled_at": tx.database.clock()}
                tx.write("slots", key, {**row, **changes})
                settled.append((1,))
    return settled


@twin(store_statements.CLAIMED)
def claimed(tx: Transaction, *, election: str, limit: int, **_: Any) -> Steps:
    """Read what is claimed."""
    found = [
        (entry, slot, row["term"])
        for (name, entry, slot), row in tx.view("slots").items()
        if name == election and row["state"] == "claimed"
    ]
    return sorted(found, key=lambda row: row[1])[:limit]
    yield


@twin(store_statements.PRUNE)
def prune(tx: Transaction, *, election: str, seconds: float, limit: int, **_: Any) -> Steps:
    """Forget what is old."""
    before = tx.database.clock() - timedelta(seconds=seconds)
    old = [
        key
        for key, row in sorted(tx.view("slots").items(), key=lambda item: item[0][2])
        if key[0] == election
        and row["state"] != "claimed"
        and key[2] < before
        and row["through"] < before
        and tx.has_free("slots", key)
    ]
    ended = [
        key
        for key, row in tx.view("terms").items()
        if key[0] == election and row["ended_at"] is not None and row["ended_at"] < before
    ]
    finished = [key for key, row in tx.view("finished").items() if row["finished_at"] < before]
    for table, keys in (("slots", old[:limit]), ("terms", ended), ("finished", finished[:limit])):
        for key in keys:
            yield from tx.lock_row(table, key)
            tx.write(table, key, None)
    return [(1,)] * len(old[:limit])


# Runs.


@twin(store_statements.RUNNING)
def running(tx: Transaction, *, entries: list[str], keys: list[int], **_: Any) -> Steps:
    """Tell which runs go on."""
    held = [entry for entry, key in zip(entries, keys, strict=True) if _is_held(tx, key_of(key))]
    return [(entry,) for entry in held]
    yield


def _is_held(tx: Transaction, key: tuple[int, int, int]) -> bool:
    lock = tx.database.advisory.get(key)
    return lock is not None and bool(lock.held)


@twin(store_statements.TRY_TURN)
def try_turn(tx: Transaction, *key: int, ttl_ms: int) -> Steps:
    """Take the turn to run leader-only tasks."""
    tx.session.idle_timeout = ttl_ms / 1000
    return [(tx.session.try_lock(key_of(*key)), f"{ttl_ms}ms")]
    yield


@twin("select 1")
def sign_of_life(_tx: Transaction) -> Steps:
    """Do nothing, but be heard."""
    return [(1,)]
    yield


@twin(store_statements.STAY)
def stay(tx: Transaction) -> Steps:
    """Set the session up."""
    tx.session.idle_timeout = None
    return [("0", "15", "5", "3")]
    yield


@twin(store_statements.RELAY)
def relay(tx: Transaction) -> Steps:
    """Have the session not wait for the disk."""
    tx.session.durable = False
    return [("off", "force_generic_plan", "off", "off")]
    yield


@twin(store_statements.TRY_RUN)
def try_run(tx: Transaction, *, key: int) -> Steps:
    """Begin a run."""
    return [(tx.session.try_lock(key_of(key)),)]
    yield


@twin(store_statements.END_RUN)
def end_run(tx: Transaction, *, key: int) -> Steps:
    """End a run."""
    return [(tx.session.unlock(key_of(key)),)]
    yield


@twin(store_statements.HAS_FINISHED)
def has_finished(tx: Transaction, *, task_id: str) -> Steps:
    """Look whether a task has ended."""
    return [(task_id in tx.view("finished"),)]
    yield


@twin(store_statements.FINISH)
def finish(tx: Transaction, *, task_id: str) -> Steps:
    """Write down that a task has ended."""
    new = yield from tx.insert_if_absent("finished", task_id, {"finished_at": tx.database.clock()})
    return [(1,)] if new else []


@twin(store_statements.SKIP)
def skip(tx: Transaction, *, election: str, entry: str, slot: Any, reason: str) -> Steps:
    """Write down that a slot was not run."""
    key = election, entry, slot
    row = tx.view("slots").get(key)
    if row is None or row["state"] not in {"claimed", "published"}:
        return []
    yield from tx.lock_row("slots", key)
    row = tx.latest("slots", key)
    if row is None or row["state"] not in {"claimed", "published"}:
        return []
    tx.write("slots", key, {**row, "state": "skipped", "reason": reason, "settled_at": tx.database.clock()})
    return [(1,)]


# Durable notifications.


# `pgleader.notify` and docs/adr/0013-sleep.md tell what they are for.
ASLEEP, ON_THE_WAY = (1885826128, 0, 2), (1885826128, 1, 2)


@twin(store_statements.NOTIFY)
def notify(tx: Transaction, *, channel: str, payload: str, key: str | None) -> Steps:
    """Write a notification, and wake the leader when that is committed, if it sleeps."""
    database, session = tx.database, tx.session
    database.sequence += 1
    row = {"uid": database.draw_uuid(), "channel": channel, "key": key, "payload": payload, "attempts": 0}
    yield from tx.insert("notifications", database.sequence, {**row, "sent_at": database.clock(), "error": None})
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


@twin(store_statements.LIE_DOWN)
def lie_down(tx: Transaction, *, lightly: bool, **_: Any) -> Steps:
    """Ask for wake-ups."""
    session = tx.session
    if not session.try_lock(ASLEEP, SHARE):
        return [(False,)]
    yield None
    if session.try_lock(ON_THE_WAY):
        return [(session.unlock(ON_THE_WAY),)]
    return [(False if lightly else not session.unlock(ASLEEP, SHARE),)]


@twin(store_statements.GET_UP)
def get_up(tx: Transaction, **_: Any) -> Steps:
    """Have senders spare their wake-ups."""
    tx.session.unlock_all()
    return [("",)]
    yield


@twin(store_statements.IS_ANY_WAITING)
def is_any_waiting(tx: Transaction, *, election: str, term: int, **p: Any) -> Steps:
    """Look whether something waits."""
    if not _is_latest(tx, election, term):
        return [(False,)]
    return [(any(_is_awake(number, row, p) for number, row in tx.view("notifications").items()),)]
    yield


def _is_latest(tx: Transaction, election: str, term: int) -> bool:
    known = tx.view("elections").get(election)
    return known is not None and known["term"] == term


def _is_awake(number: int, row: Row, p: dict[str, Any]) -> bool:
    rest = set(zip(p["rest_channels"], p["rest_keys"], strict=True))
    awake = row["key"] is None or (row["channel"], row["key"]) not in rest
    return row["channel"] in p["channels"] and number not in p["resting"] and awake


@twin(store_statements.WAITING)
def waiting(tx: Transaction, *, election: str, term: int, **p: Any) -> Steps:
    """Read what waits."""
    if not _is_latest(tx, election, term):
        return []
    seen = tx.view("notifications")
    awake = [
        (number, row)
        for number, row in sorted(seen.items())
        if number > p["after"]
        and _is_awake(number, row, p)
        and not (p["alone"] and row["key"] is not None and _has_older(seen, number, row["channel"], row["key"]))
    ]
    found: list[tuple[Any, ...]] = []
    size = 0
    for number, row in awake[: p["limit"]]:
        if size >= p["bytes"]:
            break
        size += len(row["payload"])
        values = (row[name] for name in ("uid", "channel", "key", "payload", "attempts"))
        found.append((number, *values, min(len(awake), p["limit"])))
    return found
    yield


def _has_older(seen: dict[Any, Row], number: int, channel: str, key: str) -> bool:
    return any(n < number and (row["channel"], row["key"]) == (channel, key) for n, row in seen.items())


@twin(store_statements.NEWEST)
def newest(tx: Transaction, **_: Any) -> Steps:
    """Read the highest id."""
    return [(max(tx.view("notifications"), default=0),)]
    yield


@twin(store_statements.DISPATCHED)
def dispatched(tx: Transaction, *, election: str, term: int, ids: list[int]) -> Steps:
    """Delete what was dispatched."""
    seen = tx.view("notifications")
    if not (yield from fence(tx, election, term)):
        return []
    for number in ids:
        if number in seen:
            yield from tx.lock_row("notifications", number)
            tx.write("notifications", number, None)
    return [(1,)]


@twin(store_statements.TRIED)
def tried(tx: Transaction, *, election: str, term: int, id: int, error: str) -> Steps:  # noqa: A002 - as it is called
    """Count a failure."""
    seen = tx.view("notifications")
    if not (yield from fence(tx, election, term)):
        return []
    if id in seen:
        yield from tx.lock_row("notifications", id)
        row = tx.latest("notifications", id)
        if row is not None:
            tx.write("notifications", id, {**row, "attempts": row["attempts"] + 1, "error": error})
    return [(1,)]


@twin(store_statements.BURY)
def bury(tx: Transaction, *, election: str, term: int, id: int, error: str) -> Steps:  # noqa: A002 - as it is called
    """Make a notification a dead letter."""
    seen = tx.view("notifications")
    if not (yield from fence(tx, election, term)):
        return []
    if id in seen:
        yield from tx.lock_row("notifications", id)
        row = tx.latest("notifications", id)
        if row is not None:
            tx.write("notifications", id, None)
            dead = {**row, "attempts": row["attempts"] + 1, "error": error}
            yield from tx.insert("dead_letters", id, dead)
    return [(1,)]


@twin(store_statements.LISTEN)
def listen(tx: Transaction) -> Steps:
    """Hear wake-ups."""
    tx.session.channels.add("pgleader")
    return []
    yield


# Nodes, and what operators order.


@twin(store_statements.ANNOUNCE)
def announce(tx: Transaction, *, election: str, node: str, **p: Any) -> Steps:
    """Write what a node says of itself; tell it what is ordered."""
    key = election, node, p["instance"]
    known = tx.view("elections").get(election)
    row = {"node": node, "backend_pid": tx.session.pid, "stands_back": p["stands_back"], "seen_at": tx.database.clock()}
    row |= {"entries": p["entries"], "priority": p["priority"], "started_at": p["started_at"]}
    fuller = _fuller(tx, election, p["entries"])
    yield from tx.lock_row("nodes", key)
    before = tx.latest("nodes", key)
    kept = {name: before[name] for name in ("entries", "priority", "started_at")} if before is not None else {}
    tx.write("nodes", key, {**row, **kept})
    if known is None:
        return [(bool(fuller), False)]
    kept_back = known["held_at"] is not None or node in known["cordoned"]
    return [(kept_back or bool(fuller), node in {known["resign_to"], known["next_node"]})]


@twin(store_statements.LISTEN_FOR_ORDERS)
def listen_for_orders(tx: Transaction) -> Steps:
    """Hear wake-ups."""
    tx.session.channels.add("pgleader_orders")
    return []
    yield


@twin(store_statements.ORDERS)
def orders(tx: Transaction, *, election: str, term: int, node: str, **_: Any) -> Steps:
    """Read what is ordered."""
    row = tx.view("elections").get(election)
    if row is None or row["term"] != term:
        return []
    at = row["resign_at"] if row["resign_term"] in {None, term} else None
    resign_in = max(0.0, (at - tx.database.clock()).total_seconds()) if at is not None else None
    return [(resign_in, row["resign_to"], node in row["cordoned"])]
    yield


@twin(store_statements.REPORT)
def report(tx: Transaction, *, election: str, term: int, names: list[str], **_: Any) -> Steps:
    """Note that the leader is there. What is counted holds up nobody, and is read by no statement of a worker."""
    key = election, term
    row = tx.view("terms").get(key)
    if row is None or row["ended_at"] is not None:
        return []
    yield from tx.lock_row("terms", key)
    row = tx.latest("terms", key)
    if row is None or row["ended_at"] is not None:
        return []
    tx.write("terms", key, row)
    return [("",)] * len(names)


@twin(store_statements.PREFERRED)
def preferred(tx: Transaction, *, election: str, entries: list[str] | None, priority: int, **_: Any) -> Steps:
    """Look for a node that should rather lead."""
    row = tx.view("elections").get(election)
    if row is None:
        return []

    def first(nodes: list[Row]) -> list[Row]:
        return sorted(nodes, key=lambda node: (-node["priority"], node["started_at"]))[:1]

    higher = [
        node
        for node in _standing(tx, election, row)
        if node["priority"] > priority
        and row["held_at"] is None
        and (node["entries"] is None or entries is None or set(node["entries"]) >= set(entries))
    ]
    fuller = [(node["node"], True) for node in first(_fuller(tx, election, entries))]
    return [*fuller, *((node["node"], False) for node in first(higher))]
    yield


@twin(store_statements.IN_LINE)
def in_line(tx: Transaction, *, election: str, node: str, **p: Any) -> Steps:
    """Look whether a node holds a place."""
    places = range(p["first_place"], p["last_place"] + 1)
    return [
        (
            any(
                _is_present(tx, row)
                and any(_holds(tx, row["backend_pid"], (place, p["place_objid"], 2)) for place in places)
                for key, row in tx.view("nodes").items()
                if key[:2] == (election, node)
            ),
        )
    ]
    yield


def _holds(tx: Transaction, pid: int, key: tuple[int, int, int]) -> bool:
    session = tx.database.sessions.get(pid)
    return session is not None and tx.database.holds(session, key)


@twin(store_statements.PREFER)
def prefer(tx: Transaction, *, election: str, term: int, next_node: str, seconds: float, **_: Any) -> Steps:
    """Have nobody else elected for a while."""
    if not (yield from fence(tx, election, term)):
        return []
    yield from tx.lock_row("elections", election)
    row = tx.latest("elections", election)
    until = tx.database.clock() + timedelta(seconds=seconds)
    tx.write("elections", election, {**(row or {}), "next_node": next_node, "next_until": until})
    return [(1,)]


@twin(store_statements.WITHDRAW)
def withdraw(tx: Transaction, *, election: str, term: int, **_: Any) -> Steps:
    """Drop an order."""
    row = tx.view("elections").get(election)
    if row is None or row["term"] != term:
        return []
    yield from tx.lock_row("elections", election)
    row = tx.latest("elections", election)
    if row is None or row["term"] != term:
        return []
    tx.write("elections", election, {**row, "resign_at": None, "resign_to": None, "resign_term": None})
    return [(1,)]


@twin(store_statements.FORGET_NODES)
def forget_nodes(tx: Transaction, *, election: str, **_: Any) -> Steps:
    """Forget nodes that are long gone."""
    before = tx.database.clock() - timedelta(days=1)
    gone: list[tuple[Any, ...]] = []
    for key, row in tx.view("nodes").items():
        if key[0] == election and row["seen_at"] < before and not _is_present(tx, row):
            yield from tx.lock_row("nodes", key)
            tx.write("nodes", key, None)
            gone.append((1,))
    return gone


def _lock_key(p: dict[str, Any]) -> tuple[int, int, int]:
    return p["classid"], p["objid"], p["objsubid"]
