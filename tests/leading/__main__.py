"""`python -m tests.leading`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

from example_app.servers import EmbeddedPostgres
from tests.leading.driver import Driver
from tests.support.brokers import BROKERS, running_broker

SECONDS_PER_CHANGE = 7.0
POOLS = ["prefork", "solo", "threads", "gevent", "eventlet"]


def main() -> int:
    """Run, print the count, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.leading", description="Leader-only tasks across changes.")
    parser.add_argument("--pool", choices=POOLS, default="prefork")
    parser.add_argument("--broker", choices=BROKERS, default="valkey")
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
        running_broker(options.broker) as broker,
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


if __name__ == "__main__":
    sys.exit(main())
