"""What importing the package brings with it: next to nothing, so that every process of an app may do so.

Modules are counted, since times differ from one machine to the next; `python -m benchmarks imports` measures those.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

APP = "from celery import Celery\napp = Celery('shop')\napp.finalize()\napp.conf.beat_schedule"
# What an app's own modules need of the package. `notify` opens connections, and so needs psycopg.
OF_TASKS = (
    "LeaderOnlyTask, PgLeader, current_leadership, current_slot, leadership_gained, leadership_lost, on_notification"
)

OF_CELERY = ("celery", "kombu", "billiard")


def brought_by(code: str, after: str = APP) -> set[str]:
    """Return the modules that code imports, in a process of its own that has run other code before."""
    script = (
        f"import json, sys\n{after}\nbefore = set(sys.modules)\n{code}\nprint(json.dumps([*set(sys.modules) - before]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def packages(modules: set[str]) -> set[str]:
    """Return the packages that modules belong to, but for those of Python itself."""
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names


def test_package_imports_nothing() -> None:
    """Not even the rest of itself."""
    assert brought_by("import celery_pgleader") == {"celery_pgleader"}


def test_names_for_tasks_import_no_other_package() -> None:
    """But for parts of Celery; not psycopg, which takes longer to import than all of this, nor what is optional."""
    modules = brought_by(f"from celery_pgleader import {OF_TASKS}")
    assert packages(modules) <= {"celery_pgleader", *OF_CELERY}
    assert len(modules) < 50, sorted(modules)


def test_command_line_plugin_imports_no_other_package() -> None:
    """Every `celery` command loads it."""
    # Not `celery.bin.celery`, which loads it.
    before = "import celery.bin.control, celery.bin.worker\nfrom celery import signals"
    modules = brought_by("import celery_pgleader.cli.plugin", before)
    assert packages(modules) <= {"celery_pgleader", *OF_CELERY}
    assert len(modules) < 25, sorted(modules)


def test_no_name_imports_an_optional_package() -> None:
    """That is imported by whoever has it."""
    optional = {"asyncpg", "django", "django_celery_beat", "psycopg2", "pytest", "redbeat", "redis", "sqlalchemy"}
    assert not packages(brought_by("from celery_pgleader import *")) & optional


@pytest.mark.parametrize("module", ["celery_pgleader.election", "celery_pgleader.standalone"])
def test_election_does_not_import_celery(module: str) -> None:
    """Nor kombu."""
    assert not packages(brought_by(f"import {module}", "")) & {"celery", "kombu", "billiard", "vine", "click"}
