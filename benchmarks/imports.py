"""What it takes to import the package, over what Celery takes.

Processor time, since other programs do not count then; each with an app of Celery's that is ready to use.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.figures import Figure, Results

APP = """
from celery import Celery
app = Celery("shop")
app.finalize()
app.conf.beat_schedule
"""
PACKAGE = "import celery_pgleader"
IMPORTS = (
    PACKAGE,
    "from celery_pgleader import LeaderOnlyTask, PgLeader, current_leadership, current_slot, on_notification",
    "import psycopg",
    "import celery_pgleader.worker.participant",
    "from celery_pgleader import *",
)
SCRIPT = """
import sys, time
{before}
modules, began = len(sys.modules), time.process_time()
{code}
print(1000 * (time.process_time() - began), len(sys.modules) - modules)
"""
FIGURES = {"time": Figure("import", "processor time", "ms"), "modules": Figure("import", "modules")}


def run(*, quick: bool) -> Results:
    """Measure."""
    results = Results(PACKAGE, FIGURES)
    for _ in range(3 if quick else 25):
        for before, code in (("", APP.strip()), *((APP, code) for code in IMPORTS)):
            command = [sys.executable, "-c", SCRIPT.format(before=before, code=code)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            name = code.splitlines()[0]
            results.add(name, "time", float(printed[0]))
            results.add(name, "modules", float(printed[1]))
    return results
