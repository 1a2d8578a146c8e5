"""Makes the faults: leaders are killed, stopped and cut off, and the broker and Postgres restarted."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from tests.relaying.clients import Client
from tests.relaying.count import Count, count_notifications, read_facts
from tests.support.eventually import eventually
from tests.support.programs import Program

KINDS = ("kill", "stop", "terminate", "terminate relay")
PATIENCE = 90.0
ELECTION = "relaying"
CLIENTS, KEYS, NODES = 8, 100, 3
# What the worker says of a run while the database is away.
UNGUARDED = re.compile(r"(?:cannot tell whether|could not write down how) notification (\d+) on")


class Driver:
    """Nodes that relay, a worker that runs, and clients that write."""

    def __init__(self, database: str, broker: str, folder: Path, seed: int) -> None:
        """Start the nodes and the worker."""
        self.kinds: dict[str, int] = Counter()
        self._database = database
        self._is_on_redis = broker.startswith("redis")
        self._config = Config(database_url=database, election=ELECTION)
        self._seed = seed
        self._random = random.Random(seed)
        self._facts = folder / "facts"
        self._facts.touch()
        self.clients: list[Client] = []
        environment = {
            **os.environ,
            "RELAYING_BROKER": broker,
            "RELAYING_DATABASE": database,
            "RELAYING_FACTS": str(self._facts),
            "PYTHONWARNINGS": "ignore",
        }
        python = sys.executable
        worker = [python, "-m", "celery", "-A", "tests.relaying.app", "worker", "-n", "consumer@test", "-P", "solo"]
        worker += ["--without-gossip", "--without-mingle", "-l", "INFO"]
        self._worker = Program("consumer", worker, environment, folder)
        self._nodes = {
            name: Program(
                name, [python, "-m", "tests.relaying.node", name, str(folder / f"{name}.schedule")], environment, folder
            )
            for name in (f"node{number}" for number in range(NODES))
        }

    def __enter__(self) -> Driver:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind."""
        for process in (*self._nodes.values(), self._worker):
            process.end()

    def run(
        self, notifications: int, seconds: float, faults: int, restarts: Sequence[tuple[str, Callable[[], None]]]
    ) -> Count:
        """Have so many written in so long, while as many faults are made; then wait for the end, and count.

        Args:
            notifications: how many durable ones, and as many raw ones.
            seconds: how long the clients take.
            faults: how many of those that a leader suffers.
            restarts: names, and what restarts a server; spread over the time, each once.

        """
        eventually(lambda: self._leader() and self._worker.has_logged("consumer@test ready"), PATIENCE)
        each = notifications // CLIENTS
        self.clients = [Client(self._database, number, each, seconds, KEYS, self._seed) for number in range(CLIENTS)]
        began = time.monotonic()
        for client in self.clients:
            client.start()
        plan = self._plan(seconds, faults, restarts)
        for at, kind, fault in plan:
            threading.Event().wait(max(0.0, began + at - time.monotonic()))
            self.kinds[kind] += 1
            fault()
        eventually(lambda: all(client.is_done() for client in self.clients), seconds + PATIENCE)
        self._settle(each * CLIENTS)
        written = [item for client in self.clients for item in client.written]
        return count_notifications(
            written,
            read_facts(self._facts),
            self._ask("select count(*) from pgleader.dead_letters"),
            {int(number) for number in UNGUARDED.findall(self._worker.logged())},
            self.kinds["restart broker"] if self._is_on_redis else 0,
        )

    def _plan(
        self, seconds: float, faults: int, restarts: Sequence[tuple[str, Callable[[], None]]]
    ) -> list[tuple[float, str, Callable[[], None]]]:
        kinds = [KINDS[number % len(KINDS)] for number in range(faults)]
        self._random.shuffle(kinds)
        plan: list[tuple[float, str, Callable[[], None]]] = []
        for number, kind in enumerate(kinds):
            at = seconds * (number + self._random.uniform(0.2, 0.8)) / faults
            plan.append((at, kind, lambda kind=kind: self._harm_leader(kind)))  # type: ignore[misc]  # of this round
        for number, (name, restart) in enumerate(restarts, 1):
            plan.append((seconds * number / (len(restarts) + 1), name, restart))
        return sorted(plan, key=lambda fault: fault[0])

    def _leader(self) -> tuple[Program, int] | None:
        with contextlib.suppress(psycopg.Error):
            leaders = [seat for seat in observe(self._config) if seat.role == "leader" and seat.node in self._nodes]
            return (self._nodes[leaders[0].node], leaders[0].backend_pid) if leaders else None
        return None

    def _harm_leader(self, kind: str) -> None:
        eventually(self._leader, PATIENCE)
        node, pid = self._leader() or (None, 0)
        if node is None:
            return
        if kind == "terminate relay":
            # Of all that the leader holds, only what it relays with: it goes on to lead.
            self._terminate("application_name like 'pgleader relay%%'")
            return
        if kind == "terminate":
            self._terminate("pid = %s", pid)
        else:
            node.send(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        eventually(lambda: (self._leader() or (node, pid))[1] != pid, PATIENCE)
        if kind == "stop":
            node.send(signal.SIGCONT)
        elif kind == "kill":
            node.await_end()
            node.restart()

    def _terminate(self, which: str, *parameters: object) -> None:
        with contextlib.suppress(psycopg.Error), psycopg.connect(self._database, autocommit=True) as connection:
            query = f"select pg_terminate_backend(pid) from pg_stat_activity where {which}"
            connection.execute(query.encode(), parameters)

    def _ask(self, query: str) -> int:
        with psycopg.connect(self._database, autocommit=True) as connection:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            number: int = row[0]
            return number

    def _settle(self, notifications: int) -> None:
        """Wait until all was dispatched, all was run, and nothing comes any more."""
        eventually(lambda: not self._ask("select count(*) from pgleader.notifications"), PATIENCE)
        self._await_runs(notifications)
        # What is delivered again comes at the end of the queue.
        seen = -1
        while seen != (size := self._facts.stat().st_size):
            seen = size
            threading.Event().wait(2.0)

    def _await_runs(self, notifications: int) -> None:
        """Wait until all was run, or until there is no progress: what is missing is counted then."""
        runs, since = -1, time.monotonic()
        while runs < notifications and time.monotonic() < since + PATIENCE:
            names = {(fact["client"], fact["number"]) for fact in read_facts(self._facts) if fact["what"] == "run"}
            if len(names) != runs:
                runs, since = len(names), time.monotonic()
            threading.Event().wait(0.5)
