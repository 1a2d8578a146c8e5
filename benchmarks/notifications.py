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
from contextlib import contextmanager
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

# One program for each client, so that they do not share an interpreter.
WRITER = """
import json, sys, time, psycopg
url, statement, wake, payload, seconds = sys.argv[1:]
with psycopg.connect(url, autocommit=True) as connection:
    connection.execute("select set_config('pgleader.wake', %s, false)", [wake])
    for _ in range(50):
        connection.execute(statement, [payload])
    print("ready", flush=True)
    sys.stdin.readline()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < float(seconds):
        connection.execute(statement, [payload])
        count += 1
    print(count / (time.perf_counter() - began), flush=True)
"""
STATEMENTS = {
    "plain insert": ("insert into plain (payload) values (%s::jsonb)", "on"),
    "plain insert, NOTIFY": (
        "with added as (insert into plain (payload) values (%s::jsonb)) select pg_notify('orders', '')",
        "on",
    ),
    "durable, NOTIFY": ("select pgleader.notify('orders', %s::jsonb)", "on"),
    "durable, no NOTIFY": ("select pgleader.notify('orders', %s::jsonb)", "off"),
}


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
    """Transactions per second of all clients, and how much longer one takes than a plain insert."""

    contender: str
    clients: int
    per_second: float
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


def write_cost(database: str, seconds: float, rounds: int) -> list[WriteCost]:
    """Measure transactions of one statement each, by one client and by eight."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "create table plain (id bigint generated always as identity primary key, payload jsonb not null)"
        )
    results = []
    for clients in (1, 8):
        rates: dict[str, list[float]] = {name: [] for name in STATEMENTS}
        for _ in range(rounds):
            for name, (statement, wake) in STATEMENTS.items():
                with psycopg.connect(database, autocommit=True) as connection:
                    connection.execute("truncate plain, pgleader.notifications")
                    connection.execute("checkpoint")
                rates[name].append(_write(database, statement, wake, seconds, clients))
        plain = statistics.median(rates["plain insert"])
        for name in STATEMENTS:
            rate = statistics.median(rates[name])
            results.append(WriteCost(name, clients, round(rate), round(plain / rate, 2)))
    return results


def _write(database: str, statement: str, wake: str, seconds: float, clients: int) -> float:
    command = [sys.executable, "-c", WRITER, database, statement, wake, json.dumps(PAYLOAD), str(seconds)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(clients)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return sum(float(writer.communicate()[0]) for writer in writers)


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
    number, rounds, seconds = (1_000, 1, 1.0) if quick else (10_000, 3, 3.0)
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
        results += write_cost(postgres.url(), seconds, rounds)
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
