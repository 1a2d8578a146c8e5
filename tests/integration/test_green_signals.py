"""What a signal handler does must be safe among green threads too, whichever of them it interrupts."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import eventlet; eventlet.monkey_patch()
import os, signal, sys
from types import SimpleNamespace

import greenlet
from celery import Celery
from eventlet import hubs

from celery_pgleader.config import Config
from celery_pgleader.worker.participant import Participant

worker = SimpleNamespace(
    app=Celery("shop", broker="memory://", set_as_current=False),
    hostname="a@test",
    scheduler="celery.beat:Scheduler",
    schedule_filename="",
)
participant = Participant(worker, Config(database_url=sys.argv[1], election="shop"))
participant.start()
while participant.leadership.term is None:
    eventlet.sleep(0.01)

switches, interrupted = [], []

def on_signal(*_):
    interrupted.append(greenlet.getcurrent())
    greenlet.settrace(lambda event, args: switches.append(event))
    # So often that nothing more fits into the pipe that wakes the elector.
    for _ in range(2000):
        participant.wind_down()
    greenlet.settrace(None)

signal.signal(signal.SIGTERM, on_signal)
hub = hubs.get_hub()
hub.schedule_call_global(0, os.kill, os.getpid(), signal.SIGTERM)
eventlet.sleep(0)
while participant.leadership.term is not None:
    eventlet.sleep(0.01)
assert interrupted == [hub.greenlet]
assert not switches, switches
participant.stop()
"""


def test_signal_in_the_hub_of_eventlet_switches_no_thread(database: str) -> None:
    """It neither waits, where nothing may wait, nor lets another green thread run before Celery has seen the signal."""
    program = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, database],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # What fails in the hub is only printed there.
    assert (program.returncode, "Traceback" in program.stderr) == (0, False), program.stderr
