"""What users test their own tasks with: it does as a worker does, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task
from celery.beat import BeatLazyFunc

from celery_pgleader import (
    ConfigurationError,
    LeadershipLost,
    NotificationError,
    current_leadership,
    current_slot,
    leadership_gained,
    leadership_lost,
    notify,
    on_notification,
)
from celery_pgleader.tasks.trust_page import VARIABLE, reader
from celery_pgleader.testing import FakeNode, SentNotification

AT = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give an app that runs its tasks where they are sent."""
    for name in [name for name in os.environ if name.startswith("PGLEADER_")]:
        monkeypatch.delenv(name)
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    return app


@pytest.fixture
def node(app: Celery) -> Iterator[FakeNode]:
    """Give a node that does not lead."""
    with FakeNode(app) as node:
        yield node


def register(app: Celery, function: Any, **options: Any) -> Any:
    """Register a task."""
    task: Any = app.task
    return task(function, shared=False, lazy=False, **options)


def term_of_message(self: Any, _value: Any) -> int:
    """Return the term in which the task was sent."""
    term: int = self.request.pgleader_term
    return term


def test_leader_only_task_runs_only_while_the_node_leads(app: Celery) -> None:
    """As a follower would, the node gives it back."""
    task = register(app, current_leadership, name="rebuild", leader_only=True)
    with FakeNode(app) as node:
        assert task.delay().state == "REJECTED"
        term = node.gain()
        leadership = task.delay().get()
        assert (leadership.election, leadership.term) == ("shop", term.number)
        assert leadership.trusted()
        node.lose()
        assert not leadership.trusted()
        assert task.apply().state == "REJECTED"


def test_task_sees_that_leadership_is_lost_while_it_runs(app: Celery, node: FakeNode) -> None:
    """Leadership that is gained again is another."""
    done = []

    def rebuild(*, regain: bool) -> None:
        leadership = current_leadership()
        assert leadership is not None
        for part in range(3):
            leadership.ensure()
            done.append(part)
            if regain:
                node.gain()
            else:
                node.lose()

    task = register(app, rebuild, name="rebuild", leader_only=True)
    for regain in (False, True):
        node.gain()
        with pytest.raises(LeadershipLost, match="of election shop is over"):
            task.delay(regain=regain)
    assert done == [0, 0]


def test_term_numbers_rise(node: FakeNode) -> None:
    """Also if the last term was not lost before."""
    first, second = node.gain(), node.gain()
    assert second.number > first.number
    assert (second.election, second.node) == ("shop", "fake@localhost")
    assert node.leadership.trusted(second)
    assert not node.leadership.trusted(first)


def test_another_node_leads_while_this_one_does_not(app: Celery) -> None:
    """Its terms are others."""
    task = register(app, term_of_message, name="term", bind=True)
    app.conf.pgleader_channels = {"orders": task.name}
    with FakeNode(app) as node:
        before = node.dispatch("orders", 1)[0].get()
        own = node.gain().number
        assert node.dispatch("orders", 1)[0].get() == own > before
        node.lose()
        assert node.dispatch("orders", 1)[0].get() > own


def test_signals_are_sent_in_order(node: FakeNode) -> None:
    """With what they carry in a worker."""
    heard: list[tuple[Any, ...]] = []

    def on_gained(sender: str, term: Any, reason: str, **_: Any) -> None:
        heard.append(("gained", sender, term.number, reason))

    def on_lost(sender: str, term: Any, reason: str, **_: Any) -> None:
        heard.append(("lost", sender, term.number, reason))

    leadership_gained.connect(on_gained)
    leadership_lost.connect(on_lost)
    try:
        node.lose()
        first, second = node.gain(), node.gain("elected")
        node.lose("resigned")
    finally:
        leadership_gained.disconnect(on_gained)
        leadership_lost.disconnect(on_lost)
    assert heard == [
        ("gained", "fake@localhost", first.number, "gained in a test"),
        ("lost", "fake@localhost", first.number, "lost in a test"),
        ("gained", "fake@localhost", second.number, "elected"),
        ("lost", "fake@localhost", second.number, "resigned"),
    ]


def test_error_of_a_receiver_is_raised(node: FakeNode) -> None:
    """In a worker it would be in the log only."""

    def on_gained(**_: Any) -> None:
        raise ZeroDivisionError

    leadership_gained.connect(on_gained)
    try:
        with pytest.raises(ZeroDivisionError):
            node.gain()
    finally:
        leadership_gained.disconnect(on_gained)


def test_handler_gets_payload_and_headers(app: Celery) -> None:
    """As a leader dispatches a durable notification: to each route, under a task id of its own."""

    def told(self: Task[..., Any], value: Any) -> Any:
        return value, self.request.headers, vars(self.request)["pgleader_term"], self.request.id

    options = {"headers": {"mine": 1}}
    app.conf.pgleader_channels = {
        "orders": [{"task": "json", "deduplicate": True}, {"task": "text", "decode": "text", "options": options}],
        "far": {"task": "not.ours", "queue": "theirs"},
    }
    register(app, told, name="json", bind=True)
    register(app, told, name="text", bind=True)
    with FakeNode(app) as node:
        as_json, as_text = (result.get() for result in node.dispatch("orders", {"id": 42}, key="tea"))
        header = {"id": 1, "channel": "orders", "key": "tea", "deduplicate": True}
        sent = {"pgleader_channel": "orders", "pgleader_term": 1, "pgleader_notification": header}
        assert as_json[:3] == ({"id": 42}, sent, 1)
        assert as_text[0] == '{"id":42}'
        assert as_text[1] == {**sent, "mine": 1, "pgleader_notification": {**header, "deduplicate": False}}
        assert as_json[3] != as_text[3]
        assert node.dispatch("far", {}) == []


def test_raw_payload_is_decoded_as_its_route_says(app: Celery, node: FakeNode) -> None:

    @on_notification("log", decode="text")
    @on_notification("numbers")
    @app.task(name="told", bind=True, shared=False)
    def told(self: Task[..., Any], value: Any) -> Any:
        return value, self.request.headers

    try:
        headers = {"pgleader_backend_pid": 0, "pgleader_term": 1}
        (result,) = node.dispatch_raw("numbers", "[1]")
        assert result.get() == ([1], {"pgleader_channel": "numbers", **headers})
        (result,) = node.dispatch_raw("log", "[1")
        assert result.get() == ("[1", {"pgleader_channel": "log", **headers})
        with pytest.raises(NotificationError, match="not JSON"):
            node.dispatch_raw("numbers", "[1")
    finally:
        from celery_pgleader.notifications import registry

        del registry._registered[-2:]  # noqa: SLF001 - the app is gone after the test


def test_entry_runs_with_its_slot_and_arguments(app: Celery, node: FakeNode) -> None:
    """The slot is in UTC."""

    def report(*args: Any, **kwargs: Any) -> Any:
        return current_slot(), args, kwargs

    register(app, report, name="report")
    app.conf.beat_schedule = {
        "daily": {
            "task": "report",
            "schedule": 1,
            "args": (BeatLazyFunc(lambda: "lazy"),),
            "kwargs": {"a": BeatLazyFunc(lambda: 1), "b": 2},
        }
    }
    term = node.gain()
    elsewhere = AT.astimezone(timezone(timedelta(hours=5)))
    slot, args, kwargs = node.publish("daily", at=elsewhere, catch_up=True).get()
    assert (slot.entry, slot.at, slot.term, slot.catch_up, slot.election) == ("daily", AT, term.number, True, "shop")
    assert slot.at.tzinfo is timezone.utc
    assert (args, kwargs) == (("lazy",), {"a": 1, "b": 2})
    assert not node.publish("daily").get()[0].catch_up
    assert node.publish("daily", at=AT).id == node.publish("daily", at=AT).id


def test_policies_apply_to_published_entries(app: Celery) -> None:
    """The same slot is not run again, and runs do not overlap, where that is asked for."""
    runs = []

    def run(again: str) -> None:
        runs.append(again)
        if again:
            assert inner().state == "IGNORED"

    register(app, run, name="run")
    app.conf.beat_schedule = {
        name: {"task": "run", "schedule": 1, "args": (again,)} for name, again in {"once": "", "alone": "alone"}.items()
    }
    app.conf.pgleader_schedule = {"once": {"deduplicate": True}, "alone": {"overlap": "skip"}}
    with FakeNode(app) as node:

        def inner() -> Any:
            return node.publish("alone", at=AT + timedelta(seconds=len(runs)))

        assert [node.publish("once", at=AT).state for _ in range(2)] == ["SUCCESS", "IGNORED"]
        assert node.publish("once", at=AT + timedelta(seconds=1)).state == "SUCCESS"
        runs.clear()
        assert [node.publish("alone").state for _ in range(2)] == ["SUCCESS"] * 2
        assert runs == ["alone"] * 2


def test_error_of_a_task_is_raised(app: Celery, node: FakeNode) -> None:
    """Whatever the app says of eager errors; a retry is made."""
    app.conf.task_eager_propagates = False
    attempts = []

    def fail(self: Task[..., Any]) -> None:
        attempts.append(current_slot())
        raise self.retry(exc=ZeroDivisionError(), max_retries=1)

    register(app, fail, name="fail", bind=True)
    app.conf.beat_schedule = {"fail": {"task": "fail", "schedule": 1}}
    with pytest.raises(ZeroDivisionError):
        node.publish("fail")
    assert len(attempts) == 2
    assert attempts[0] == attempts[1]


def test_notify_is_recorded_and_not_sent(node: FakeNode) -> None:
    """With the connection in whose transaction it would have been."""
    connection = object()
    notify("orders", {"ids": (1, 2)}, key="tea", connection=connection)
    notify("log", "x", durable=False)
    assert node.sent == [
        SentNotification("orders", {"ids": [1, 2]}, "tea", durable=True, connection=connection),
        SentNotification("log", "x", None, durable=False, connection=None),
    ]
    with pytest.raises(NotificationError):
        notify("orders", {1, 2})
    assert len(node.sent) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda node: node.publish("dayly"), "no entry dayly in beat_schedule; did you mean daily?"),
        (lambda node: node.publish("daily"), "no task rebuld in app shop; did you mean rebuild?"),
        (lambda node: node.dispatch("order", 1), "no task is routed from channel order; did you mean orders?"),
        (lambda node: node.dispatch_raw("orders", "1"), "no task nowhere in app shop"),
    ],
)
def test_unknown_name_is_refused_with_a_hint(app: Celery, call: Any, message: str) -> None:
    """A test that names something wrongly must not pass."""
    register(app, current_slot, name="rebuild")
    app.conf.update(beat_schedule={"daily": {"task": "rebuld", "schedule": 1}}, pgleader_channels={"orders": "nowhere"})
    with FakeNode(app) as node, pytest.raises(LookupError) as caught:
        call(node)
    assert str(caught.value) == message


def test_time_without_a_zone_is_refused(app: Celery, node: FakeNode) -> None:
    """Slots are instants."""
    app.conf.beat_schedule = {"daily": {"task": "any", "schedule": 1}}
    with pytest.raises(ValueError, match="must have a time zone"):
        node.publish("daily", at=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point


def test_settings_of_the_app_are_checked(app: Celery) -> None:
    """As at a worker's start, but for the database."""
    app.conf.pgleader_tll = 3
    with pytest.raises(ConfigurationError, match="did you mean pgleader_ttl"):
        FakeNode(app)


def test_node_outside_of_with_cannot_lead(app: Celery) -> None:
    """Tasks would not know of it."""
    with pytest.raises(RuntimeError, match="inside of `with` only"):
        FakeNode(app).gain()


def test_node_leaves_nothing_behind(app: Celery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither in the tasks nor in the environment, also for tasks with a class of their own."""
    monkeypatch.delenv(VARIABLE, raising=False)
    started = []

    class Own(Task):  # type: ignore[type-arg]  # generic in the stubs, but not at run time
        name = "own"

        def before_start(self, *_: Any) -> None:
            started.append(self.name)

        def run(self) -> Any:
            return current_leadership()

    app.register_task(Own())
    task = register(app, current_leadership, name="task", leader_only=True)
    classes = [type(app.tasks[name]) for name in ("own", "task")]
    before = [dict(cls.__dict__) for cls in classes]
    for _ in range(2):
        with FakeNode(app) as node:
            node.gain()
            app.tasks["own"].apply()
            assert task.apply().get() is not None
            assert Path(os.environ[VARIABLE]).exists()
        assert [dict(cls.__dict__) for cls in classes] == before
        assert task.apply().get() is None
    assert VARIABLE not in os.environ
    assert reader.term() is None
    assert started == ["own", "own"]
    with pytest.raises(ConfigurationError):
        notify("orders", 1)
