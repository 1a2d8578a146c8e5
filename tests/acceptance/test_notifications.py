"""Durable notifications while leaders, the broker and Postgres fail.

A short form of `python -m tests.relaying`, which sends twenty thousand of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.relaying.driver import KINDS, Driver
from tests.support.rabbitmq import RabbitMQ

SECONDS = 24.0


def check(postgres: EmbeddedPostgres, broker: EmbeddedValkey | RabbitMQ, folder: Path) -> None:
    """Send six hundred, and see that each was run once and in order."""
    restarts = [("restart broker", broker.restart), ("restart postgres", postgres.restart)]
    with Driver(postgres.url(), broker.url, folder, seed=4) as driver:
        count = driver.run(600, SECONDS, len(KINDS), restarts)
    assert count.faultless, count
    assert count.written == 600
    assert set(driver.kinds) == {*KINDS, "restart broker", "restart postgres"}


def test_none_is_lost_or_run_twice_on_valkey(
    tmp_path: Path, own_postgres: EmbeddedPostgres, own_valkey: EmbeddedValkey
) -> None:
    """And the order within each key is kept."""
    check(own_postgres, own_valkey, tmp_path)


@pytest.mark.xdist_group("rabbitmq")
def test_none_is_lost_or_run_twice_on_rabbitmq(
    tmp_path: Path, own_postgres: EmbeddedPostgres, shared_rabbitmq: RabbitMQ
) -> None:
    """And the order within each key is kept."""
    check(own_postgres, shared_rabbitmq, tmp_path)
