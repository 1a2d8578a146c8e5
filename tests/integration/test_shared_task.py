"""A shared leader-only task, in a process of its own, since it is every other app's, too."""

from __future__ import annotations

import os
import subprocess
import sys

SHARED = """
from celery import Celery, shared_task
from celery.signals import before_task_publish
from celery_pgleader import PgLeader

@shared_task(leader_only=True)
def tidy(): ...

app = Celery("shop", broker="memory://")
PgLeader(app)
before_task_publish.connect(lambda routing_key, **_: print(routing_key), weak=False)
tidy.delay()
"""


def test_shared_task_is_routed() -> None:
    """It is the app's as well."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PGLEADER_")}
    ended = subprocess.run([sys.executable, "-c", SHARED], capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout == "leader-shop\n"
