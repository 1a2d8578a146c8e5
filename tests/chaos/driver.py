"""One run: chaos, then quiet until everything has recovered, then what is left is written down."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.app import LEADER_QUEUE, QUEUE, WITNESSED, make_app
from tests.chaos.faults import Injector, note_death
from tests.chaos.fleet import Fleet, gathered
from tests.chaos.history import Fact, History, tell
from tests.support.eventually import eventually
from tests.support.rabbitmq import RabbitMQ

PATIENCE = 90.0
# If nothing has come for so long, nothing will. Workers that have lost the broker try again within half a minute.
STANDSTILL = 40.0
# What Redis has given to a worker that died: kombu before 5.7 looks for it every hundred seconds.
LONG_STANDSTILL = 130.0

# What is sent once makes one run of each of these.
RUNS = {
    "chaos.handle": ("chaos.handle", "chaos.witness"),
    "chaos.lead": ("chaos.lead",),
    "chaos.work": ("chaos.work",),
}

# Whether every entry but the slow one is accounted for up to now, and all that was claimed is published.
SCHEDULE_RECOVERED = """
    select bool_and(last_slot > to_timestamp(%(since)s)) filter (where entry <> 'minute')
           and not exists (select from pgleader.slots
                            where state = 'claimed' and claimed_at < clock_timestamp() - interval '3 s')
      from pgleader.entries
"""
LEDGER = {
    "ledger term": "select term, node, gained_at::text, ended_at::text, reason from pgleader.terms order by term",
    "ledger entry": """
        select entry, extract(epoch from anchor)::float8 as anchor, extract(epoch from since)::float8 as since,
               extract(epoch from last_slot)::float8 as last_slot
          from pgleader.entries
    """,
    "ledger slot": """
        select entry, extract(epoch from slot)::float8 as slot, extract(epoch from through)::float8 as through, slots,
               state, reason, term, task_id::text, claimed_at < clock_timestamp() - interval '3 s' as old
          from pgleader.slots
    """,
    "dead letter": "select payload->>'name' as name, error from pgleader.dead_letters",
    "left": "select payload->>'name' as name from pgleader.notifications",
}


def run(
    postgres: EmbeddedPostgres,
    broker: EmbeddedValkey | RabbitMQ,
    folder: Path,
    *,
    workers: int,
    seconds: float,
    seed: int,
    kinds: list[str],
) -> list[Fact]:
    """Make faults of these kinds for so many seconds; return the history."""
    path = folder / "history"
    path.touch()
    os.environ["CHAOS_HISTORY"] = str(path)
    history = History(path)
    tell("run", broker="valkey" if isinstance(broker, EmbeddedValkey) else "rabbitmq", seed=seed)
    with gathered(postgres, broker, folder, workers=workers, seed=seed) as fleet:
        injector = Injector(fleet, history, kinds, seed)
        eventually(lambda: _is_up(fleet, injector), PATIENCE)
        try:
            injector.run(time.monotonic() + seconds)
            tell("calm")
            fleet.clients.send(signal.SIGTERM)
            assert fleet.clients.wait() == 0, fleet.clients.logged()[-3000:]
            _await_recovery(fleet, injector, history)
        except AssertionError as error:
            tell("stuck", why=str(error))
        else:
            tell("recovered")
        _write_down_ledger(postgres)
        _write_down_queues(broker)
        _end(fleet)
    return history.catch_up()


def _is_up(fleet: Fleet, injector: Injector) -> bool:
    for program in fleet.workers:
        assert program.process.poll() is None, program.logged()[-3000:]
    return injector.is_ready()


def _await_recovery(fleet: Fleet, injector: Injector, history: History) -> None:
    """Wait until all is well again; what is lost is not waited for."""
    eventually(injector.is_ready, PATIENCE)
    eventually(lambda: _ask(fleet.postgres, SCHEDULE_RECOVERED, since=time.time() - 1.5), PATIENCE)
    eventually(lambda: not _ask(fleet.postgres, "select count(*) from pgleader.notifications"), PATIENCE)
    _await_runs(injector, history)
    # Also those that have ended by themselves just now.
    eventually(injector.is_ready, PATIENCE)


def _await_runs(injector: Injector, history: History) -> None:
    """Wait until all that was sent has run, or nothing comes any more."""
    seen, since = -1, time.monotonic()
    while missing := awaited(history.catch_up()):
        if len(missing) != seen:
            seen, since = len(missing), time.monotonic()
        taken = {(fact["task"], fact["name"]) for fact in history.of("received") if "name" in fact}
        if time.monotonic() > since + (LONG_STANDSTILL if missing & taken else STANDSTILL):
            return
        injector.note_deaths()
        threading.Event().wait(0.5)


def awaited(facts: Sequence[Fact]) -> set[tuple[str, str]]:
    """Return tasks and names of which a run has yet to come to its end."""
    runs = {fact["run"]: (fact["task"], fact["name"]) for fact in facts if fact["what"] == "began" and "name" in fact}
    ended = {runs.get(fact["run"]) for fact in facts if fact["what"] == "ended"}
    sent = [fact for fact in facts if fact["what"] == "sent" and fact["task"] in RUNS]
    return {(task, fact["name"]) for fact in sent for task in RUNS[fact["task"]]} - ended


def _ask(postgres: EmbeddedPostgres, query: str, **parameters: object) -> Any:
    with psycopg.connect(postgres.url(), autocommit=True) as db:
        row = db.execute(query.encode(), parameters).fetchone()
        return row and row[0]


def _write_down_ledger(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url(), row_factory=dict_row) as db:
        db.execute("set transaction isolation level repeatable read")
        db.execute("set local timezone to 'UTC'")
        for what, query in LEDGER.items():
            for row in db.execute(query.encode()):
                tell(what, **row)


def _write_down_queues(broker: EmbeddedValkey | RabbitMQ) -> None:
    with make_app(broker.url) as app, app.connection_for_read() as connection:
        for name in (QUEUE, LEADER_QUEUE, WITNESSED):
            try:
                messages = connection.default_channel.queue_declare(name, passive=True).message_count
            except connection.channel_errors:
                # Redis keeps no empty queue.
                messages = 0
            tell("queue", name=name, messages=messages)


def _end(fleet: Fleet) -> None:
    """Shut everybody down, and tell of those that do not end as they should."""
    for program in fleet.workers:
        program.send(signal.SIGTERM)
    for program in fleet.workers:
        program.wait()
        note_death(program)
