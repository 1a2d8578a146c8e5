"""What durable notifications cost, beside what would be used without them: `python -m benchmarks.notifications`.

All contenders of one measurement run in turns, in one process, on servers of their own; the Postgres flushes to disk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
from celery import Celery

from celery_pgleader import Term, notify
from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.notifications.dispatcher import Dispatcher
from celery_pgleader.notifications.listener import Listener
from celery_pgleader.notifications.relay import Relay
from celery_pgleader.postgres import open_session
from celery_pgleader.store import LEDGER_TERMS, Schema
from celery_pgleader.threads import Ending
from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq

PAYLOAD = {"id": 4711, "customer": "c-0815", "total": "129.90", "items": [{"sku": "tea-1", "count": 2}] * 3}
WARM_UP = 20
ROUTES = {"orders": (Route("bench.on_order"),)}

# One program for each client, so that they do not share an interpreter. Told for how long to run which statement, it
# prints how long one takes, in milliseconds. It thinks in between, so that it makes `pace` of them in a second; or not
# at all, if that is 0.
WRITER = """
import json, random, sys, time, psycopg
url, payload, pace = sys.argv[1:]
thought = 1 / float(pace) if float(pace) else 0
with psycopg.connect(url, autocommit=True) as connection:
    for line in sys.stdin:
        statement, wake, seconds = json.loads(line)
        connection.execute("select set_config('pgleader.wake', %s, false)", [wake])
        count, spent, until = 0, 0.0, time.perf_counter() + seconds
        while not count or time.perf_counter() < until:
            if thought:
                time.sleep(random.uniform(0, 2 * thought))
            began = time.perf_counter()
            connection.execute(statement, [payload])
            spent += time.perf_counter() - began
            count += 1
        print(1000 * spent / count, flush=True)
"""
STATEMENTS = {
    "plain insert": ("insert into plain (payload) values (%s::jsonb)", "on"),
    "plain insert, always NOTIFY": (
        "with added as (insert into plain (payload) values (%s::jsonb)) select pg_notify('orders', '')",
        "on",
    ),
    "durable": ("select pgleader.notify('orders', %s::jsonb)", "on"),
    "durable, pgleader.wake = off": ("select pgleader.notify('orders', %s::jsonb)", "off"),
}
# Whether there is a leader, and how many transactions a client makes in a second; 0 is as many as it can.
SITUATIONS = {"nobody leads": (False, 0), "a leader relays": (True, 0), "at a moderate pace": (True, 50)}


@dataclass(frozen=True)
class Throughput:
    """Messages per second that reach the broker."""

    broker: str
    relay: float
    loop: float
    ratio: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds from COMMIT until the message is in the broker; both unloaded, in turns."""

    broker: str
    durable_p50: float
    durable_p99: float
    raw_p50: float
    raw_p99: float


@dataclass(frozen=True)
class WriteCost:
    """How long a transaction takes, in milliseconds, and how much longer than a plain insert."""

    situation: str
    clients: int
    contender: str
    milliseconds: float
    ratio: float


class Bench:
    """An app on a broker, and a leader in threads of this process."""

    def __init__(self, database: str, broker: str, **transport_options: Any) -> None:
        """Begin a term."""
        self.app = Celery("bench", broker=broker, set_as_current=False)
        self.app.conf.update(broker_transport_options=transport_options, task_ignore_result=True)

        @self.app.task(name="bench.on_order", shared=False)
        def on_order(order: object) -> None:
            """Handle an order."""

        self.task = on_order
        self.database = database
        self.config = Config(database_url=database, election="bench")
        session = LockSession.open(self.config, "a", LEDGER_TERMS)
        place = session.take_place()
        assert place is not None
        session.await_lock(lambda: False)
        minted = session.mint_term(place)
        assert minted is not None
        session.release("resigned")
        session.close()
        self.term = Term(minted[0], "bench", "a", minted[1])
        self.leadership = Leadership()
        self.leadership.gain(self.term, float("inf"), "elected")

    @contextmanager
    def running(self, run: Callable[[Term, Ending], None]) -> Iterator[None]:
        """Run a part of a leader."""
        ended = Ending()
        thread = threading.Thread(target=run, args=[self.term, ended], daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(30)

    def relay(self) -> Callable[[Term, Ending], None]:
        """Return what relays."""
        return Relay(self.app, self.config, self.leadership, ROUTES).run

    def listener(self) -> Callable[[Term, Ending], None]:
        """Return what listens, and dispatches with `apply_async`."""
        dispatcher = Dispatcher(self.app, ROUTES)
        return Listener(self.config, self.leadership, ROUTES, dispatcher.dispatch).run


def throughput(name: str, bench: Bench, number: int, rounds: int) -> Throughput:
    """Measure a backlog's way to the broker against a loop, in turns."""
    relayed, looped = [], []
    for _ in range(rounds):
        with psycopg.connect(bench.database) as connection:
            connection.execute(
                "insert into pgleader.notifications (channel, key, payload)"
                " select 'orders', (g %% 100)::text, %s::jsonb from generate_series(1, %s) g",
                [json.dumps(PAYLOAD), number],
            )
        began = time.perf_counter()
        with bench.running(bench.relay()), psycopg.connect(bench.database, autocommit=True) as connection:
            _await_empty(connection)
            relayed.append(number / (time.perf_counter() - began))
        bench.task.apply_async((PAYLOAD,))
        began = time.perf_counter()
        for _ in range(number):
            bench.task.apply_async((PAYLOAD,))
        looped.append(number / (time.perf_counter() - began))
    relay, loop = statistics.median(relayed), statistics.median(looped)
    return Throughput(name, round(relay), round(loop), round(relay / loop, 2))


def latency(name: str, bench: Bench, number: int) -> Latency:
    """Measure single notifications, durable and raw in turns, until their message is there."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with (
        bench.running(bench.relay()),
        bench.running(bench.listener()),
        psycopg.connect(bench.database) as connection,
        bench.app.connection_for_read() as broker,
    ):
        queue = bench.app.amqp.queues["celery"](broker.default_channel)
        queue.declare()
        queue.purge()
        _hear_both(connection, queue)
        for turn in range(2 * number + WARM_UP):
            durable = bool(turn % 2)
            notify("orders", PAYLOAD, durable=durable, connection=connection)
            connection.commit()
            began = time.perf_counter()
            while queue.get(no_ack=True) is None:
                pass
            if turn >= WARM_UP:
                times[durable].append(1000 * (time.perf_counter() - began))
            threading.Event().wait(0.01)
    return Latency(name, *(round(value, 2) for durable in (True, False) for value in _quantiles(times[durable])))


def write_cost(bench: Bench, seconds: float, rounds: int) -> list[WriteCost]:
    """Measure transactions of one statement each, by one client and by eight.

    Args:
        bench: where to send.
        seconds: how long each of them writes in each round.
        rounds: how often. What else the machine does changes all the time; so what is written one after the other is
            compared, and the median counts.

    """
    with psycopg.connect(bench.database) as connection:
        connection.execute(
            "create table plain (id bigint generated always as identity primary key, payload jsonb not null)"
        )
    results = []
    for situation, (has_leader, pace) in SITUATIONS.items():
        for clients in (1, 8):
            with (
                bench.running(bench.relay()) if has_leader else nullcontext(),
                _writers(bench, clients, pace) as writers,
            ):
                _write(writers, "plain insert", seconds)
                times = [
                    # What comes first or last has no advantage.
                    {name: _write(writers, name, seconds) for name in sorted(STATEMENTS, reverse=bool(number % 2))}
                    for number in range(rounds)
                ]
            for name in STATEMENTS:
                taken = statistics.median(of[name] for of in times)
                ratio = statistics.median(of[name] / of["plain insert"] for of in times)
                results.append(WriteCost(situation, clients, name, round(taken, 3), round(ratio, 2)))
            with psycopg.connect(bench.database) as connection:
                connection.execute("truncate plain, pgleader.notifications")
    return results


@contextmanager
def _writers(bench: Bench, number: int, pace: int) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-c", WRITER, bench.database, json.dumps(PAYLOAD), str(pace)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(number)
    ]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.communicate()


def _write(writers: list[subprocess.Popen[str]], name: str, seconds: float) -> float:
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(json.dumps([*STATEMENTS[name], seconds]) + "\n")
        writer.stdin.flush()
    taken = []
    for writer in writers:
        assert writer.stdout is not None
        taken.append(float(writer.stdout.readline()))
    return statistics.mean(taken)


def _hear_both(connection: psycopg.Connection[Any], queue: Any) -> None:
    """Wait until what is sent raw is heard: what is sent before is lost."""
    while queue.get(no_ack=True) is None:
        notify("orders", PAYLOAD, durable=False, connection=connection)
        connection.commit()
        threading.Event().wait(0.2)
    queue.purge()


def _await_empty(connection: psycopg.Connection[Any]) -> None:
    never = threading.Event()
    while connection.execute("select 1 from pgleader.notifications limit 1").fetchone():
        never.wait(0.005)


def _quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


@contextmanager
def _rabbitmq() -> Iterator[str]:
    script = find_rabbitmq()
    if script is None:
        raise SystemExit("RabbitMQ is not installed")
    node = RabbitMQ(script)
    try:
        node.start()
        yield node.url
    finally:
        node.close()


def run(*, quick: bool) -> tuple[list[Any], str]:
    """Measure, and return the results with a table of them."""
    number, rounds, slices = (1_000, 1, 3) if quick else (10_000, 3, 21)
    durable = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB"}
    results: list[Any] = []
    with EmbeddedPostgres(settings=durable) as postgres, EmbeddedValkey() as valkey, _rabbitmq() as rabbitmq:
        with open_session(postgres.url(), "bench", unresponsive_after=5) as session:
            Schema(session).migrate()
        brokers: dict[str, tuple[str, dict[str, Any]]] = {
            "Valkey": (valkey.url, {}),
            "RabbitMQ": (rabbitmq, {"confirm_publish": True}),
        }
        for name, (url, transport_options) in brokers.items():
            bench = Bench(postgres.url(), url, **transport_options)
            results += [throughput(name, bench, number, rounds), latency(name, bench, number // 20)]
        results += write_cost(Bench(postgres.url(), valkey.url), 0.5, slices)
    return results, table(results)


def table(results: list[Any]) -> str:
    """Return a Markdown table for each kind of result."""
    lines: list[str] = []
    for kind in dict.fromkeys(type(result) for result in results):
        rows = [asdict(result) for result in results if type(result) is kind]
        lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)
