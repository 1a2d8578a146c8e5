"""What it takes to import the package, over what Celery takes.

Processor time, since other programs do not count then; of several processes the quickest, each with an app of Celery's
that is ready to use.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

APP = """
from celery import Celery
app = Celery("shop")
app.finalize()
app.conf.beat_schedule
"""
IMPORTS = (
    "import celery_pgleader",
    "from celery_pgleader import LeaderOnlyTask, PgLeader, current_leadership, current_slot, on_notification",
    "import psycopg",
    "from celery_pgleader import *",
)
SCRIPT = """
import sys, time
{before}
modules, began = len(sys.modules), time.process_time()
{code}
print(1000 * (time.process_time() - began), len(sys.modules) - modules)
"""


@dataclass(frozen=True)
class Import:
    """What one import takes.

    Attributes:
        code: the import.
        ms: milliseconds of processor time.
        modules: how many modules it brings.

    """

    code: str
    ms: float
    modules: int


def run(*, quick: bool) -> tuple[list[Import], str]:
    """Measure, and return the results with a table of them."""
    rounds = 5 if quick else 25
    results = [_measure("", APP.strip(), rounds), *(_measure(APP, code, rounds) for code in IMPORTS)]
    return results, table(results)


def table(results: Sequence[Import]) -> str:
    """Return the results as Markdown."""
    lines = ["| import | ms | modules |", "|---|---|---|"]
    lines += [f"| `{result.code.splitlines()[0]}` | {result.ms:.1f} | {result.modules} |" for result in results]
    return "\n".join([*lines, ""])


def _measure(before: str, code: str, rounds: int) -> Import:
    command = [sys.executable, "-c", SCRIPT.format(before=before, code=code)]
    printed = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(rounds)]
    return Import(code, *min((float(ms), int(modules)) for ms, modules in map(str.split, printed)))
