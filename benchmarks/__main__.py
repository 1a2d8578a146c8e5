"""`python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import growth, imports, notifications, overhead, schedule, tables, writes
from benchmarks.failover import run as failover
from benchmarks.machine import describe
from benchmarks.rivals import RIVALS, install

ROOT = Path(__file__).parents[1]
BENCHMARKS = {
    "failover": failover.run,
    "schedule": schedule.run,
    "notifications": notifications.run,
    "writes": writes.run,
    "overhead": overhead.run,
    "growth": growth.run,
    "imports": imports.run,
}


def main() -> int:
    """Measure, and print what came of it; or write the tables of the documentation. Return 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measurements beside the rivals, in turns in one run. `table FILE` writes the tables of"
        " README.md and docs/benchmarks.md from what --json has written.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)} [all]")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: less than ten minutes for all of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results here")
    options = parser.parse_args()
    if options.names[:1] == ["table"] and len(options.names) > 1:
        write_tables(Path(options.names[1]))
        return 0
    unknown = set(options.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    run, failed = measure(options.names or list(BENCHMARKS), quick=options.quick)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    return bool(failed)


def measure(names: Sequence[str], *, quick: bool) -> tuple[dict[str, Any], list[str]]:
    """Run benchmarks, one after the other; return what they measured, and the names of those that failed."""
    install(RIVALS)
    run: dict[str, Any] = {**describe(), "quick": quick, "benchmarks": {}}
    failed = []
    for name in names:
        began = time.monotonic()
        try:
            of = BENCHMARKS[name](quick=quick).as_json()
        except Exception:  # noqa: BLE001 - whatever it is, the others go on
            traceback.print_exc()
            failed.append(name)
        else:
            run["benchmarks"][name] = of
            print(f"## {name}\n\n{tables.benchmark(of)}\n", flush=True)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return run, failed


def write_tables(file: Path) -> None:
    """Write what is generated from a run: two blocks of text, and the curves."""
    from benchmarks.plots import draw  # noqa: PLC0415 - matplotlib only where it is used

    run = json.loads(file.read_text())
    for page, block in (("README.md", tables.short(run)), ("docs/benchmarks.md", tables.full(run))):
        path = ROOT / page
        path.write_text(tables.replaced(path.read_text(), block))
    folder = ROOT / "docs" / "benchmarks"
    folder.mkdir(exist_ok=True)
    draw(run["benchmarks"], folder)


if __name__ == "__main__":
    sys.exit(main())
