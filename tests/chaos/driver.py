"""One run: chaos, then quiet until everything has recovered, then what is left is written down."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.app import LEADER_QUEUE, QUEUE, WITNESSED, make_app
from tests.chaos.check.slots import slot_of
from tests.chaos.faults import GLANCE, Injector, note_death
from tests.chaos.fleet import Broker, Fleet, gathered
from tests.chaos.history import Fact, History, tell
from tests.chaos.scenarios import Scenario
from tests.support.eventually import eventually

PATIENCE = 90.0
# If nothing has come for so long, nothing will. Workers that have lost the broker try again within half a minute.
STANDSTILL = 40.0
# What Redis has given to a worker that died: kombu before 5.7 looks for it every hundred seconds.
LONG_STANDSTILL = 130.0
# What is delivered again comes a little later.
QUIET = 3.0

# What is sent once makes one run of each of these.
RUNS: dict[str, tuple[str, ...]] = {task: (task,) for task in ("chaos.witness", "chaos.lead", "chaos.work")}
RUNS["chaos.handle"] = ("chaos.handle", "chaos.witness")

# Whether every entry but the slow one is accounted for up to now, and all that was claimed is published.
SCHEDULE_RECOVERED = """
    select not exists (select from pgleader.entries
                        where entry <> 'minute' and not coalesce(last_slot > to_timestamp(%s), false))
           and not exists (select from pgleader.slots
                            where state = 'claimed' and claimed_at < clock_timestamp() - interval '3 s')
"""
# What a worker with the run guard says of a run that it cannot tell to be the second, or not write down.
UNGUARDED = re.compile(r"(?:cannot tell whether|could not write down how) notification (\d+) on")
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
}


def run(
    scenario: Scenario, postgres: EmbeddedPostgres, broker: Broker, folder: Path, *, seed: int, dbname: str = "postgres"
) -> list[Fact]:
    """Play a scenario; return the history."""
    path = folder / "history"
    path.touch()
    os.environ["CHAOS_HISTORY"] = str(path)
    history = History(path)
    with gathered(scenario, postgres, broker, folder, dbname) as fleet:
        tell(
            "run",
            broker="valkey" if isinstance(broker, EmbeddedValkey) else "rabbitmq",
            seed=seed,
            pool=scenario.pool,
            least=scenario.least,
            idle=list(fleet.members) if scenario.witnessed else [],
        )
        injector = Injector(fleet, history, seed)
        eventually(lambda: _is_up(fleet, injector), PATIENCE, GLANCE)
        clients = fleet.start("clients", [sys.executable, "-m", "tests.chaos.clients", str(seed)])
        try:
            injector.run()
            clients.send(signal.SIGTERM)
            assert clients.wait() == 0, clients.logged()[-3000:]
            eventually(injector.is_ready, PATIENCE, GLANCE)
            since, ask = time.time(), injector.observer.ask
            eventually(lambda: ask(SCHEDULE_RECOVERED, since) == [(True,)], PATIENCE, GLANCE)
            eventually(lambda: ask("select count(*) from pgleader.notifications") == [(0,)], PATIENCE, GLANCE)
            _write_down_ledger(fleet.database)
            _await_runs(scenario, injector, history)
            # Also those that have ended by themselves just now.
            eventually(lambda: injector.is_ready() and injector.are_all_ready(), PATIENCE, GLANCE)
        except AssertionError as error:
            tell("stuck", why=str(error))
            _write_down_ledger(fleet.database)
        else:
            tell("recovered")
        _write_down_queues(scenario, broker)
        _end(fleet)
        injector.observer.close()
    return history.catch_up()


def _is_up(fleet: Fleet, injector: Injector) -> bool:
    for program in fleet.workers:
        assert program.process.poll() is None, program.logged()[-3000:]
    return injector.is_ready() and injector.are_all_ready()


def _await_runs(scenario: Scenario, injector: Injector, history: History) -> None:
    """Wait until all that was sent has run, and nothing is delivered again; or nothing comes any more."""
    seen, since = -1, time.monotonic()
    while True:
        missing = awaited(history.catch_up())
        taken = [(fact["task"], fact["name"]) for fact in history.of("received") if "name" in fact]
        if len(missing) + len(taken) != seen:
            seen, since = len(missing) + len(taken), time.monotonic()
        patience = QUIET if not missing else STANDSTILL
        if scenario.visibility_timeout and not missing.isdisjoint(taken):
            patience = LONG_STANDSTILL
        if time.monotonic() > since + patience:
            return
        injector.note_deaths()
        threading.Event().wait(0.5)


def awaited(facts: Sequence[Fact]) -> set[tuple[str, Any]]:
    """Return tasks and names, or slots, of which a run has yet to come to its end, or a message to come."""
    runs = {fact["run"]: (fact["task"], fact["name"]) for fact in facts if fact["what"] == "began" and "name" in fact}
    ended = {runs.get(fact["run"]) for fact in facts if fact["what"] == "ended"}
    sent = [fact for fact in facts if fact["what"] == "sent" and fact["task"] in RUNS]
    named = {(task, fact["name"]) for fact in sent for task in RUNS[fact["task"]]} - ended
    published = {slot_of(fact) for fact in facts if fact["what"] == "ledger slot" and fact["state"] == "published"}
    slots = published - {slot_of(fact) for fact in facts if fact["what"] == "received" and "slot" in fact}
    return named | {("chaos.tick", slot) for slot in slots}


def _write_down_ledger(database: str) -> None:
    with psycopg.connect(database, row_factory=dict_row) as db:
        db.execute("set transaction isolation level repeatable read")
        db.execute("set local timezone to 'UTC'")
        for what, query in LEDGER.items():
            for row in db.execute(query.encode()):
                tell(what, **row)


def _write_down_queues(scenario: Scenario, broker: Broker) -> None:
    with make_app(broker.url, scenario) as app, app.connection_for_read() as connection:
        for name in (QUEUE, LEADER_QUEUE, WITNESSED):
            try:
                messages = connection.default_channel.queue_declare(name, passive=True).message_count
            except connection.channel_errors:
                # Redis keeps no empty queue.
                messages = 0
            tell("queue", name=name, messages=messages)


def _end(fleet: Fleet) -> None:
    """Shut everybody down, and tell of those that do not end as they should, and of what workers have said."""
    for program in fleet.workers:
        program.send(signal.SIGTERM)
    for program in fleet.workers:
        program.wait()
        note_death(program)
        for notification in UNGUARDED.findall(program.log.read_text(errors="replace")):
            tell("unguarded", notification=int(notification))
