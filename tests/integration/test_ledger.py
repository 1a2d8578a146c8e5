"""The ledger: what is claimed is claimed once, for ever, and only by the leader of the latest term."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql

from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector, LockSession, Term
from celery_pgleader.election.state import Phase
from celery_pgleader.postgres import DeadlinePassed, open_session
from celery_pgleader.store import LEDGER_TERMS, Claimed, EntryRecord, Ledger, Outcome, SlotRow, Superseded
from celery_pgleader.store import ledger as module
from celery_pgleader.store import sql as statements
from celery_pgleader.store.runs import entry_key
from tests.support.eventually import eventually

UTC = timezone.utc
PATIENCE = 30.0
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
MINUTE, HOUR, DAY, EPSILON = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
TICK = EntryRecord("shop.tick", "every 0:01:00", NOON, NOON)


class Shop:
    """An election, its database, and whatever leads or claims there."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        """Begin without a leader."""
        self.url = url
        self.config = Config(database_url=url, election="shop", ttl=5)
        self._stack = stack
        self.root = stack.enter_context(psycopg.connect(url, autocommit=True))

    def lead(self, node: str = "a", **settings: Any) -> tuple[LockSession, Term]:
        """Lead a new term; the lock has to be free, or about to be."""
        lock, place = self.stand(node, **settings)
        minted = lock.mint_term(place)
        assert minted is not None
        return lock, Term(minted[0], "shop", node, minted[1])

    def stand(self, node: str, **settings: Any) -> tuple[LockSession, int]:
        """Get the lock, and do not yet mint a term."""
        config = Config(**{"database_url": self.url, "election": "shop", "ttl": 5, **settings})
        lock = LockSession.open(config, node, LEDGER_TERMS)
        self._stack.callback(lock.close)
        place = lock.take_place()
        assert place is not None
        eventually(lambda: lock.await_lock(lambda: False), timeout=PATIENCE)
        return lock, place

    def ledger(self, term: Term, **options: Any) -> Ledger:
        """Return the ledger of a term."""
        made = Ledger(self.config, term, **{"may_act": lambda: True, **options})
        self._stack.callback(made.close)
        return made

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection, to do by hand what a session does; its statements are in transactions."""
        return self._stack.enter_context(psycopg.connect(self.url))

    def rows(self, query: str) -> list[Any]:
        """Return the rows of a query."""
        return self.root.execute(query.encode()).fetchall()

    def await_one_behind(self, holder: psycopg.Connection[Any]) -> None:
        """Wait until a session waits for a lock of another."""
        query = "select from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
        eventually(lambda: self.root.execute(query, [holder.info.backend_pid]).fetchall(), timeout=PATIENCE)


@pytest.fixture
def shop(database: str) -> Iterator[Shop]:
    """Give an election."""
    with ExitStack() as stack:
        yield Shop(database, stack)


class Doing(threading.Thread):
    """Does something that may have to wait, and keeps what comes of it."""

    def __init__(self, do: Callable[[], Any]) -> None:
        """Begin."""
        super().__init__(daemon=True)
        self._do = do
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do it."""
        try:
            self._result = self._do()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is wanted
            self._error = error

    def result(self) -> Any:
        """Wait for what comes of it."""
        self.join(PATIENCE)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


def run_of(entry: str, minute: int) -> SlotRow:
    """Return what is claimed for a slot that is to be run."""
    slot = NOON + minute * MINUTE
    return SlotRow(entry, slot, slot, 1, "claimed", None, str(uuid.uuid4()))


def claim_parameters(term: Term, *rows: SlotRow) -> Mapping[str, Any]:
    """Return the parameters of a claim that is made by hand; for each entry one row."""
    return {
        "election": term.election,
        "term": term.number,
        "entries": [row.entry for row in rows],
        "oldest": [row.slot for row in rows],
        "newest": [row.through for row in rows],
        "runs": [1 for _ in rows],
        "nexts": [None for _ in rows],
        "paused": [False for _ in rows],
        "row_entries": [row.entry for row in rows],
        "row_slots": [row.slot for row in rows],
        "row_throughs": [row.through for row in rows],
        "row_counts": [row.count for row in rows],
        "row_states": [row.state for row in rows],
        "row_reasons": [row.reason for row in rows],
        "row_task_ids": [row.task_id for row in rows],
    }


# Entries and claims


def test_entries_are_remembered(shop: Shop) -> None:
    """As they were registered; again, as they are now, but for what is accounted for."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    assert ledger.entries() == {}
    ledger.register({"tick": TICK, "tock": EntryRecord("shop.tock", "every 1:00:00", NOON, NOON - EPSILON)})
    assert ledger.entries() == {
        "tick": TICK,
        "tock": EntryRecord("shop.tock", "every 1:00:00", NOON, NOON - EPSILON),
    }
    assert ledger.claim([run_of("tick", 1)]) == {"tick"}
    ledger.retire(["tick", "of no such name"])
    gone = ledger.entries()["tick"]
    assert (gone.retired, gone.last_slot) == (True, NOON + MINUTE)
    ledger.register({"tick": EntryRecord("shop.other", "every 0:00:07", NOON + HOUR, NOON + HOUR)})
    assert ledger.entries()["tick"] == EntryRecord(
        "shop.other", "every 0:00:07", NOON + HOUR, NOON + HOUR, last_slot=NOON + MINUTE
    )
    assert ledger.entries()["tick"].accounted_until == NOON + HOUR


def test_slot_is_claimed_once(shop: Shop) -> None:
    """Neither it nor an earlier one can be claimed again; a stretch that begins too early is refused as a whole."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    assert ledger.claim([run_of("tick", 0)]) == set(), "up to here nothing is of concern"
    assert ledger.claim([run_of("tick", 5)]) == {"tick"}
    for minute in (1, 4, 5):
        assert ledger.claim([run_of("tick", minute)]) == set()
    late = SlotRow("tick", NOON + 5 * MINUTE, NOON + 8 * MINUTE, 4, "skipped", "coalesced", None)
    assert ledger.claim([late, run_of("tick", 9)]) == set()
    assert shop.rows("select slot from pgleader.slots") == [(NOON + 5 * MINUTE,)]
    assert ledger.claim([run_of("tick", 6)]) == {"tick"}
    assert shop.rows("select run_count, last_slot from pgleader.entries") == [(2, NOON + 6 * MINUTE)]


def test_slot_is_not_claimed_again_after_pruning(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after its row was pruned, its entry was retired and came back, and by another leader."""
    lock, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    assert ledger.claim([run_of("tick", 1)]) == {"tick"}
    ledger.settle([Outcome("tick", NOON + MINUTE, "published")])
    assert ledger.prune() == 1
    assert shop.rows("select * from pgleader.slots") == []
    assert ledger.claim([run_of("tick", 1)]) == set()
    ledger.retire(["tick"])
    lock.release("stopped")
    _, term = shop.lead("b")
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    assert ledger.claim([run_of("tick", 1)]) == set()
    assert ledger.claim([run_of("tick", 2)]) == {"tick"}


def test_each_entry_is_claimed_on_its_own(shop: Shop) -> None:
    """In one go; one that is refused does not hold up the others. Each row is as it was given."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register(dict.fromkeys(("a", "b", "c"), TICK))
    assert ledger.claim([run_of("b", 3)]) == {"b"}
    run = run_of("a", 3)
    rows = [
        SlotRow("a", NOON + MINUTE, NOON + 2 * MINUTE, 2, "skipped", "coalesced", None),
        run,
        run_of("b", 3),
        SlotRow("c", NOON + MINUTE, NOON + 3 * MINUTE, 3, "expired", "misfire_grace", None),
        run_of("of no such name", 3),
    ]
    assert ledger.claim(rows) == {"a", "c"}
    written = shop.rows(
        "select entry, slot, through, slots::int, state, reason, task_id::text, term, settled_at is null"
        "  from pgleader.slots where entry <> 'b' order by entry, slot"
    )
    assert written == [
        ("a", NOON + MINUTE, NOON + 2 * MINUTE, 2, "skipped", "coalesced", None, term.number, False),
        ("a", NOON + 3 * MINUTE, NOON + 3 * MINUTE, 1, "claimed", None, run.task_id, term.number, True),
        ("c", NOON + MINUTE, NOON + 3 * MINUTE, 3, "expired", "misfire_grace", None, term.number, False),
    ]
    assert shop.rows("select entry, last_slot, run_count, last_run_at is null from pgleader.entries order by 1") == [
        ("a", NOON + 3 * MINUTE, 1, False),
        ("b", NOON + 3 * MINUTE, 1, False),
        ("c", NOON + 3 * MINUTE, 0, True),
    ]


def test_one_of_two_concurrent_claims_is_accepted(shop: Shop) -> None:
    """Exactly one is accepted: the other waits for it, and is refused. Were the first to fail, it would be accepted."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    for minute, commits in ((1, True), (2, False)):
        by_hand = shop.connect()
        first = by_hand.execute(statements.CLAIM, claim_parameters(term, run_of("tick", minute))).fetchone()
        assert first == (1, ["tick"])
        second = Doing(partial(ledger.claim, [run_of("tick", minute)]))
        shop.await_one_behind(by_hand)
        by_hand.commit() if commits else by_hand.rollback()
        assert second.result() == (set() if commits else {"tick"})
    assert shop.rows("select run_count from pgleader.entries") == [(2,)]


def test_claimed_slot_is_settled_once(shop: Shop) -> None:
    """It is said once; until then they are listed, oldest first, with the term in which they were claimed."""
    lock, first = shop.lead()
    ledger = shop.ledger(first)
    ledger.register({"tick": TICK, "tock": TICK})
    ledger.claim([run_of("tick", 2)])
    lock.release("stopped")
    _, second = shop.lead("b")
    ledger = shop.ledger(second)
    ledger.claim([run_of("tock", 1)])
    assert ledger.claimed() == [
        Claimed("tock", NOON + MINUTE, second.number),
        Claimed("tick", NOON + 2 * MINUTE, first.number),
    ]
    ledger.settle([Outcome("tick", NOON + 2 * MINUTE, "published"), Outcome("tock", NOON + HOUR, "published")])
    assert ledger.claimed() == [Claimed("tock", NOON + MINUTE, second.number)]
    ledger.settle(
        [Outcome("tick", NOON + 2 * MINUTE, "skipped", "too late"), Outcome("tock", NOON + MINUTE, "expired")]
    )
    assert ledger.claimed() == []
    assert shop.rows("select entry, state, reason, settled_at is null from pgleader.slots order by 1") == [
        ("tick", "published", None, False),
        ("tock", "expired", None, False),
    ]


def test_elections_do_not_see_each_other(shop: Shop) -> None:
    """Neither their entries, nor their slots, nor their terms, nor what is pruned."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    ledger.claim([run_of("tick", 1)])
    config = Config(database_url=shop.url, election="bazaar")
    other = LockSession.open(config, "a", LEDGER_TERMS)
    place = other.take_place()
    assert place is not None
    assert other.await_lock(lambda: False)
    minted = other.mint_term(place)
    assert minted is not None
    assert minted[0] == 1
    bazaar = Ledger(config, Term(minted[0], "bazaar", "a", minted[1]), lambda: True)
    assert bazaar.entries() == {}
    assert bazaar.claimed() == []
    bazaar.register({"tick": TICK})
    assert bazaar.claim([run_of("tick", 1)]) == {"tick"}
    bazaar.settle([Outcome("tick", NOON + MINUTE, "published")])
    assert bazaar.prune() == 1
    assert len(ledger.claimed()) == 1
    bazaar.close()
    other.close()


def test_running_entries_are_those_whose_lock_is_held(shop: Shop) -> None:
    """Of those that are asked for: whose lock somebody holds, also with a key below zero."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    names = [f"entry{n}" for n in range(8)]
    keys = {name: entry_key("shop", name) for name in names}
    assert {key < 0 for key in keys.values()} == {True, False}
    assert ledger.running(names) == set()
    by_hand = shop.connect()
    for name in names[::2]:
        by_hand.execute("select pg_advisory_lock(%s::bigint)", [keys[name]])
    by_hand.execute("select pg_advisory_lock(1, 2)")
    assert ledger.running(names) == set(names[::2])
    assert ledger.running(names[:3]) == {"entry0", "entry2"}
    by_hand.close()
    eventually(lambda: not ledger.running(names), timeout=PATIENCE)


def test_ledger_does_not_depend_on_settings_of_the_role(shop: Shop) -> None:
    """Neither its time zone, nor how it would see its transactions."""
    for setting in (
        "timezone = 'Asia/Kathmandu'",
        "default_transaction_isolation = 'serializable'",
        "datestyle = 'SQL'",
    ):
        shop.root.execute(
            sql.SQL("alter role postgres in database {} set {}").format(
                sql.Identifier(shop.root.info.dbname),
                sql.SQL(setting),
            )
        )
    _, term = shop.lead()
    ledger = shop.ledger(term)
    record = EntryRecord("shop.tick", "every 0:01:00", NOON.astimezone(ZoneInfo("America/New_York")), NOON)
    ledger.register({"tick": record})
    assert ledger.entries() == {"tick": record}
    assert ledger.entries()["tick"].anchor.utcoffset() == timedelta(0)
    assert ledger.claim([run_of("tick", 1)]) == {"tick"}
    assert [claimed.slot.isoformat() for claimed in ledger.claimed()] == ["2026-01-15T12:01:00+00:00"]
    ledger.settle([Outcome("tick", NOON + MINUTE, "published")])
    assert ledger.claimed() == []


@pytest.mark.parametrize("ahead", [0.0, 100.0, -3600.0])
def test_clock_skew_is_measured(shop: Shop, ahead: float) -> None:
    """By how much this host's is ahead of the database's."""
    _, term = shop.lead()
    ledger = shop.ledger(term, clock=lambda: time.time() + ahead)
    ledger.entries()
    assert abs(ledger.clock_skew - ahead) < 5


# A leader that was replaced


def test_replaced_leader_cannot_write(shop: Shop) -> None:
    """Whatever it wants to write down, but for what became of slots, which is so whoever leads."""
    lock, old = shop.lead()
    ledger = shop.ledger(old)
    ledger.register({"tick": TICK, "tock": TICK})
    assert ledger.claim([run_of("tick", 1)]) == {"tick"}
    lock.close()
    _, new = shop.lead("b")
    assert new.number == old.number + 1
    with pytest.raises(Superseded):
        ledger.claim([run_of("tick", 2), run_of("tock", 2)])
    with pytest.raises(Superseded):
        ledger.register({"new": TICK})
    ledger.retire(["tick"])
    assert shop.rows("select entry, retired_at, last_slot from pgleader.entries order by 1") == [
        ("tick", None, NOON + MINUTE),
        ("tock", None, None),
    ]
    assert shop.rows("select slot from pgleader.slots") == [(NOON + MINUTE,)]
    ledger.settle([Outcome("tick", NOON + MINUTE, "published")])
    assert shop.ledger(new).claimed() == []
    assert shop.ledger(new).claim([run_of("tick", 2)]) == {"tick"}


def test_incident_9_next_leader_sees_a_claim_under_way_at_the_handover(shop: Shop) -> None:
    """The next term is minted only when it has come to an end; what comes later from there is refused."""
    lock, old = shop.lead("old")
    shop.ledger(old).register({"tick": TICK})
    by_hand = shop.connect()
    by_hand.execute(statements.CLAIM, claim_parameters(old, run_of("tick", 1)))
    lock.close()
    successor, place = shop.stand("new")
    minting = Doing(lambda: successor.mint_term(place))
    shop.await_one_behind(by_hand)
    assert shop.rows("select term from pgleader.elections") == [(old.number,)]
    by_hand.commit()
    number, pid = minting.result()
    assert number == old.number + 1
    with pytest.raises(Superseded):
        shop.ledger(old).claim([run_of("tick", 2)])
    ledger = shop.ledger(Term(number, "shop", "new", pid))
    assert ledger.claimed() == [Claimed("tick", NOON + MINUTE, old.number)]
    assert ledger.entries()["tick"].last_slot == NOON + MINUTE
    assert ledger.claim([run_of("tick", 1)]) == set()
    assert ledger.claim([run_of("tick", 2)]) == {"tick"}


def test_incident_9_claim_during_a_handover_is_refused(shop: Shop) -> None:
    """The old leader does not know yet, and the new one has not committed yet."""
    lock, old = shop.lead("old")
    ledger = shop.ledger(old)
    ledger.register({"tick": TICK})
    lock.close()
    by_hand = shop.connect()
    by_hand.execute("update pgleader.elections set term = term + 1")
    claiming = Doing(lambda: ledger.claim([run_of("tick", 1)]))
    shop.await_one_behind(by_hand)
    by_hand.commit()
    with pytest.raises(Superseded):
        claiming.result()
    assert shop.rows("select * from pgleader.slots") == []
    assert shop.rows("select last_slot from pgleader.entries") == [(None,)]


def test_claims_do_not_wait_for_each_other(shop: Shop) -> None:
    """Only a handover does; those of other entries go through meanwhile."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK, "tock": TICK})
    by_hand = shop.connect()
    by_hand.execute(statements.CLAIM, claim_parameters(term, run_of("tick", 1)))
    assert ledger.claim([run_of("tock", 1)]) == {"tock"}
    by_hand.rollback()


def test_leader_without_trust_waits_for_no_answer(shop: Shop) -> None:
    """Its statement may be stuck behind the next leader's."""
    _, term = shop.lead()
    may = True
    ledger = shop.ledger(term, may_act=lambda: may)
    ledger.register({"tick": TICK})
    by_hand = shop.connect()
    by_hand.execute("select from pgleader.elections for update")
    claiming = Doing(lambda: ledger.claim([run_of("tick", 1)]))
    shop.await_one_behind(by_hand)
    may = False
    with pytest.raises(Superseded):
        claiming.result()
    by_hand.rollback()


def test_stopped_client_does_not_hold_up_a_handover(shop: Shop) -> None:
    """The server ends a transaction in a leader's session in which nothing happens, before the ttl is over."""
    lock, old = shop.lead("old")
    shop.ledger(old).register({"tick": TICK})
    with open_session(shop.url, "stopped", unresponsive_after=1) as stopped:
        stopped.execute(statements.GREET, {"below_ttl": "900ms", "longest": "30s"})
        stopped.execute("begin")
        stopped.execute(statements.CLAIM, claim_parameters(old, run_of("tick", 1)))
        lock.close()
        successor, place = shop.stand("new")
        minted = Doing(lambda: successor.mint_term(place)).result()
        assert minted is not None
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            stopped.execute("commit")
    assert shop.rows("select * from pgleader.slots") == []
    assert shop.ledger(Term(minted[0], "shop", "new", minted[1])).claim([run_of("tick", 1)]) == {"tick"}


def test_leaders_that_settle_the_same_slots_do_not_wait_for_each_other(shop: Shop) -> None:
    """One that is stopped in the midst of it, and its successor, who may have published them in another order."""
    # As Postgres plans it where the ledger is large.
    for setting in ("enable_hashjoin", "enable_mergejoin", "enable_seqscan"):
        statement = sql.SQL("alter database {} set {} = off")
        shop.root.execute(statement.format(sql.Identifier(shop.root.info.dbname), sql.Identifier(setting)))
    _, term = shop.lead()
    old, new = shop.ledger(term), shop.ledger(term)
    rows = [run_of("first", 1), run_of("second", 1)]
    outcomes = [Outcome(row.entry, row.slot, "published") for row in rows]
    old.register(dict.fromkeys(("first", "second"), TICK))
    old.claim(rows)
    by_hand = shop.connect()
    by_hand.execute("select from pgleader.slots where entry = 'first' for update")
    settling = Doing(lambda: new.settle(outcomes))
    shop.await_one_behind(by_hand)
    settling_too = Doing(lambda: old.settle(outcomes[::-1]))
    query = "select from pg_stat_activity where wait_event_type = 'Lock'"
    eventually(lambda: len(shop.rows(query)) == 2, timeout=PATIENCE)
    by_hand.rollback()
    # A deadlock would be an error of one of them.
    settling.result()
    settling_too.result()
    assert shop.rows("select distinct state from pgleader.slots") == [("published",)]


def test_ledger_opens_a_new_session(shop: Shop) -> None:
    """After the last one was ended, which is an error once."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    shop.root.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pgleader ledger a'"
    )
    eventually(
        lambda: not shop.rows("select from pg_stat_activity where application_name = 'pgleader ledger a'"),
        timeout=PATIENCE,
    )
    with pytest.raises(psycopg.OperationalError):
        ledger.entries()
    assert ledger.entries() == {"tick": TICK}
    ledger.close()
    assert ledger.entries() == {"tick": TICK}


# Terms


def history(shop: Shop) -> list[Any]:
    """Return the terms, with how each ended."""
    return shop.rows(
        "select term::int, node, reason, ended_at is not null, backend_pid from pgleader.terms order by term"
    )


def test_history_of_terms_is_kept(shop: Shop) -> None:
    """Who led, in which session, and why no longer; for those who could not say so it says 'lost'."""
    first, one = shop.lead("a")
    assert history(shop) == [(1, "a", None, False, one.backend_pid)]
    first.release("resigned")
    assert history(shop) == [(1, "a", "resigned", True, one.backend_pid)]
    second, two = shop.lead("b")
    second.close()
    third, three = shop.lead("c")
    assert history(shop) == [
        (1, "a", "resigned", True, one.backend_pid),
        (2, "b", "lost", True, two.backend_pid),
        (3, "c", None, False, three.backend_pid),
    ]
    third.release("stopped")
    assert history(shop)[2][2:4] == ("stopped", True)
    assert shop.rows("select election, term::int, node from pgleader.elections") == [("shop", 3, "c")]


def test_session_without_the_lock_mints_no_term(shop: Shop) -> None:
    """And leaves no trace."""
    lock = LockSession.open(shop.config, "impostor", LEDGER_TERMS)
    assert lock.mint_term(1) is None
    lock.close()
    _, term = shop.lead("a")
    impostor = LockSession.open(shop.config, "impostor", LEDGER_TERMS)
    assert impostor.mint_term(1) is None
    assert not impostor.renew(term.backend_pid, 5)
    impostor.close()
    assert history(shop) == [(1, "a", None, False, term.backend_pid)]


def test_renewal_proves_lock_and_term(shop: Shop) -> None:
    """Without either it says no: the row is another's, or gone, or the lock is."""
    lock, term = shop.lead()
    assert lock.renew(term.backend_pid, 5)
    assert not lock.renew(term.backend_pid + 1, 5)
    with shop.root.transaction(force_rollback=True):
        shop.root.execute("update pgleader.elections set term = term + 1")
        assert lock.renew(term.backend_pid, 5), "what is not committed does not count"
    shop.root.execute("update pgleader.elections set term = term + 1")
    assert not lock.renew(term.backend_pid, 5)
    shop.root.execute("update pgleader.elections set term = term - 1")
    assert lock.renew(term.backend_pid, 5)
    shop.root.execute("delete from pgleader.elections")
    assert not lock.renew(term.backend_pid, 5)


@pytest.fixture
def elector(shop: Shop) -> Iterator[Elector]:
    """Give an elector that leads, and renews often."""
    config = Config(database_url=shop.url, election="shop", ttl=100, renew_interval=0.1)
    made = Elector(config, "a", open_session=partial(LockSession.open, terms=LEDGER_TERMS))
    made.start()
    assert made.leadership.wait(PATIENCE)
    yield made
    assert made.stop(PATIENCE)


@pytest.mark.parametrize(
    ("take_away", "reason"),
    [
        ("update pgleader.elections set term = term + 1, node = 'b'", "the latest term, is no longer"),
        (
            "select pg_terminate_backend(backend_pid) from pgleader.terms where ended_at is null",
            "the server has ended the session",
        ),
    ],
    ids=["term", "session"],
)
def test_incident_1_replaced_leader_steps_down(shop: Shop, elector: Elector, take_away: str, reason: str) -> None:
    """It hears of it with its next renewal, or at once, and leads again only in a higher term."""
    changes: list[Change] = []
    elector.leadership.subscribe(changes.append)
    term = elector.leadership.term
    assert term is not None
    shop.root.execute(take_away.encode())
    eventually(lambda: not elector.leadership.trusted(term), timeout=PATIENCE)
    eventually(lambda: [change for change in changes if not change.gained], timeout=PATIENCE)
    (lost,) = [change for change in changes if not change.gained]
    assert lost.term == term
    assert reason in lost.reason
    again = elector.leadership.wait(PATIENCE)
    assert again is not None
    assert again.number > term.number


def test_incident_1_leader_whose_row_is_gone_steps_down(shop: Shop, elector: Elector) -> None:
    """And somebody leads again, in a higher term: its number stands beside slots, and in messages."""
    term = elector.leadership.term
    assert term is not None
    shop.root.execute("delete from pgleader.elections")
    eventually(lambda: not elector.leadership.trusted(term), timeout=PATIENCE)
    again = elector.leadership.wait(PATIENCE)
    assert again is not None
    assert again.number > term.number


def test_leader_records_why_it_left(shop: Shop, elector: Elector) -> None:
    """In the history, as in the log."""
    elector.resign(stand_back=0.1)
    eventually(lambda: len(history(shop)) == 2, timeout=PATIENCE)
    eventually(lambda: elector.phase is Phase.LEADER, timeout=PATIENCE)
    elector.stop(PATIENCE)
    assert [(term, reason) for term, _, reason, _, _ in history(shop)] == [(1, "resigned"), (2, "stopped")]


def test_mint_that_waits_too_long_is_given_up(shop: Shop) -> None:
    """A leader that could not be trusted any more by the time it was elected is none."""
    lock, _ = shop.lead("old")
    lock.close()
    by_hand = shop.connect()
    by_hand.execute("select from pgleader.elections for share")
    successor, place = shop.stand("new", ttl=1)
    with pytest.raises(DeadlinePassed):
        successor.mint_term(place)
    successor.close()
    by_hand.rollback()
    _, term = shop.lead("third")
    assert term.number >= 2


# Pruning


def test_old_slots_are_pruned_in_batches(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first; what is claimed is kept for whoever publishes it, and what is younger than the retention."""
    monkeypatch.setattr(module, "PRUNE_BATCH", 10)
    lock, term = shop.lead()
    ledger = shop.ledger(term)
    now = datetime.now(UTC)
    ledger.register({"tick": EntryRecord("shop.tick", "every 1:00:00", NOON, now - 100 * DAY)})
    week = now - 7 * DAY
    shop.root.execute(
        "insert into pgleader.slots (election, entry, slot, through, state, term)"
        " select e, 'tick', %(week)s - i * interval '1 minute', %(week)s - i * interval '1 minute',"
        "        case when i %% 5 = 0 then 'claimed' else 'published' end, 1"
        "   from generate_series(1, 30) i, unnest(array['shop', 'bazaar']) e",
        {"week": week},
    )
    # A stretch that began long ago, and one slot that is younger.
    recent = [(now - 30 * DAY, now - 6 * DAY, "skipped"), (now - 6 * DAY, now - 6 * DAY, "published")]
    for slot, through, state in recent:
        shop.root.execute(
            "insert into pgleader.slots (election, entry, slot, through, state, term)"
            " values ('shop', 'tick', %s, %s, %s, 1)",
            [slot, through, state],
        )
    assert [ledger.prune() for _ in range(4)] == [10, 10, 4, 0]
    assert shop.rows(
        "select state, count(*)::int from pgleader.slots where election = 'shop' group by 1 order by 1"
    ) == [
        ("claimed", 6),
        ("published", 1),
        ("skipped", 1),
    ]
    assert shop.rows("select count(*)::int from pgleader.slots where election = 'bazaar'") == [(30,)]
    lock.release("stopped")


def test_oldest_slots_are_pruned_first(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is left has no gaps."""
    monkeypatch.setattr(module, "PRUNE_BATCH", 3)
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    for minute in range(1, 6):
        ledger.claim([run_of("tick", minute)])
        ledger.settle([Outcome("tick", NOON + minute * MINUTE, "published")])
    ledger._config = Config(database_url=shop.url, election="shop", retention=60)  # noqa: SLF001 - NOON is long ago
    assert ledger.prune() == 3
    assert shop.rows("select slot from pgleader.slots order by slot") == [(NOON + 4 * MINUTE,), (NOON + 5 * MINUTE,)]


def test_old_terms_are_pruned(shop: Shop) -> None:
    """But for the one that lasts."""
    for node in "abc":
        lock, term = shop.lead(node)
        if node != "c":
            lock.release("resigned")
    shop.root.execute("update pgleader.terms set gained_at = '2020-01-01'")
    shop.root.execute("update pgleader.terms set ended_at = '2020-01-02' where term = 1")
    ledger = shop.ledger(term)
    ledger.prune()
    assert [(number, node) for number, node, *_ in history(shop)] == [(2, "b"), (3, "c")]


def test_pruning_waits_for_no_lock(shop: Shop) -> None:
    """What somebody else has in hand is left for later."""
    _, term = shop.lead()
    ledger = shop.ledger(term)
    ledger.register({"tick": TICK})
    for minute in (1, 2):
        ledger.claim([run_of("tick", minute)])
        ledger.settle([Outcome("tick", NOON + minute * MINUTE, "published")])
    by_hand = shop.connect()
    by_hand.execute("select from pgleader.slots where slot = %s for update", [NOON + MINUTE])
    assert ledger.prune() == 1
    by_hand.rollback()
    assert ledger.prune() == 1
