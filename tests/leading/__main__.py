"""`python -m tests.leading`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.leading.driver import Driver
from tests.support.rabbitmq import RabbitMQ, find_rabbitmq

SECONDS_PER_CHANGE = 7.0
POOLS = ["prefork", "solo", "threads", "gevent", "eventlet"]


def main() -> int:
    """Run, print the count, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.leading", description="Leader-only tasks across changes.")
    parser.add_argument("--pool", choices=POOLS, default="prefork")
    parser.add_argument("--broker", choices=["valkey", "rabbitmq"], default="valkey")
    parser.add_argument("--queues", choices=["classic", "quorum"], default="classic", help="on RabbitMQ [classic]")
    parser.add_argument("--tasks", type=int, default=500, help="[500]")
    parser.add_argument("--changes", type=int, default=10, help="of the lead, and one restart of the broker [10]")
    parser.add_argument("--seconds", type=float, help="for sending them [7 for each change]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="keep the logs of all processes, and what was told, here")
    options = parser.parse_args()
    seconds = options.seconds or options.changes * SECONDS_PER_CHANGE
    with (
        EmbeddedPostgres() as postgres,
        _broker(options.broker) as broker,
        tempfile.TemporaryDirectory(prefix="leading-") as folder,
        Driver(
            postgres.url(), broker.url, Path(folder), pool=options.pool, seed=options.seed, queues=options.queues
        ) as driver,
    ):
        try:
            count = driver.run(options.tasks, driver.mixed(options.changes), seconds, broker.restart)
        finally:
            if options.logs:
                shutil.copytree(folder, options.logs, dirs_exist_ok=True)
    given = {name: getattr(options, name) for name in ("pool", "broker", "queues", "changes", "seed")}
    print(json.dumps({**given, **dataclasses.asdict(count), "faults": driver.kinds}), flush=True)
    on_the_way = count.lost_on_the_way if options.broker != "valkey" else 0
    return 0 if count.faultless and not on_the_way else 1


@contextmanager
def _broker(name: str) -> Iterator[EmbeddedValkey | RabbitMQ]:
    """Give a broker that keeps what is queued across a restart: the Valkey saves it when it stops in good order."""
    if name == "valkey":
        with EmbeddedValkey() as valkey:
            yield valkey
        return
    script = find_rabbitmq()
    assert script is not None, "RabbitMQ is not installed"
    node = RabbitMQ(script)
    try:
        node.start()
        yield node
    finally:
        node.close()


if __name__ == "__main__":
    sys.exit(main())
