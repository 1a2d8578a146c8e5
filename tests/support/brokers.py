"""Brokers by name, for programs that let one choose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from example_app.servers import EmbeddedValkey
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq

BROKERS = ("valkey", "rabbitmq")


@contextmanager
def running_broker(name: str) -> Iterator[EmbeddedValkey | RabbitMQ]:
    """Give a broker that keeps what is queued across a restart: the Valkey saves it when it stops in good order."""
    if name == "valkey":
        with EmbeddedValkey() as valkey:
            yield valkey
        return
    script = find_rabbitmq()
    assert script is not None, "RabbitMQ is not installed"
    with RabbitMQ(script) as node:
        yield node
