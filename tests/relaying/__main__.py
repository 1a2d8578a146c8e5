"""`python -m tests.relaying`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

from example_app.servers import EmbeddedPostgres
from tests.relaying.driver import Driver
from tests.support.brokers import BROKERS, running_broker

SECONDS_PER_FAULT = 8.0


def main() -> int:
    """Run, print the counts, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.relaying", description=sys.modules[__package__].__doc__)
    parser.add_argument("--broker", choices=BROKERS, default="valkey")
    parser.add_argument("--notifications", type=int, default=20_000, help="durable ones, and as many raw ones [20000]")
    parser.add_argument("--seconds", type=float, default=240.0, help="for writing them, at a steady pace [240]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="keep the logs of all processes here")
    options = parser.parse_args()
    with (
        # What was committed is to outlive the restart.
        EmbeddedPostgres(settings={"fsync": "on", "full_page_writes": "on"}) as postgres,
        running_broker(options.broker) as broker,
        tempfile.TemporaryDirectory(prefix="relaying-") as folder,
        Driver(postgres.url(), broker.url, Path(folder), options.seed) as driver,
    ):
        restarts = [("restart broker", broker.restart), ("restart postgres", postgres.restart)]
        try:
            count = driver.run(
                options.notifications, options.seconds, round(options.seconds / SECONDS_PER_FAULT), restarts
            )
        finally:
            if options.logs:
                shutil.copytree(folder, options.logs, dirs_exist_ok=True)
    result = {
        "broker": options.broker,
        "seed": options.seed,
        "seconds": options.seconds,
        **dataclasses.asdict(count),
        "in_doubt": sum(client.in_doubt for client in driver.clients),
        "faults": driver.kinds,
    }
    print(json.dumps(result), flush=True)
    return 0 if count.faultless else 1


if __name__ == "__main__":
    sys.exit(main())
