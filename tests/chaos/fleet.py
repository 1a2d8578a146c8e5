"""The parts: Postgres and the broker, workers behind proxies, a witness that is left alone, and those who send."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.chaos.app import QUEUE, WITNESSED
from tests.support.brokers import running_broker
from tests.support.programs import Program
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ


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
    """Everything that takes part."""

    postgres: EmbeddedPostgres
    broker: EmbeddedValkey | RabbitMQ
    members: dict[str, Member]
    witness: Program
    clients: Program

    @property
    def workers(self) -> list[Program]:
        """All that run tasks."""
        return [*(member.program for member in self.members.values()), self.witness]


@contextmanager
def gathered(
    postgres: EmbeddedPostgres,
    broker: EmbeddedValkey | RabbitMQ,
    folder: Path,
    *,
    workers: int,
    seed: int,
) -> Iterator[Fleet]:
    """Start everybody, and leave no process behind.

    Args:
        postgres: the server.
        broker: the other one.
        folder: for the history and logs.
        workers: how many.
        seed: of what the clients send.

    """
    environment = {
        **os.environ,
        "CHAOS_DATABASE": postgres.url(),
        "CHAOS_BROKER": broker.url,
        "CHAOS_SCHEDULE": str(folder / "schedule"),
        # The system's fork check is about threads that are only ever used by the parent.
        "PYTHONWARNINGS": "ignore",
    }
    celery = [sys.executable, "-m", "celery", "-A", "tests.chaos.app", "worker", "-l", "INFO"]
    with ExitStack() as stack:

        def start(name: str, command: list[str], **variables: str) -> Program:
            program = Program(name, command, {**environment, **variables}, folder)
            stack.callback(program.end)
            return program

        members = {}
        for number in range(workers):
            node = f"node{number}@chaos"
            links = {"postgres": Proxy(postgres.port), "broker": Proxy(broker.port)}
            for proxy in links.values():
                stack.callback(proxy.close)
            clock = folder / f"{node}.clock"
            clock.write_text("0")
            program = start(
                node,
                [*celery, "--pgleader", "-n", node, "-Q", QUEUE, "-c", "2"],
                CHAOS_DATABASE=_through(postgres.url(), links["postgres"]),
                CHAOS_BROKER=_through(broker.url, links["broker"]),
                CHAOS_CLOCK=str(clock),
            )
            members[node] = Member(program, links, clock)
        witness = start("witness@chaos", [*celery, "-n", "witness@chaos", "-Q", WITNESSED, "-P", "solo"])
        clients = start("clients", [sys.executable, "-m", "tests.chaos.clients", str(seed)])
        yield Fleet(postgres, broker, members, witness, clients)


@contextmanager
def servers(broker: str) -> Iterator[tuple[EmbeddedPostgres, EmbeddedValkey | RabbitMQ]]:
    """Start a Postgres that keeps what was committed, and a broker."""
    with EmbeddedPostgres(settings={"fsync": "on", "full_page_writes": "on"}) as postgres, running_broker(broker) as it:
        yield postgres, it


def _through(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition(':')[0]}:{proxy.port}"))
