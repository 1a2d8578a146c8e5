"""Makes the faults, and says what it made: of what follows from them it knows nothing."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg

from celery_pgleader.config import Config
from celery_pgleader.election.observer import Seat, seats
from celery_pgleader.postgres import Session, open_session
from tests.chaos.app import ELECTION, RESIGN
from tests.chaos.fleet import Fleet, Member
from tests.chaos.history import History, tell
from tests.support.eventually import eventually
from tests.support.programs import Program

PATIENCE = 60.0
GLANCE = 0.05  # There are so many seconds between one look and the next.
EARLY, LATE = 0.03, 0.06  # Faults that are aimed come so many seconds before to so many after a due time.

TERMINATE_MEMBER = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where application_name in ('pgleader leader ' || %s, 'pgleader follower ' || %s)
"""
TERMINATE_RELAY = """
    select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgleader relay%'
"""


class Observer:
    """Looks at the database, on a connection that is kept for as long as the server is there."""

    def __init__(self, database: str) -> None:
        """Prepare; a connection is opened when it is needed."""
        self._config = Config(database_url=database, election=ELECTION)
        self._session: Session | None = None

    def ask(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return the answer; nothing while there is no server to answer."""
        return self._look(lambda session: session.execute(query.encode(), parameters or None).fetchall())

    def seats(self) -> list[Seat]:
        """Return who leads and who is next; nobody while there is no server."""
        return self._look(lambda session: seats(self._config, session))

    def close(self) -> None:
        """Let go of the connection."""
        if self._session is not None:
            self._session.close()

    def _look(self, at: Callable[[Session], list[Any]]) -> list[Any]:
        try:
            if self._session is None or self._session.closed:
                url = self._config.database_url
                self._session = open_session(url, "observer", unresponsive_after=5.0, pooled=True)
            return at(self._session)
        except psycopg.Error:
            self.close()
            return []


class Injector:
    """Makes one fault after the other, drawn by a seed."""

    def __init__(self, fleet: Fleet, history: History, seed: int) -> None:
        """Prepare."""
        self.observer = Observer(fleet.database)
        self._fleet = fleet
        self._scenario = fleet.scenario
        self._history = history
        self._order = random.Random(f"{seed} order")
        self._random = random.Random(f"{seed} details")
        self._again = False
        # Those that are started again by the one that ended them.
        self._ended: set[str] = set()
        # Processes that have said that they are ready.
        self._ready: set[int] = set()
        self._make: dict[str, Callable[[Member], None]] = {
            "kill": self._kill,
            "term": self._term,
            "stop": self._stop,
            "terminate": partial(self._end_lead, "terminate"),
            "resign": partial(self._end_lead, "resign"),
            "relay": self._terminate_relay,
            "partition": partial(self._cut_off, "partition"),
            "deaf": partial(self._cut_off, "deaf"),
            "clock": self._clock,
        }
        self._restart: dict[str, Callable[[], None]] = {
            "pg-restart": fleet.postgres.restart,
            "pg-crash": self._crash_postgres,
            "broker-restart": fleet.broker.restart,
        }

    def run(self) -> None:
        """Make faults for as long as the scenario says, or as many, each kind once before any comes again."""
        began, waiting, made = time.monotonic(), list[str](), 0
        seconds, times = self._scenario.seconds, self._scenario.times
        while made < times or not times:
            if times:
                self._wait_until(began + seconds * (made + self._random.uniform(0.2, 0.8)) / times)
            else:
                self._pause(0.2, 1.5)
                if time.monotonic() > began + seconds:
                    break
            if not waiting:
                waiting = self._order.sample(self._scenario.faults, len(self._scenario.faults))
            self._make_one(waiting.pop())
            made += 1
        self._wait_until(began + seconds)

    def note_deaths(self) -> None:
        """Tell of every worker that is not there, though nobody has ended it, and start it again."""
        for program in self._fleet.workers:
            if program.name not in self._ended and program.process.poll() is not None:
                note_death(program)
                program.restart()

    def is_ready(self) -> bool:
        """Tell whether somebody leads, and another is there to follow; all are, if all may be harmed."""
        self.note_deaths()
        nodes = {seat.role: seat.node for seat in self.observer.seats()}
        is_led = "successor" in nodes and nodes.get("leader") in self._fleet.members
        return is_led and (self._scenario.on_leader == 1 or self.are_all_ready())

    def are_all_ready(self) -> bool:
        """Tell whether all workers have started."""
        for program in self._fleet.workers:
            if program.process.pid not in self._ready and program.has_logged(f"{program.name} ready."):
                self._ready.add(program.process.pid)
        return {program.process.pid for program in self._fleet.workers} <= self._ready

    def _make_one(self, kind: str) -> None:
        eventually(self.is_ready, PATIENCE, GLANCE)
        if kind in self._restart:
            with self._fault(kind):
                self._restart[kind]()
            return
        victim = self._victim()
        if self._scenario.aimed:
            self._await_due_time()
        self._make[kind](victim)

    def _await_due_time(self) -> None:
        entry = self._random.choice(["plain", "plain", "long"])
        rows = self.observer.ask("select anchor from pgleader.entries where entry = %s", entry)
        # Every entry but the crontab has its slots at the same fraction of a second.
        fraction = rows[0][0].timestamp() % 1 if rows and self._random.random() < 0.8 else 0.0
        seconds = fraction + self._random.uniform(-EARLY, LATE) - time.time()
        self._wait_until(time.monotonic() + seconds % 1)

    def _leader(self) -> Member | None:
        # A session that ends while it is looked at has no name any more.
        nodes = [seat.node for seat in self.observer.seats() if seat.role == "leader"]
        return self._fleet.members.get(nodes[0]) if nodes else None

    def _victim(self) -> Member:
        leader = self._leader()
        if leader is not None and self._random.random() < self._scenario.on_leader:
            return leader
        return self._random.choice([member for member in self._fleet.members.values() if member is not leader])

    def _term_of(self, member: Member | None) -> int | None:
        """Return the term that a member leads, or none."""
        told = [fact for fact in self._history.of("gained") if member and fact["node"] == member.node]
        return told[-1]["term"] if told and self._leader() is member else None

    def _await_next(self, term: int | None) -> None:
        """If the victim led, wait until a later term has begun."""

        def has_begun() -> bool:
            self.note_deaths()
            return any(fact["term"] > term for fact in self._history.of("gained"))

        if term is not None:
            eventually(has_begun, PATIENCE, GLANCE)

    def _harm_next(self, term: int | None, member: Member) -> None:
        """If the victim led, wait for the next leader, and now and then harm that one, too."""
        self._await_next(term)
        leader = self._leader()
        kinds = [kind for kind in ("kill", "terminate") if kind in self._scenario.faults]
        if leader is None or leader is member or term is None:
            return
        # A third in a row might be the last one.
        if kinds and not self._again and self._random.random() < self._scenario.twice:
            self._again = True
            self._pause(0.0, 0.2)
            self._make[self._random.choice(kinds)](leader)
            self._again = False

    @contextmanager
    def _fault(self, kind: str, member: Member | None = None, **detail: object) -> Iterator[int | None]:
        """Make a fault in the block, and tell of it; give the term that its victim leads."""
        term = self._term_of(member or self._leader())
        began = time.monotonic()
        yield term
        tell("fault", kind=kind, node=member.node if member else None, term=term, began=began, **detail)

    @contextmanager
    def _restarted(self, member: Member) -> Iterator[None]:
        """Start a member again that is ended in the block."""
        self._ended.add(member.node)
        yield
        member.program.wait()
        member.program.restart()
        self._ended.remove(member.node)

    def _wait_until(self, instant: float) -> None:
        threading.Event().wait(max(0.0, instant - time.monotonic()))

    def _pause(self, least: float, most: float) -> None:
        threading.Event().wait(self._random.uniform(least, most))

    def _kill(self, member: Member) -> None:
        group = self._random.random() < 0.5
        with self._restarted(member):
            with self._fault("kill", member, how="group" if group else "main") as term:
                member.program.send(signal.SIGKILL, group=group)
            self._harm_next(term, member)
            self._pause(0.0, 1.0)

    def _term(self, member: Member) -> None:
        with self._restarted(member):
            with self._fault("term", member) as term:
                member.program.send(signal.SIGTERM)
            self._await_next(term)
            member.program.wait()
            note_death(member.program)

    def _stop(self, member: Member) -> None:
        with self._fault("stop", member) as term:
            member.program.send(signal.SIGSTOP, group=True)
            self._harm_next(term, member)
            self._pause(0.0, 2.0)
            member.program.send(signal.SIGCONT, group=True)

    def _end_lead(self, kind: str, member: Member) -> None:
        with self._fault(kind, member) as term:
            if kind == "resign":
                member.program.send(RESIGN)
            else:
                self.observer.ask(TERMINATE_MEMBER, member.node, member.node)
        self._await_next(term)

    def _terminate_relay(self, member: Member) -> None:
        # Of all that the leader holds, only what it relays with: it goes on to lead.
        with self._fault("relay", member):
            self.observer.ask(TERMINATE_RELAY)

    def _cut_off(self, kind: str, member: Member) -> None:
        name = self._random.choice(["postgres", "postgres", "broker"])
        how = self._random.choice(["cut", "to server", "to client", "slow"]) if kind == "partition" else "deaf"
        link = member.links[name]
        with self._fault(kind, member, link=name, how=how) as term:
            if how == "cut":
                link.refuse()
            elif how == "slow":
                link.slow(0.2)
            else:
                link.deaf(*{"to server": [link.to_server], "to client": [link.to_client]}.get(how, []))
            if name == "postgres" and how != "slow" and term is not None:
                self._harm_next(term, member)
                self._pause(0.0, 1.0)
            else:
                # For longer, at most, than it takes until the server ends a session that it does not hear of.
                self._pause(0.3, self._scenario.ttl + 1.0)
            link.restore()

    def _clock(self, member: Member) -> None:
        step = self._random.choice([-1, 1]) * self._random.uniform(0.5, 5.0)
        with self._fault("clock", member, how=f"{step:+.1f} s"):
            member.clock.write_text(str(step))
            self._pause(1.0, 4.0)
            member.clock.write_text("0")

    def _crash_postgres(self) -> None:
        self._fleet.postgres.kill()
        self._fleet.postgres.start()


def note_death(program: Program) -> None:
    """Tell of a worker that ended otherwise than it should, or has not ended."""
    code = program.process.poll()
    if code != 0:
        errors = [line for line in program.logged().splitlines() if "Unrecoverable error" in line]
        tell("died", node=program.name, code=code, error=errors[-1] if errors else None)
