"""Other programs that send the schedule, known by what their messages say."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.beat import Scheduler

from celery_pgleader.worker.other_senders import OtherSenders

SLOT = {"election": "shop", "entry": "report"}
OTHERS_SLOT = {"election": "prod", "entry": "report"}
STRANGERS_SLOT = {"election": "prod", "entry": "none of ours"}


class Elsewhere(Scheduler):
    """Keeps its entries in a database, say."""


def nothing() -> None:
    """Be a task."""


@pytest.fixture
def app() -> Celery:
    """Give an app with a schedule of one entry, and a task that is not in it."""
    app = Celery("shop", set_as_current=False)
    app.conf.beat_schedule = {"report": {"task": "shop.report", "schedule": 1.0}}
    for name in ("shop.report", "shop.other"):
        app.task(name=name)(nothing)
    app.finalize()
    return app


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        pytest.param({}, "", id="somebody's"),
        pytest.param({"celery_beat_task": True}, "was sent by a celery beat", id="a beat's"),
        pytest.param({"periodic_task_name": "report"}, "was sent by a celery beat", id="django-celery-beat's"),
        pytest.param({"celery_beat_task": True, "pgleader_slot": SLOT}, "", id="the leader's"),
        pytest.param(
            {"celery_beat_task": True, "pgleader_slot": OTHERS_SLOT}, "by the leader of election prod", id="two"
        ),
        pytest.param({"pgleader_slot": STRANGERS_SLOT}, "", id="another app's"),
        pytest.param({"pgleader_slot": "nonsense"}, "", id="nonsense"),
        pytest.param(None, "", id="none"),
    ],
)
def test_other_sender_is_logged_once(app: Celery, headers: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once for each kind, however many messages there are."""
    senders = OtherSenders(app, "celery.beat:PersistentScheduler", "shop")
    for _ in range(3):
        senders.look("shop.report", headers)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == bool(said)
    assert all(said in message for message in warned)


@pytest.mark.parametrize(
    ("scheduler", "watched"), [("celery.beat:PersistentScheduler", {"shop.report"}), (Elsewhere, None)]
)
def test_only_tasks_that_may_be_scheduled_are_watched(app: Celery, scheduler: Any, watched: set[str] | None) -> None:
    """The others cost nothing; arguments and results are passed on."""
    ours = {name: (lambda *args, name=name, **options: (name, args, options)) for name in app.tasks}
    consumer = SimpleNamespace(strategies=dict(ours))
    senders = OtherSenders(app, scheduler, "shop")
    senders.watch(consumer)
    replaced = {name for name, handle in consumer.strategies.items() if handle is not ours[name]}
    assert replaced == (set(app.tasks) if watched is None else watched)
    message = SimpleNamespace(headers={})
    assert consumer.strategies["shop.report"](message, 1, two=2) == ("shop.report", (message, 1), {"two": 2})


def test_entry_with_a_task_that_the_app_lacks_is_not_watched(app: Celery) -> None:
    """No message of it is received."""
    app.conf.beat_schedule["gone"] = {"task": "shop.gone", "schedule": 1.0}
    consumer = SimpleNamespace(strategies={})
    OtherSenders(app, "celery.beat:PersistentScheduler", "shop").watch(consumer)
    assert consumer.strategies == {}
