"""The app that is put to the test; the environment says where everything is."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import time_machine
from celery import Celery, bootsteps
from celery.schedules import crontab
from celery.signals import task_failure, task_received

from celery_pgleader import current_leadership, current_slot
from celery_pgleader.election import Change, Leadership
from celery_pgleader.tasks import queue_name
from tests.chaos.history import tell
from tests.support.stacks import dump_on_signal

dump_on_signal()

ELECTION = "chaos"
QUEUE, LEADER_QUEUE, WITNESSED = ELECTION, queue_name(ELECTION), f"{ELECTION}.witnessed"
DURABLE, RAW = "orders", "murmurs"
TTL = 2.0
SAMPLE, NOTE = 0.001, 0.1

# Seconds between the slots of each entry.
INTERVALS = {"plain": 1.0, "each": 1.0, "brief": 1.0, "single": 1.0, "patient": 2.0, "minute": 60.0}
POLICIES = {
    # However many slots were missed, each is run, and none twice.
    "each": {"misfire": "all", "deduplicate": True},
    "brief": {"misfire": "skip", "misfire_grace": 3.0},
    "single": {"overlap": "skip"},
    "patient": {"overlap": "wait", "deduplicate": True},
}
# Of these the runs are slower than the slots come.
LONG = {"single": 1.3, "patient": 1.0}


def make_app(broker: str) -> Any:
    """Return the app, without its tasks."""
    app = Celery(ELECTION, broker=broker)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        # What a worker had in hand when it died is run all the same.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    app.conf.broker_transport_options = (
        # Without it, what is sent while the broker stops is lost unseen.
        {"confirm_publish": True}
        if broker.startswith("amqp")
        # What a worker had that died is wanted back before the run is over.
        else {"visibility_timeout": 15.0, "unacked_restore_interval": 5.0, "unacked_restore_throttle": 1}
    )
    return app


app = make_app(os.environ.get("CHAOS_BROKER", "memory://"))
app.conf.update(
    worker_prefetch_multiplier=2,
    beat_schedule={
        entry: {
            "task": "chaos.tick",
            "schedule": crontab() if entry == "minute" else seconds,
            "kwargs": {"seconds": LONG.get(entry, 0.0)},
            # What is to be told apart from the workers' own troubles goes to one that is left alone.
            "options": {"queue": WITNESSED if entry in {"plain", "minute"} else QUEUE},
        }
        for entry, seconds in INTERVALS.items()
    },
    beat_schedule_filename=os.environ.get("CHAOS_SCHEDULE", "schedule"),
    # No entry of Celery's own.
    result_expires=None,
    pgleader_database_url=os.environ.get("CHAOS_DATABASE", ""),
    pgleader_election=ELECTION,
    pgleader_ttl=TTL,
    pgleader_poll_interval=1.0,
    pgleader_schedule=POLICIES,
    pgleader_channels={
        DURABLE: [
            {"task": "chaos.handle", "deduplicate": True},
            {"task": "chaos.witness", "queue": WITNESSED},
        ],
        RAW: {"task": "chaos.hear", "options": {"queue": WITNESSED}},
    },
)


class Recorder(bootsteps.StartStopStep):
    """Writes down when this worker leads, and for how long it trusts that."""

    requires = ("celery_pgleader.worker.bootsteps:ElectionStep",)

    def include_if(self, worker: Any) -> bool:
        """Tell whether the worker takes part in the election."""
        return getattr(worker, "pgleader", None) is not None

    def start(self, worker: Any) -> None:
        """Begin."""
        leadership, node = worker.pgleader.leadership, worker.hostname
        leadership.subscribe(lambda change: _on_change(node, change))
        threading.Thread(target=_sample, args=(leadership, node), name="recorder", daemon=True).start()
        threading.Thread(target=_follow_clock, name="clock", daemon=True).start()


app.steps["worker"].add(Recorder)


def _follow_clock() -> None:
    """Keep this process's wall clock as many seconds ahead as the file says, and leave the monotonic one alone."""
    ahead, pause = 0.0, threading.Event()
    travel = None
    while not pause.wait(0.05):
        # While it is being written, it is empty.
        wanted = float(Path(os.environ["CHAOS_CLOCK"]).read_text() or ahead)
        if wanted != ahead:
            ahead = wanted
            if travel is not None:
                travel.stop()
            travel = time_machine.travel(time.time() + ahead, tick=True) if ahead else None
            if travel is not None:
                travel.start()


def _on_change(node: str, change: Change) -> None:
    kind = "gained" if change.gained else "lost"
    tell(kind, node=node, term=change.term.number, reason=change.reason)


def _sample(leadership: Leadership, node: str) -> None:
    """Ask for trust a thousand times a second, as those do who act for the leader, and tell of the answers."""
    pause = threading.Event()
    while True:
        term = leadership.wait()
        since = until = time.monotonic()
        while True:
            # Before it is asked: a process may be stopped anywhere.
            asked = time.monotonic()
            if leadership.term != term:
                break
            until = asked
            if until - since > NOTE:
                _tell_trust(node, term, since, until)
                since = until
            pause.wait(SAMPLE)
        _tell_trust(node, term, since, until)


def _tell_trust(node: str, term: Any, since: float, until: float) -> None:
    if term is not None:
        tell("trusted", node=node, term=term.number, since=since, until=until)


@task_received.connect
def on_received(request: Any, **_: Any) -> None:
    """Tell of each delivery, also of those that are not run."""
    slot = request.request_dict.get("pgleader_slot")
    about = {"entry": slot["entry"], "slot": slot["at"]} if slot else _name(request.args[0])
    redelivered = bool(request.delivery_info["redelivered"])
    tell("received", id=request.id, task=request.name, node=request.hostname, redelivered=redelivered, **about)


@task_failure.connect
def on_failed(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    """Tell of what never should be."""
    tell("failed", id=task_id, task=sender.name, error=repr(exception))


def _name(argument: Any) -> dict[str, Any]:
    """Return what tells of which notification or task a message is."""
    return {"name": argument["name"], "key": argument["key"]} if isinstance(argument, dict) else {"name": argument}


@contextmanager
def _run(task: Any, **fact: Any) -> Iterator[None]:
    """Tell of the beginning and the end of a run."""
    request = task.request
    run = uuid.uuid4().hex
    asked = time.monotonic()
    leadership = current_leadership()
    if leadership is not None:
        fact |= {"term": leadership.term, "trusted": leadership.trusted()}
    tell("began", at=asked, run=run, id=request.id, task=task.name, node=request.hostname, **fact)
    yield
    tell("ended", run=run)


def _take(seconds: float) -> None:
    if seconds:
        threading.Event().wait(seconds)


@app.task(bind=True, name="chaos.tick")
def tick(self: Any, seconds: float) -> None:
    """Run a slot."""
    slot = current_slot()
    assert slot is not None
    with _run(self, entry=slot.entry, slot=slot.at):
        _take(seconds)


@app.task(bind=True, name="chaos.handle")
def handle(self: Any, order: dict[str, Any]) -> None:
    """Take a durable notification, once."""
    with _run(self, **_name(order)):
        pass


@app.task(bind=True, name="chaos.witness")
def witness(self: Any, order: dict[str, Any]) -> None:
    """See in which order durable notifications are dispatched."""
    with _run(self, **_name(order)):
        pass


@app.task(bind=True, name="chaos.hear")
def hear(self: Any, murmur: dict[str, Any]) -> None:
    """Take a raw notification."""
    with _run(self, **_name(murmur)):
        pass


@app.task(bind=True, name="chaos.lead", leader_only=True)
def lead(self: Any, name: str, seconds: float) -> None:
    """Do what only the leader may do."""
    with _run(self, name=name):
        _take(seconds)


@app.task(bind=True, name="chaos.work")
def work(self: Any, name: str, seconds: float) -> None:
    """Do what anybody may do."""
    with _run(self, name=name):
        _take(seconds)
