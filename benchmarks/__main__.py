"""`python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks import schedule
from benchmarks.schedule import CONTENDERS, Result


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measurements beside stock celery beat.")
    parser.add_argument("--quick", action="store_true", help="one round of each, of 1,000 entries")
    parser.add_argument("--json", type=Path, help="also write all results here")
    options = parser.parse_args()
    rounds = 1 if options.quick else 3
    results = [
        *schedule.measure("spread", 1_000, 60, rounds),
        *schedule.measure("burst", 1_000, 30, rounds),
        *([] if options.quick else schedule.measure("burst", 10_000, 75, 1)),
    ]
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


def table(results: Sequence[Result]) -> str:
    """Return the medians over the rounds, and the ratio of each to stock's, as Markdown."""
    lines = ["| schedule | entries | contender | ticks | early | p50 ms | p99 ms | max ms | p99 to stock's | CPU s |"]
    lines.append("|---" * 10 + "|")
    for kind, entries in dict.fromkeys((result.kind, result.entries) for result in results):
        stock = 0.0
        for contender in CONTENDERS:
            some = [r for r in results if (r.kind, r.entries, r.contender) == (kind, entries, contender)]
            p99 = median(r.p99 for r in some)
            stock = stock or p99
            ticks = f"{sum(r.ticks for r in some)} of {sum(r.expected for r in some)}"
            figures = [
                str(sum(r.early for r in some)),
                _middle(r.p50 for r in some),
                f"{p99:.1f}",
                f"{max(r.max for r in some):.1f}",
                f"{p99 / stock:.2f}",
                _middle(r.cpu_seconds for r in some),
            ]
            lines.append("| " + " | ".join([kind, f"{entries:,}", contender, ticks, *figures]) + " |")
    return "\n".join(lines)


def _middle(values: Iterable[float]) -> str:
    return f"{median(values):.1f}"


if __name__ == "__main__":
    main()
