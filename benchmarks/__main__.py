"""`python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import imports, notifications, overhead, schedule

BENCHMARKS = {
    "schedule": schedule.run,
    "notifications": notifications.run,
    "overhead": overhead.run,
    "imports": imports.run,
}


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements, each in turns in one run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} [all]")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--json", type=Path, help="also write all results here")
    options = parser.parse_args()
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    collected = {}
    for name in options.names or BENCHMARKS:
        results, table = BENCHMARKS[name](quick=options.quick)
        print(table, flush=True)
        collected[name] = [asdict(result) for result in results]
    if options.json:
        options.json.write_text(json.dumps(collected, indent=2))


if __name__ == "__main__":
    main()
