"""Three nodes of one contender, on servers of their own, and what is done to their leader."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import psycopg
import redis

from benchmarks.ear import Ear
from benchmarks.failover.contenders import PERIOD, PROGRAMS, Contender
from benchmarks.failover.ticks import Tick, count
from example_app.servers import EmbeddedPostgres, EmbeddedValkey, Server
from example_app.waiting import wait_until
from tests.support.programs import Program

NODES = 3
START = 60.0
GLANCE = 0.005
# By when a node that does not tell runs.
SILENCE = 2.0
# Until a node that ticks as well would be seen to.
AFTERMATH = 2.5
# For how long a stopped leader stays stopped once another leads.
STOPPED = 1.5

TERM, KILL, STOP, DISCONNECT, RESTART = "TERM", "kill -9", "SIGSTOP", "session ended", "server restart"
SIGNALS = {TERM: signal.SIGTERM, KILL: signal.SIGKILL, STOP: signal.SIGSTOP}
FAULTS = (TERM, KILL, STOP, DISCONNECT, RESTART)

# The session that holds the lock of the election: our own, or that of the other programs.
END_LEADING_SESSION = """
select pg_terminate_backend(pid) from pg_locks
 where locktype = 'advisory' and granted and (classid = 1885826048 or objid = 4242)
"""
WAITING_SESSIONS = "select count(distinct pid) from pg_locks where locktype = 'advisory' and not granted"


@dataclass(frozen=True)
class Outcome:
    """What one fault led to.

    Attributes:
        leader: seconds until the next leader; none if there was none.
        changed: whether there was to be another leader at all: one that is cut off from a lock in Redis keeps it.
        tick: seconds until the next tick; none if there was none, or if there are no ticks.
        missed: ticks.
        duplicated: ticks.

    """

    leader: float | None
    changed: bool
    tick: float | None = None
    missed: int = 0
    duplicated: int = 0


class Lane:
    """One contender's nodes. Its thread has to last: they die with it."""

    def __init__(self, contender: Contender, *, ticks: bool = True) -> None:
        """Begin without a node.

        Args:
            contender: whose nodes they are.
            ticks: whether ticks are counted, if it has such.

        """
        self.contender = contender
        self._ticks = ticks and contender.ticks
        self._ended = contextlib.ExitStack()
        self._nodes: dict[str, Program] = {}
        self._started = 0

    def __enter__(self) -> Lane:
        """Start servers and nodes."""
        try:
            self._folder = Path(self._ended.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            self._ear = self._ended.enter_context(Ear())
            self.postgres = self._ended.enter_context(EmbeddedPostgres())
            self._valkey = self._ended.enter_context(EmbeddedValkey())
            self._client = self._ended.enter_context(redis.Redis.from_url(self._valkey.url, decode_responses=True))
            if self.contender.owner is not None:
                self._ended.enter_context(self._watched(self.contender.owner))
            self._ended.callback(self._end_nodes)
            self._start_all()
        except BaseException:
            self._ended.close()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""
        self._ended.close()

    def applies(self, fault: str) -> bool:
        """Tell whether a fault says something about this contender."""
        if not self.contender.elects:
            return fault in {TERM, KILL}
        return self.contender.returns or fault != RESTART

    def trial(self, fault: str, bound: float) -> Outcome:
        """Do harm to the leader, and see what comes of it.

        Args:
            fault: what is done.
            bound: seconds after which a next leader, and a next tick, is not waited for any more.

        """
        leader = self._await_order()
        began = self._harm(leader, fault)

        def fresh(fact: dict[str, Any]) -> bool:
            return fault not in {KILL, STOP} or fact["node"] != leader

        led = self._ear.await_fact("leads", began, bound, fresh) if self._changes_leader(fault) else None
        left = max(0.0, began + bound - time.monotonic())
        ticked = self._ear.await_fact("tick", began, left, fresh) if self._ticks else None
        recovered = (ticked if self._ticks else led) is not None
        if fault == STOP:
            threading.Event().wait(STOPPED)
            self._nodes[leader].send(signal.SIGCONT, group=True)
        if ticked:
            threading.Event().wait(AFTERMATH)
        if led is None:
            # One that keeps its lock may lose it all the same.
            led = self._ear.await_fact("leads", began, 0, fresh)
        missed, duplicated = self._count(began) if ticked else (0, 0)
        self._repair(leader, fault, recovered=recovered)
        return Outcome(
            leader=led["at"] - began if led else None,
            changed=led is not None or self._changes_leader(fault),
            tick=ticked["at"] - began if ticked else None,
            missed=missed,
            duplicated=duplicated,
        )

    def _changes_leader(self, fault: str) -> bool:
        return self.contender.elects and (fault in {TERM, KILL, STOP} or self.contender.store == "postgres")

    def _harm(self, leader: str, fault: str) -> float:
        """Do it; return when it began."""
        node = self._nodes[leader]
        if fault == DISCONNECT and self.contender.store == "postgres":
            with psycopg.connect(self.postgres.url(), autocommit=True) as session:
                began = time.monotonic()
                session.execute(END_LEADING_SESSION)
        elif fault == DISCONNECT:
            clients = self._clients(node)
            began = time.monotonic()
            for client in clients:
                self._client.client_kill_filter(_id=client)
        else:
            began = time.monotonic()
            if fault == RESTART:
                self._server().restart()
            else:
                node.send(SIGNALS[fault], group=fault != TERM)
        return began

    def _clients(self, node: Program) -> list[str]:
        """Return a node's connections, as Valkey knows them."""
        processes = [psutil.Process(node.process.pid)]
        processes += processes[0].children(recursive=True)
        ports = {connection.laddr.port for process in processes for connection in process.net_connections("tcp")}
        clients = self._client.client_list()
        return [client["id"] for client in clients if int(client["addr"].rpartition(":")[2]) in ports]

    def _await_order(self) -> str:
        """Wait until all is well, and a while of random length; return who leads."""
        self._complete()
        if self.contender.waits:
            with psycopg.connect(self.postgres.url(), autocommit=True) as session:
                self._await(lambda: session.execute(WAITING_SESSIONS).fetchone() == (NODES - 1,))
        since = time.monotonic()
        if self._ticks:
            # The second, since the first may make up for what was missed before.
            assert self._ear.await_fact("tick", since, START, times=2), self._logs()
        threading.Event().wait(random.uniform(0, self.contender.rhythm))
        facts = self._ear.facts("tick" if self._ticks else "leads")
        leader: str = facts[-1]["node"]
        return leader

    def _count(self, began: float) -> tuple[int, int]:
        before = self._ear.facts("tick")
        first = max(fact["at"] for fact in before if fact["at"] <= began)
        return count([Tick(f["at"], f["slot"]) for f in self._ear.facts("tick", first - 1e-6)], PERIOD)

    def _repair(self, leader: str, fault: str, *, recovered: bool) -> None:
        if not recovered or (fault in {DISCONNECT, RESTART} and not self.contender.returns):
            self._start_all()
        elif fault in {TERM, KILL}:
            self._nodes[leader].end()

    def _complete(self) -> None:
        """Start a node for each that has ended, of itself or not."""
        for name, node in list(self._nodes.items()):
            if node.process.poll() is not None:
                del self._nodes[name]
                node.end()
                self._start()
        self._await_ready()

    def _start_all(self) -> None:
        """Begin from nothing."""
        self._end_nodes()
        if self.contender.ticks:
            self._client.flushall()
        self._ear.forget()
        for _ in range(NODES):
            self._start()
            # Not in step with each other.
            threading.Event().wait(random.uniform(0, self.contender.rhythm / NODES))
        self._await_ready()
        if self.contender.elects:
            assert self._ear.await_fact("leads", 0.0, START), self._logs()

    def _start(self) -> None:
        self._started += 1
        name = f"n{self._started}"
        folder = self._folder / name
        folder.mkdir()
        places = {
            "{node}": name,
            "{folder}": str(folder),
            "{database}": self.postgres.url(),
            "{broker}": self._valkey.url,
        }

        def fill(text: str) -> str:
            for place, value in places.items():
                text = text.replace(place, value)
            return text

        environment = {
            **os.environ,
            "PYTHONPATH": str(PROGRAMS),
            "BENCH_EAR": str(self._ear.port),
            "BENCH_NODE": name,
            **{key: fill(value) for key, value in self.contender.environment.items()},
        }
        self._nodes[name] = Program(name, [fill(word) for word in self.contender.command], environment, folder)

    def _await_ready(self) -> None:
        for name in self._nodes:
            patience = START if self.contender.tells else SILENCE
            told = self._ear.await_fact("ready", 0.0, patience, partial(_is_of, name))
            assert told or not self.contender.tells, self._logs()

    def _end_nodes(self) -> None:
        for node in self._nodes.values():
            node.end()
        self._nodes.clear()

    def _server(self) -> Server:
        return self.postgres if self.contender.store == "postgres" else self._valkey

    @contextmanager
    def _watched(self, owner: Callable[[Any], str | None]) -> Iterator[None]:
        """Tell of each change of the owner of a lock."""
        ended = threading.Event()

        def watch() -> None:
            last = None
            while not ended.wait(GLANCE):
                with contextlib.suppress(redis.ConnectionError):
                    now = owner(self._client)
                    if now is not None and now != last:
                        self._ear.note({"event": "leads", "node": now, "at": time.monotonic()})
                        last = now

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _await(self, is_true: Callable[[], bool]) -> None:
        assert wait_until(is_true, START, GLANCE), self._logs()

    def _logs(self) -> str:
        ends = [f"{name}: {node.logged()[-1500:]}" for name, node in self._nodes.items()]
        return "\n".join([self.contender.name, *ends])


def _is_of(name: str, fact: dict[str, Any]) -> bool:
    return bool(fact["node"] == name)
