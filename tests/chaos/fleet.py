"""The parts: Postgres and the broker, workers behind proxies, a witness that is left alone, and those who send."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.app import QUEUE, WITNESSED
from tests.chaos.scenarios import GREEN, Scenario
from tests.support.brokers import running_broker
from tests.support.programs import Program
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

WITNESS = "witness@chaos"
# Workers would create them together, and get into each other's way.
CREATE_TABLES = """
import os, sqlalchemy
from sqlalchemy_celery_beat.session import SessionManager
manager = SessionManager()
engine = manager.get_engine(os.environ["CHAOS_DATABASE"].replace("postgresql://", "postgresql+psycopg://"))
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("create schema celery_schema"))
manager.prepare_models(engine)
"""


@dataclass(frozen=True)
class Member:
    """A worker, what lies between it and the servers, and its clock."""

    program: Program
    links: dict[str, Proxy]
    clock: Path

    @property
    def node(self) -> str:
        """Its name in the election."""
        return self.program.name


@dataclass(frozen=True)
class Fleet:
    """Everything that takes part.

    Attributes:
        scenario: in what.
        postgres: the server.
        database: the URL of the database that is used.
        broker: the other server.
        start: starts a program, by its name and command, with more in its environment.
        members: the workers that stand for the election.
        workers: all that run tasks.

    """

    scenario: Scenario
    postgres: EmbeddedPostgres
    database: str
    broker: EmbeddedValkey | RabbitMQ
    start: Callable[..., Program]
    members: dict[str, Member] = field(default_factory=dict)
    workers: list[Program] = field(default_factory=list)

    def start_clients(self, seed: int) -> Program:
        """Have those who send begin."""
        return self.start("clients", [sys.executable, "-m", "tests.chaos.clients", str(seed)])


@contextmanager
def gathered(
    scenario: Scenario, postgres: EmbeddedPostgres, broker: EmbeddedValkey | RabbitMQ, folder: Path, dbname: str
) -> Iterator[Fleet]:
    """Start everybody but those who send, and leave no process behind."""
    database, store = postgres.url(dbname), dbname
    two = scenario.scheduler == "django-two-databases"
    if two:
        store = f"{dbname}_store"
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"create database {store}".encode())
    environment = {
        **os.environ,
        "CHAOS_SCENARIO": scenario.dump(),
        "CHAOS_HISTORY": str(folder / "history"),
        "CHAOS_DATABASE": database,
        "CHAOS_STORE": postgres.url(store),
        "CHAOS_BROKER": broker.url,
        # The system's fork check is about threads that are only ever used by the parent.
        "PYTHONWARNINGS": "ignore",
    }
    if scenario.scheduler.startswith("django"):
        environment["DJANGO_SETTINGS_MODULE"] = "tests.chaos.django_settings"
        for options in [["--database", "ledger", "pgleader"], []] if two else [[]]:
            migrate = [sys.executable, "-m", "django", "migrate", "-v", "0", *options]
            subprocess.run(migrate, env=environment, check=True)
    if scenario.scheduler == "sqlalchemy":
        subprocess.run([sys.executable, "-c", CREATE_TABLES], env=environment, check=True)
    celery = [sys.executable, "-m", "celery", "-A", "tests.chaos.app", "worker", "-l", "INFO"]
    pool = ["-Q", QUEUE, "-P", scenario.pool, "-c", "2"]
    if scenario.pool in GREEN:
        # Its heartbeat waits for confirmations, on a connection from which another green thread takes them.
        pool.append("--without-heartbeat")
    with ExitStack() as stack:

        def start(name: str, command: list[str], **variables: str) -> Program:
            program = Program(name, command, {**environment, **variables}, folder)
            stack.callback(program.end)
            return program

        fleet = Fleet(scenario, postgres, database, broker, start)
        for number in range(scenario.workers):
            node = f"node{number}@chaos"
            links = {"postgres": Proxy(postgres.port), "broker": Proxy(broker.port)}
            for proxy in links.values():
                stack.callback(proxy.close)
            clock = folder / f"{node}.clock"
            clock.write_text("0")
            program = start(
                node,
                [*celery, "--pgleader", "-n", node, *pool],
                CHAOS_DATABASE=_through(database, links["postgres"]),
                CHAOS_STORE=_through(postgres.url(store), links["postgres"]),
                CHAOS_BROKER=_through(broker.url, links["broker"]),
                CHAOS_SCHEDULE=str(folder / f"{node}.schedule"),
                CHAOS_CLOCK=str(clock),
            )
            fleet.members[node] = Member(program, links, clock)
            fleet.workers.append(program)
        if scenario.entries or scenario.notifying:
            fleet.workers.append(start(WITNESS, [*celery, "-n", WITNESS, "-Q", WITNESSED, "-P", "solo"]))
        yield fleet


@contextmanager
def servers(broker: str) -> Iterator[tuple[EmbeddedPostgres, EmbeddedValkey | RabbitMQ]]:
    """Start a Postgres that keeps what was committed, and a broker."""
    with EmbeddedPostgres(settings={"fsync": "on", "full_page_writes": "on"}) as postgres, running_broker(broker) as it:
        yield postgres, it


def _through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{proxy.port}"))
