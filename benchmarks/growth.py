"""How things grow: a claim with the rows of the ledger, a failover with the followers, the relay with the channels.

What grows with the entries of the schedule is among the figures of `schedule`, and what grows with the nodes of an idle
fleet among those of `overhead`.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

import psycopg

from benchmarks.bench import DURABLE, Bench, migrate
from benchmarks.figures import Figure, Results
from celery_pgleader import Change, LeaderElector
from celery_pgleader.channels import Route
from celery_pgleader.store import EntryRecord, Ledger, SlotRow
from example_app.servers import EmbeddedPostgres, EmbeddedValkey

OURS = "celery-pgleader"
LEDGER_ROWS = (0, 10_000, 100_000, 1_000_000)
FOLLOWERS = (2, 10, 50)
CHANNELS = (1, 10, 100)
NOON = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
PATIENCE = 60.0

QUIET = logging.getLogger("benchmarks.growth")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False

FIGURES = {
    **{f"claim, {n} ledger rows": Figure("claim", f"{n:,} rows in the ledger", "ms") for n in LEDGER_ROWS},
    **{f"failover, {n} followers": Figure("failover", f"{n} followers", "ms") for n in FOLLOWERS},
    **{f"relay, {n} channels": Figure("relay", f"{n} channels", "/s", lower_is_better=False) for n in CHANNELS},
}

FILL = """
insert into pgleader.slots (election, entry, slot, through, state, term, task_id, settled_at)
select 'bench', 'old', t, t, 'published', 1, gen_random_uuid(), t
  from generate_series(%s::timestamptz, %s::timestamptz, '1 second') t
"""
END_LEADING_SESSION = """
select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted and classid = 1885826048
"""


def run(*, quick: bool) -> Results:
    """Measure."""
    results = Results(OURS, FIGURES)
    results.about[OURS] = "default settings"
    with EmbeddedPostgres(settings=DURABLE) as postgres, EmbeddedValkey() as valkey:
        migrate(postgres.url())
        claims(
            results, Bench(postgres.url(), valkey.url), LEDGER_ROWS[:3] if quick else LEDGER_ROWS, 50 if quick else 500
        )
    with EmbeddedPostgres(settings=DURABLE) as postgres, EmbeddedValkey() as valkey:
        migrate(postgres.url())
        relays(results, postgres, valkey, number=1_000 if quick else 10_000, rounds=1 if quick else 5)
    failovers(results, rounds=5 if quick else 50)
    return results


def claims(results: Results, bench: Bench, sizes: tuple[int, ...], number: int) -> None:
    """Claim slots, one at a time, the more rows there are."""
    ledger = Ledger(bench.config, bench.term, lambda: True)
    ledger.register({"tick": EntryRecord("bench.tick", "every second", NOON, NOON)})
    filled, slot = 0, NOON
    for rows in sizes:
        if rows:
            with psycopg.connect(bench.database, autocommit=True) as session:
                first = NOON - timedelta(seconds=rows)
                session.execute(FILL, [first, NOON - timedelta(seconds=filled + 1)])
                session.execute("vacuum analyze pgleader.slots")
            filled = rows
        for turn in range(number + 5):
            slot += timedelta(seconds=1)
            began = time.perf_counter()
            ledger.claim([SlotRow("tick", slot, slot, 1, "claimed", None, str(uuid.uuid4()))])
            # The first ones are cold.
            if turn >= 5:
                results.add(OURS, f"claim, {rows} ledger rows", 1000 * (time.perf_counter() - began))
    ledger.close()


def relays(results: Results, postgres: EmbeddedPostgres, valkey: EmbeddedValkey, number: int, rounds: int) -> None:
    """Dispatch a backlog that is spread over channels."""
    for _ in range(rounds):
        for channels in CHANNELS:
            names = [f"channel-{n}" for n in range(channels)]
            bench = Bench(postgres.url(), valkey.url, {name: (Route("bench.on_order"),) for name in names})
            for name in names:
                bench.add_backlog(number // channels, name)
            began = time.perf_counter()
            with bench.running(bench.relay()):
                bench.await_no_backlog()
                results.add(OURS, f"relay, {channels} channels", number / (time.perf_counter() - began))


def failovers(results: Results, rounds: int) -> None:
    """End the session of the leader of an election, with more and more followers in this process."""
    with EmbeddedPostgres() as postgres, psycopg.connect(postgres.url(), autocommit=True) as session:
        gained: list[float] = []
        changed = threading.Condition()

        def on_change(change: Change) -> None:
            if change.gained:
                with changed:
                    gained.append(time.perf_counter())
                    changed.notify_all()

        electors: list[LeaderElector] = []
        try:
            for followers in FOLLOWERS:
                while len(electors) < followers + 1:
                    node = f"n{len(electors)}"
                    elector = LeaderElector(postgres.url(), election="bench", node=node, logger=QUIET)
                    elector.leadership.subscribe(on_change)
                    elector.start()
                    electors.append(elector)
                for _ in range(rounds):
                    # Until all stand, and both places are taken again.
                    threading.Event().wait(1.0)
                    terms = len(gained)
                    began = time.perf_counter()
                    session.execute(END_LEADING_SESSION)
                    with changed:
                        assert changed.wait_for(lambda terms=terms: len(gained) > terms, PATIENCE)  # type: ignore[misc]
                    results.add(OURS, f"failover, {followers} followers", 1000 * (gained[terms] - began))
        finally:
            for elector in electors:
                elector.stop()
