"""The demo: a shop that stays open while the leader of its workers is killed again and again."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import psycopg
import redis
from psycopg.sql import SQL

from example_app.cluster import Cluster, Worker
from example_app.interrupts import Interrupts
from example_app.summary import (
    CRASH,
    TERM,
    Fact,
    Failover,
    Fault,
    Summary,
    count_leader_only,
    count_notifications,
    count_ticks,
    judge,
    read_facts,
    read_slots,
    shortcomings,
)
from example_app.view import Scene, View
from example_app.waiting import wait_until
from example_app.watch import Seats, Watch

SCHEMA = Path(__file__).with_name("schema.sql")
SIGNALS: Mapping[str, signal.Signals] = {CRASH: signal.SIGKILL, TERM: signal.SIGTERM}
# As in example_app.shop, which reads its database's URL when it is imported, and so cannot be imported here.
REPORT_EVERY = 2.0
QUEUES = ("celery", "leader-shop")
ORDERS = SQL("select count(*) from orders")
DELIVERIES = SQL("select count(*) from deliveries")
LEFT = SQL("select count(*) from pgleader.notifications")

START_TIMEOUT = 60.0
FIRST_FAULT = 5.0
BETWEEN_FAULTS = 6.5
# Seconds left alone at the end, for at least one tick after the last failover.
CALM = 4.5
TAKEOVER_TIMEOUT = 15.0
# Seconds to wait for a successor before the leader is killed all the same.
SUCCESSOR_TIMEOUT = 10.0
# What a killed worker had taken comes back after the visibility timeout, five seconds.
DRAIN_TIMEOUT = 15.0
REDRAW_EVERY = 0.4


class DemoError(Exception):
    """The demo could not be carried through."""


class Demo:
    """Runs the shop and kills its leaders; the servers are there already."""

    def __init__(self, database_url: str, broker_url: str, folder: Path, view: View, interrupts: Interrupts) -> None:
        """Prepare; nothing runs before `run`.

        Args:
            database_url: an empty Postgres database.
            broker_url: an empty Redis or Valkey.
            folder: for logs.
            view: shows what happens.
            interrupts: asked now and then.

        """
        self._interrupts = interrupts
        self._db = psycopg.connect(database_url, autocommit=True)
        self._broker = redis.Redis.from_url(broker_url)
        self._watch = Watch(database_url)
        self._view = view
        self.cluster = Cluster(folder, {"SHOP_DATABASE_URL": database_url, "SHOP_BROKER_URL": broker_url})
        self._faults: list[Fault] = []
        self._opened_at = time.monotonic()
        self._seconds = 0.0
        self._redraw_at = 0.0

    def run(self, workers: int, seconds: float, *, dashboard: bool = False) -> tuple[Summary, list[str]]:
        """Run the demo.

        Args:
            workers: how many.
            seconds: how long the shop is open; starting and stopping come on top.
            dashboard: whether to serve the dashboard meanwhile.

        Returns:
            The summary, and what speaks against "the leader changed and work went on".

        Raises:
            DemoError: it could not be carried through.

        """
        self._db.execute(SCHEMA.read_text().encode())
        if dashboard:
            address = self.cluster.start_dashboard()
            if address is None:
                raise DemoError("the dashboard could not be started")
            self._view.say(f"the dashboard: {address}")
        self.cluster.start_workers(workers)
        self._view.say(f"started {workers} workers: celery -A example_app.shop worker --pgleader")
        self._wait_for_fleet(workers)

        self._opened_at, self._seconds = time.monotonic(), seconds
        self.cluster.start_customers()
        self._keep_open()
        closed_at, open_for = time.time(), time.monotonic() - self._opened_at

        if not self.cluster.stop_customers():
            raise DemoError("the customers left")
        if not self._drain():
            self._view.say(
                f"not everything was handled {DRAIN_TIMEOUT:.0f} s after closing time; the rest is not counted"
            )
        if not self.cluster.stop_workers():
            self._view.say("a worker took too long to stop on TERM, and was killed")
        summary, facts = self._sum_up(workers, open_for, closed_at)
        return summary, shortcomings(self._faults, facts)

    def close(self) -> None:
        """End all processes at once, and disconnect."""
        self.cluster.kill()
        self._watch.close()
        self._broker.close()
        self._db.close()

    def _wait_for_fleet(self, workers: int) -> None:
        """Wait until somebody leads and the others wait in line, of whom the election has two."""

        def ready() -> Seats | None:
            self._interrupts.check()
            for worker in self.cluster.workers:
                if not worker.is_running:
                    raise DemoError(f"{worker.node} ended with code {worker.process.returncode}")
            seats = self._watch.seats()
            return seats if seats.leader and len(seats.successors) >= min(2, workers - 1) else None

        started = time.monotonic()
        seats = wait_until(ready, START_TIMEOUT)
        if seats is None:
            raise DemoError(f"no leader with successors after {START_TIMEOUT:.0f} s")
        self._view.say(f"{seats.leader} leads after {time.monotonic() - started:.1f} s; the shop opens")

    def _keep_open(self) -> None:
        kinds = itertools.cycle([CRASH, TERM])
        fault_at = self._opened_at + FIRST_FAULT
        closing_at = self._opened_at + self._seconds

        def closed() -> bool:
            nonlocal fault_at
            now = time.monotonic()
            self._look_after()
            if fault_at <= now < closing_at - CALM and (victim := self._victim(overdue=now - fault_at)):
                self._strike(next(kinds), *victim)
                fault_at = now + BETWEEN_FAULTS
            return now >= closing_at

        wait_until(closed, float("inf"))

    def _look_after(self) -> None:
        """Start workers that have ended, those killed at the very end included, and redraw."""
        self._interrupts.check()
        for worker in self.cluster.revive():
            self._view.say(f"       {worker.node} starts again, as process {worker.process.pid}")
        if time.monotonic() >= self._redraw_at:
            self._redraw_at = time.monotonic() + REDRAW_EVERY
            self._show()

    def _victim(self, *, overdue: float) -> tuple[Worker, Seats] | None:
        """Return the leader, once somebody waits in line to take over; or soon without."""
        seats = self._watch.seats()
        worker = self.cluster.by_node(seats.leader) if seats.leader else None
        ready = seats.successors or overdue > SUCCESSOR_TIMEOUT
        return (worker, seats) if worker is not None and worker.is_running and ready else None

    def _strike(self, kind: str, worker: Worker, seats: Seats) -> None:
        pid = worker.process.pid
        at, started = time.time(), time.perf_counter()
        os.kill(pid, SIGNALS[kind])
        taken_over = self._watch.wait_for_takeover(seats, TAKEOVER_TIMEOUT)
        lock_ms = round((time.perf_counter() - started) * 1000, 1) if taken_over else None
        self._faults.append(Fault(kind, worker.node, pid, at, lock_ms))
        outcome = f"{taken_over.leader} leads after {lock_ms} ms" if taken_over else "nobody took over"
        self._view.say(f"{time.monotonic() - self._opened_at:4.0f} s  {kind} of {worker.node}: {outcome}")

    def _show(self) -> None:
        facts, seats = read_facts(self._db), self._watch.seats()
        elapsed, orders = time.monotonic() - self._opened_at, self._count(ORDERS)
        self._view.show(Scene(elapsed, self._seconds, seats, self.cluster.workers, self._faults, orders, facts))

    def _drain(self) -> bool:
        """Wait until no order waits for the leader, and no message for a worker; tell whether it came to that."""
        self._view.say("the shop closes: waiting for what is under way")
        looks: deque[bool] = deque([False], maxlen=10)

        def empty() -> bool:
            self._look_after()
            waiting = [self._broker.llen(queue) for queue in QUEUES]
            looks.append(not any([self._count(LEFT), *waiting, self._broker.hlen("unacked")]))
            # For a while, that is: a message may be on its way.
            return len(looks) == looks.maxlen and all(looks)

        return bool(wait_until(empty, DRAIN_TIMEOUT))

    def _sum_up(self, workers: int, seconds: float, closed_at: float) -> tuple[Summary, list[Fact]]:
        facts = read_facts(self._db)
        failovers: list[Failover] = [judge(fault, facts) for fault in self._faults]
        summary = Summary(
            workers=workers,
            seconds=round(seconds, 1),
            failovers=tuple(failovers),
            ticks=count_ticks(read_slots(self._db), facts, REPORT_EVERY, closed_at),
            notifications=count_notifications(facts, self._count(ORDERS)),
            leader_only=count_leader_only(facts, self._count(DELIVERIES)),
        )
        return summary, facts

    def _count(self, query: SQL) -> int:
        row = self._db.execute(query).fetchone()
        assert row is not None
        return int(row[0])
