"""`python -m tests.chaos`."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.check import check
from tests.chaos.driver import run
from tests.chaos.faults import KINDS
from tests.chaos.fleet import servers
from tests.support.brokers import BROKERS


def main() -> int:
    """Run, print the report, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Chaos, and whether promises are kept.")
    parser.add_argument("--workers", type=int, default=4, help="[4]")
    parser.add_argument("--seconds", type=float, default=60.0, help="of faults; then it has to recover [60]")
    parser.add_argument("--seed", type=int, help="[a new one, which is printed]")
    parser.add_argument("--broker", choices=BROKERS, default="valkey")
    parser.add_argument("--faults", type=_kinds, default=list(KINDS), help=f"[{','.join(KINDS)}]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the history and all logs there")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    given = {"broker": options.broker, "workers": options.workers, "seconds": options.seconds, "seed": seed}
    print(
        f"python -m tests.chaos --workers {options.workers} --seconds {options.seconds:g} --seed {seed}"
        f" --broker {options.broker} --faults {','.join(options.faults)}",
        flush=True,
    )
    with servers(options.broker) as (postgres, broker), tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            history = run(
                postgres,
                broker,
                Path(folder),
                workers=options.workers,
                seconds=options.seconds,
                seed=seed,
                kinds=options.faults,
            )
        finally:
            if options.keep:
                shutil.copytree(folder, options.keep, dirs_exist_ok=True)
                shutil.copy(postgres.log, options.keep / "postgres.log")
    report = check(history)
    text = json.dumps({**given, **vars(report)}, indent=2)
    print(text, flush=True)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if report.faultless else 1


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    return kinds


if __name__ == "__main__":
    sys.exit(main())
