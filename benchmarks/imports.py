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
CELERY, PACKAGE = "Celery, with an app", "the package"
IMPORTS = {
    PACKAGE: "import celery_pgleader",
    "what an app uses": (
        "from celery_pgleader import LeaderOnlyTask, PgLeader, current_leadership, current_slot, on_notification"
    ),
    "psycopg": "import psycopg",
    "what a worker uses": "import celery_pgleader.worker.participant",
    "all that is public": "from celery_pgleader import *",
}
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
        for name, code in {CELERY: APP, **IMPORTS}.items():
            script = SCRIPT.format(before="" if name == CELERY else APP, code=code)
            printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
            milliseconds, modules = printed.split()
            results.add(name, "time", float(milliseconds))
            results.add(name, "modules", float(modules))
    return results
