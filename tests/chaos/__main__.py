"""`python -m tests.chaos`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.check import check
from tests.chaos.driver import run
from tests.chaos.fleet import servers
from tests.chaos.scenarios import KINDS, POOLS, SCENARIOS, SCHEDULERS
from tests.support.brokers import BROKERS


def main() -> int:
    """Run, print the report, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Chaos, and whether promises are kept.")
    parser.add_argument("--scenario", choices=SCENARIOS, default="mixed")
    parser.add_argument("--seed", type=int, help="[a new one, which is printed]")
    parser.add_argument("--broker", choices=BROKERS, default="valkey")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the history and all logs there")
    changes = parser.add_argument_group("to change the scenario")
    changes.add_argument("--seconds", type=float, help="of faults; then it has to recover")
    changes.add_argument("--times", type=int, help="so many faults, spread over that time; 0: while there is time")
    changes.add_argument("--faults", type=_kinds, help=f"which, of {','.join(KINDS)}")
    changes.add_argument("--workers", type=int)
    changes.add_argument("--pool", choices=POOLS)
    changes.add_argument("--queues", choices=["classic", "quorum"], help="on RabbitMQ")
    changes.add_argument("--scheduler", choices=SCHEDULERS)
    options = parser.parse_args()
    names = [field.name for field in dataclasses.fields(SCENARIOS["mixed"])]
    given = {name: value for name, value in vars(options).items() if name in names and value is not None}
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    said = {"scenario": options.scenario, "broker": options.broker, "seed": seed, **given}
    print("python -m tests.chaos", *sys.argv[1:], *([f"--seed {seed}"] if options.seed is None else []), flush=True)
    scenario = dataclasses.replace(SCENARIOS[options.scenario], **given)
    with servers(options.broker) as (postgres, broker), tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            history = run(scenario, postgres, broker, Path(folder), seed=seed)
        finally:
            if options.keep:
                shutil.copytree(folder, options.keep, dirs_exist_ok=True)
                shutil.copy(postgres.log, options.keep / "postgres.log")
    report = check(history)
    text = json.dumps({**said, **vars(report)}, indent=2)
    print(text, flush=True)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if report.faultless else 1


def _kinds(text: str) -> list[str]:
    return [KINDS[KINDS.index(kind)] for kind in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
