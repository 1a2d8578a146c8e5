"""`python -m tests.handovers`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.handovers.app import SCHEDULERS
from tests.handovers.driver import KINDS, Driver


def main() -> int:
    """Run, print the counts, and return 1 if a slot was lost or sent twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.handovers", description="Handovers across due instants.")
    parser.add_argument("--scheduler", choices=[*SCHEDULERS, "all"], default="all")
    parser.add_argument("--handovers", type=int, default=200, help="for each scheduler [200]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the counts here")
    options = parser.parse_args()
    names = list(SCHEDULERS) if options.scheduler == "all" else [options.scheduler]
    counts, faultless = {}, True
    for name in names:
        with (
            EmbeddedPostgres() as postgres,
            EmbeddedValkey() as valkey,
            tempfile.TemporaryDirectory(prefix="handovers-") as folder,
            Driver(name, postgres.url(), valkey.url, Path(folder), options.seed) as driver,
        ):
            count = driver.run(options.handovers)
        faultless &= count.faultless
        counts[name] = {"handovers": options.handovers, **dataclasses.asdict(count), "kinds": driver.kinds}
        print(json.dumps({"scheduler": name, **counts[name]}), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "kinds": list(KINDS), "counts": counts}, indent=2))
    return 0 if faultless else 1


if __name__ == "__main__":
    sys.exit(main())
