"""The app that is put to the test; the environment says where everything is."""

from __future__ import annotations

import os
import signal
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
from celery.signals import task_failure, task_received, worker_init
from celery.worker.request import Request

from celery_pgleader import current_leadership, current_slot
from celery_pgleader.election import Change, Leadership
from celery_pgleader.tasks import queue_name
from tests.chaos.history import tell
from tests.chaos.scenarios import GREEN, SCHEDULERS, Scenario, current
from tests.support.rabbitmq import QUORUM
from tests.support.stacks import dump_on_signal

dump_on_signal()

ELECTION = "chaos"
QUEUE, LEADER_QUEUE, WITNESSED = ELECTION, queue_name(ELECTION), f"{ELECTION}.witnessed"
DURABLE, RAW = "orders", "murmurs"
SAMPLE, NOTE = 0.001, 0.1
RESIGN, STAND_BACK = signal.SIGRTMIN, 0.3

POLICIES = {
    # However many slots were missed, each is run, and none twice.
    "each": {"misfire": "all", "deduplicate": True},
    "brief": {"misfire": "skip", "misfire_grace": 3.0},
    "single": {"overlap": "skip"},
    "patient": {"overlap": "wait", "deduplicate": True},
}
# Of these the runs are slower than the slots come.
LONG = {"single": 1.3, "patient": 1.0}


def make_app(broker: str, scenario: Scenario) -> Any:
    """Return the app, without its schedule and tasks."""
    app = Celery(ELECTION, broker=broker)
    app.conf.update(
        task_ignore_result=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    if scenario.queues == "quorum":
        app.conf.update(QUORUM)
    app.conf.task_default_queue = QUEUE
    if scenario.visibility_timeout is not None:
        # What a worker had in hand when it died is run all the same, before the run is over.
        app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True)
    if broker.startswith("amqp"):
        # Without it, what is sent while the broker stops is lost unseen.
        app.conf.broker_transport_options = {"confirm_publish": True}
    elif scenario.visibility_timeout is not None:
        app.conf.broker_transport_options = {
            "visibility_timeout": scenario.visibility_timeout,
            "unacked_restore_interval": 5.0,
            "unacked_restore_throttle": 1,
        }
    return app


scenario = current()
broker, database = os.environ.get("CHAOS_BROKER", "memory://"), os.environ.get("CHAOS_DATABASE", "")
app = make_app(broker, scenario)
witness = {"task": "chaos.witness", "queue": WITNESSED}
app.conf.update(
    worker_prefetch_multiplier=2,
    beat_schedule={
        entry: {
            "task": "chaos.tick",
            "schedule": crontab() if entry == "minute" else seconds,
            "kwargs": {"seconds": LONG.get(entry, 0.0)},
            # What is to be told apart from the workers' own troubles goes to one that is left alone.
            "options": {"queue": WITNESSED if scenario.witnessed or entry in {"plain", "minute"} else QUEUE},
        }
        for entry, seconds in scenario.entries.items()
    },
    beat_schedule_filename=os.environ.get("CHAOS_SCHEDULE", "schedule"),
    beat_scheduler=SCHEDULERS[scenario.scheduler],
    beat_dburi=database.replace("postgresql://", "postgresql+psycopg://"),
    redbeat_redis_url=broker,
    redbeat_key_prefix="chaos:",
    # No entry of Celery's own.
    result_expires=None,
    pgleader_election=ELECTION,
    pgleader_ttl=scenario.ttl,
    pgleader_poll_interval=scenario.poll,
    pgleader_schedule={entry: policy for entry, policy in POLICIES.items() if entry in scenario.entries},
    pgleader_channels={
        DURABLE: [{**witness, "deduplicate": True}]
        if scenario.witnessed
        else [{"task": "chaos.handle", "deduplicate": True}, witness],
        RAW: {"task": "chaos.hear", "options": {"queue": WITNESSED}},
    },
)
if scenario.scheduler == "django-two-databases":
    app.conf.pgleader_django_database = "ledger"
else:
    app.conf.pgleader_database_url = database


class Recorder(bootsteps.StartStopStep):
    """Writes down when this worker leads, and for how long it trusts that."""

    requires = ("celery_pgleader.worker.bootsteps:ElectionStep",)

    def start(self, worker: Any) -> None:
        """Begin, if the worker takes part in the election."""
        participant = getattr(worker, "pgleader", None)
        if participant is None:
            return
        leadership, node = participant.leadership, worker.hostname

        def on_change(change: Change) -> None:
            kind = "gained" if change.gained else "lost"
            tell(kind, node=node, term=change.term.number, reason=change.reason)

        leadership.subscribe(on_change)
        # This stands in for trouble with its beat.
        signal.signal(RESIGN, lambda *_: participant._elector.resign(STAND_BACK))  # noqa: SLF001 - nobody else need do it
        if scenario.pool not in GREEN:
            threading.Thread(target=_sample, args=(leadership, node), name="recorder", daemon=True).start()
        if "clock" in scenario.faults:
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


def _sample(leadership: Leadership, node: str) -> None:
    """Ask for trust a thousand times a second, as those do who act for the leader, and tell of the answers."""
    pause = threading.Event()
    while True:
        term = leadership.wait()
        since = until = time.monotonic()
        while until - since < NOTE:
            # Before it is asked: a process may be stopped anywhere.
            asked = time.monotonic()
            if leadership.term != term:
                break
            until = asked
            pause.wait(SAMPLE)
        if term is not None:
            tell("trusted", node=node, term=term.number, since=since, until=until)


@task_received.connect
def on_received(request: Any, **_: Any) -> None:
    """Tell of each delivery, also of those that are not run."""
    slot = request.request_dict.get("pgleader_slot")
    about = {"entry": slot["entry"], "slot": slot["at"]} if slot else _name(request.args[0])
    redelivered = bool(request.delivery_info["redelivered"])
    tell("received", id=request.id, task=request.name, node=request.hostname, redelivered=redelivered, **about)


@worker_init.connect
def on_init(**_: Any) -> None:
    """Have each acknowledgement of a leader-only run told, which on a busy machine may come long after its end."""
    acknowledge = Request.acknowledge

    def acknowledge_and_tell(request: Any) -> None:
        acknowledge(request)
        if request.name == "chaos.lead":
            tell("acknowledged", id=request.id, node=request.hostname)

    setattr(Request, "acknowledge", acknowledge_and_tell)  # noqa: B010 - the checker of types would not have it


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
    fact |= {"notification": (request.get("pgleader_notification") or {}).get("id")}
    tell("began", at=asked, run=run, id=request.id, task=task.name, node=request.hostname, **fact)
    yield
    tell("ended", run=run)


@app.task(bind=True, name="chaos.tick")
def tick(self: Any, seconds: float) -> None:
    """Run a slot."""
    slot = current_slot()
    assert slot is not None
    with _run(self, entry=slot.entry, slot=slot.at):
        threading.Event().wait(seconds)


def _work(self: Any, message: Any, seconds: float = 0.0) -> None:
    with _run(self, **_name(message)):
        threading.Event().wait(seconds)


# They take durable notifications, see in which order these are dispatched, take raw ones, and do what any worker may.
for name in ("handle", "witness", "hear", "work"):
    app.task(bind=True, name=f"chaos.{name}")(_work)
# This is what only the leader may do.
app.task(bind=True, name="chaos.lead", leader_only=True)(_work)
