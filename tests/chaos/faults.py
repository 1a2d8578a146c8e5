"""Makes the faults, and says what it made: of what follows from them it knows nothing."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from tests.chaos.app import ELECTION, TTL
from tests.chaos.fleet import Fleet, Member
from tests.chaos.history import History, tell
from tests.support.eventually import eventually
from tests.support.programs import Program

KINDS = (
    "kill",
    "term",
    "stop",
    "terminate",
    "partition",
    "deaf",
    "pg-restart",
    "pg-crash",
    "broker-restart",
    "clock",
)
# Of the faults that befall a worker, so many befall the leader.
LEADERS_SHARE = 0.75
PATIENCE = 60.0
# So often whoever leads next is harmed as well, before all is well again.
TWICE_SHARE = 0.3
# Longer than it takes until the server ends a session that it does not hear of.
SILENCE = TTL + 1.0


ELECTION_SESSION = """
    select pid from pg_stat_activity
     where application_name in ('pgleader leader ' || %(node)s, 'pgleader follower ' || %(node)s)
"""


class Injector:
    """Makes one fault after the other, drawn by a seed."""

    def __init__(self, fleet: Fleet, history: History, kinds: list[str], seed: int) -> None:
        """Prepare.

        Args:
            fleet: whom they befall.
            history: what is told, to see who leads.
            kinds: which faults.
            seed: in which order, when, and whom.

        """
        self._fleet = fleet
        self._history = history
        self._kinds = kinds
        self._order = random.Random(f"{seed} order")
        self._random = random.Random(f"{seed} details")
        self._again = False
        # Those that are started again by whoever ended them.
        self._ended: set[str] = set()
        self._config = Config(database_url=fleet.postgres.url(), election=ELECTION)
        self._make: dict[str, Callable[[Member], None]] = {
            "kill": self._kill,
            "term": self._term,
            "stop": self._stop,
            "terminate": self._terminate,
            "partition": self._partition,
            "deaf": self._deaf,
            "clock": self._clock,
        }
        self._restart: dict[str, Callable[[], None]] = {
            "pg-restart": fleet.postgres.restart,
            "pg-crash": self._crash_postgres,
            "broker-restart": fleet.broker.restart,
        }

    def run(self, until: float) -> None:
        """Make faults until this instant, each kind once before any comes again."""
        waiting: list[str] = []
        while True:
            self._pause(0.2, 1.5)
            if time.monotonic() > until:
                return
            if not waiting:
                waiting = self._order.sample(self._kinds, len(self._kinds))
            kind = waiting.pop()
            eventually(self.is_ready, PATIENCE)
            if kind in self._restart:
                with self._fault(kind):
                    self._restart[kind]()
            else:
                self._make[kind](self._victim())

    def note_deaths(self) -> None:
        """Tell of every worker that is not there, though nobody has ended it, and start it again."""
        for program in self._fleet.workers:
            if program.name not in self._ended and program.process.poll() is not None:
                note_death(program)
                program.restart()

    def _leader(self) -> Member | None:
        """Return who leads."""
        with contextlib.suppress(psycopg.Error):
            # A session that ends while it is looked at has no name any more.
            nodes = [seat.node for seat in observe(self._config) if seat.role == "leader"]
            return self._fleet.members.get(nodes[0]) if nodes else None
        return None

    def is_ready(self) -> bool:
        """Tell whether all is well; from workers that have only just been started there is little to be learnt."""
        self.note_deaths()
        return (
            all(program.has_logged(f"{program.name} ready.") for program in self._fleet.workers) and self._is_settled()
        )

    def _is_settled(self) -> bool:
        """Tell whether somebody leads, and another is there to follow."""
        with contextlib.suppress(psycopg.Error):
            return {"leader", "successor"} <= {seat.role for seat in observe(self._config)}
        return False

    def _victim(self) -> Member:
        leader = self._leader()
        if leader is not None and self._random.random() < LEADERS_SHARE:
            return leader
        return self._random.choice([member for member in self._fleet.members.values() if member is not leader])

    def _term_of(self, member: Member | None) -> int | None:
        """Return the term that a member leads, or none."""
        told = [fact for fact in self._history.of("gained") if member and fact["node"] == member.node]
        return told[-1]["term"] if told and self._leader() is member else None

    def _await_next(self, term: int) -> None:
        """Wait until a later term has begun."""

        def has_begun() -> bool:
            self.note_deaths()
            return any(fact["term"] > term for fact in self._history.of("gained"))

        eventually(has_begun, PATIENCE)

    def _harm_next(self, term: int | None, member: Member) -> None:
        """If the victim led, wait for the next leader, and now and then harm that one, too."""
        if term is None:
            return
        self._await_next(term)
        kinds = [kind for kind in ("kill", "terminate") if kind in self._kinds]
        leader = self._leader()
        # A third in a row might be the last one.
        if not self._again and kinds and leader and leader is not member and self._random.random() < TWICE_SHARE:
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

    def _pause(self, least: float, most: float) -> None:
        threading.Event().wait(self._random.uniform(least, most))

    def _kill(self, member: Member) -> None:
        group = self._random.random() < 0.5
        self._ended.add(member.node)
        with self._fault("kill", member, how="group" if group else "main") as term:
            member.program.send(signal.SIGKILL, group=group)
        self._harm_next(term, member)
        member.program.wait()
        self._pause(0.0, 1.0)
        member.program.restart()
        self._ended.remove(member.node)

    def _term(self, member: Member) -> None:
        self._ended.add(member.node)
        with self._fault("term", member) as term:
            member.program.send(signal.SIGTERM)
        if term is not None:
            self._await_next(term)
        member.program.wait()
        note_death(member.program)
        member.program.restart()
        self._ended.remove(member.node)

    def _stop(self, member: Member) -> None:
        with self._fault("stop", member) as term:
            member.program.send(signal.SIGSTOP, group=True)
            self._harm_next(term, member)
            self._pause(0.0, 2.0)
            member.program.send(signal.SIGCONT, group=True)

    def _terminate(self, member: Member) -> None:
        with psycopg.connect(self._config.database_url, autocommit=True) as db:
            pids = [pid for (pid,) in db.execute(ELECTION_SESSION, {"node": member.node})]
            with self._fault("terminate", member) as term:
                db.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) pid", [pids])
        if term is not None:
            self._await_next(term)

    def _partition(self, member: Member) -> None:
        name = self._random.choice(["postgres", "postgres", "broker"])
        link = member.links[name]
        how = self._random.choice(["cut", "to server", "to client", "slow"])
        with self._fault("partition", member, link=name, how=how) as term:
            if how == "cut":
                link.refuse()
            elif how == "slow":
                link.slow(0.2)
            else:
                link.deaf(link.to_server if how == "to server" else link.to_client)
            self._last(name, term if how != "slow" else None, member)
            link.restore()

    def _deaf(self, member: Member) -> None:
        name = self._random.choice(["postgres", "postgres", "broker"])
        link = member.links[name]
        with self._fault("deaf", member, link=name) as term:
            link.deaf()
            self._last(name, term, member)
            link.restore()

    def _last(self, link: str, term: int | None, member: Member) -> None:
        """Have a partition last until another leads, or for some seconds if it does not come to that."""
        if link == "postgres" and term is not None:
            self._harm_next(term, member)
            self._pause(0.0, 1.0)
        else:
            self._pause(0.3, SILENCE)

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
