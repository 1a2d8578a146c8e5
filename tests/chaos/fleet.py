"""The parts: Postgres and the broker, workers behind proxies, a witness that is left alone, and those who send."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import psycopg

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.app import QUEUE, WITNESSED
from tests.chaos.scenarios import GREEN, Scenario
from tests.support.brokers import running_broker
from tests.support.programs import Program
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ

Broker: TypeAlias = EmbeddedValkey | RabbitMQ
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
    node: str
    links: dict[str, Proxy]
    clock: Path


@dataclass(frozen=True)
class Fleet:
    """Everything that takes part; `start` starts one more program, by its name and command."""

    scenario: Scenario
    postgres: EmbeddedPostgres
    database: str
    broker: Broker
    start: Callable[..., Program]
    members: dict[str, Member] = field(default_factory=dict)
    workers: list[Program] = field(default_factory=list)


@contextmanager
def gathered(
    scenario: Scenario, postgres: EmbeddedPostgres, broker: Broker, folder: Path, dbname: str
) -> Iterator[Fleet]:
    """Start everybody but those who send, and leave no process behind."""
    two = scenario.scheduler == "django-two-databases"
    database, store = postgres.url(dbname), postgres.url(f"{dbname}_store" if two else dbname)
    if two:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f"create database {dbname}_store".encode())
    environment = {
        **os.environ,
        # A killed worker leaves temporary files behind; here they go with the folder.
        "TMPDIR": str(folder),
        "CHAOS_SCENARIO": json.dumps(dataclasses.asdict(scenario)),
        "CHAOS_HISTORY": str(folder / "history"),
        "CHAOS_DATABASE": database,
        "CHAOS_STORE": store,
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
                CHAOS_DATABASE=_through(database, postgres.port, links["postgres"]),
                CHAOS_STORE=_through(store, postgres.port, links["postgres"]),
                CHAOS_BROKER=_through(broker.url, broker.port, links["broker"]),
                CHAOS_SCHEDULE=str(folder / f"{node}.schedule"),
                CHAOS_CLOCK=str(clock),
            )
            fleet.members[node] = Member(program, node, links, clock)
            fleet.workers.append(program)
        if scenario.entries or scenario.notifying:
            fleet.workers.append(start(WITNESS, [*celery, "-n", WITNESS, "-Q", WITNESSED, "-P", "solo"]))
        yield fleet


@contextmanager
def servers(broker: str) -> Iterator[tuple[EmbeddedPostgres, Broker]]:
    """Start a Postgres that keeps what was committed, and a broker."""
    with EmbeddedPostgres(settings={"fsync": "on", "full_page_writes": "on"}) as postgres, running_broker(broker) as it:
        yield postgres, it


def _through(url: str, port: int, proxy: Proxy) -> str:
    return url.replace(f":{port}/", f":{proxy.port}/")
