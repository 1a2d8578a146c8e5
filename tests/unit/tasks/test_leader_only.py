"""Where the messages of leader-only tasks are sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, group
from celery.signals import before_task_publish

from celery_pgleader import PgLeader
from celery_pgleader.tasks import route_leader_only_tasks


def queue_of(app: Celery, name: str) -> Any:
    """Return the queue that a task asks for when it is sent."""
    task: Any = app.tasks[name]
    return task._get_exec_options().get("queue")  # noqa: SLF001 - what `apply_async` calls


def test_base_class_finds_the_leader_queue(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the app's name, the setting, or the environment."""
    based: Any = app.tasks["based"]
    assert queue_of(app, "based") == "leader-shop"
    app.conf.pgleader_election = "bazaar"
    assert based.queue == "leader-bazaar"
    monkeypatch.setenv("PGLEADER_ELECTION", "fair")
    assert based.queue == "leader-fair"


def test_marked_task_is_routed_to_the_leader_queue(app: Celery) -> None:
    """Also if it was sent before; no other task is."""
    assert queue_of(app, "marked") is None
    route_leader_only_tasks(app, "shop")
    assert queue_of(app, "marked") == "leader-shop"
    assert queue_of(app, "plain") is None
    assert app.tasks["marked"].Strategy == app.tasks["based"].Strategy


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give an app of a program that sends only, with `PgLeader` in its module, and routes of its own given later."""
    monkeypatch.delenv("PGLEADER_ELECTION", raising=False)
    app = Celery("shop", broker="memory://", set_as_current=False)
    PgLeader(app)
    app.conf.task_routes = {"shop.*": "elsewhere"}
    return app


def add_task(app: Celery, name: str, **options: Any) -> Any:
    """Define a task."""

    def work(*_: object) -> None:
        """Do nothing."""

    register: Any = app.task
    return register(work, name=name, shared=False, **options)


def sent_to(app: Celery, send: Callable[[], object]) -> list[str]:
    """Return the routing keys of what is sent."""
    keys: list[str] = []

    def note(routing_key: str, **_: object) -> None:
        keys.append(routing_key)

    before_task_publish.connect(note)
    try:
        send()
    finally:
        before_task_publish.disconnect(note)
    return keys


def test_program_that_only_sends_knows_the_leader_queue(program: Celery) -> None:
    """Whichever way it sends, before its tasks were ever looked at and after; its other routes are as they were."""
    marked, plain = add_task(program, "shop.marked", leader_only=True), add_task(program, "shop.plain")
    assert not vars(program)["finalized"]
    assert sent_to(program, marked.delay) == ["leader-shop"]
    assert sent_to(program, plain.delay) == ["elsewhere"]
    for send in (
        lambda: marked.apply_async(countdown=5),
        lambda: program.send_task("shop.marked"),
        lambda: program.signature("shop.marked").delay(),
    ):
        assert sent_to(program, send) == ["leader-shop"]
    late = add_task(program, "shop.late", leader_only=True)
    assert sent_to(program, late.delay) == ["leader-shop"]


def test_canvas_members_are_routed_one_by_one(program: Celery) -> None:
    """A group sends all of them; a chain the first, with the others in it."""
    marked, plain = add_task(program, "shop.marked", leader_only=True), add_task(program, "shop.plain")
    assert sent_to(program, group(marked.si(), plain.si(), marked.si()).delay) == [
        "leader-shop",
        "elsewhere",
        "leader-shop",
    ]
    assert sent_to(program, chain(marked.si(), plain.si()).delay) == ["leader-shop"]
    assert sent_to(program, chain(plain.si(), marked.si()).delay) == ["elsewhere"]


def test_retry_returns_to_the_leader_queue(program: Celery) -> None:
    marked = add_task(program, "shop.marked", leader_only=True, bind=True)
    marked.push_request(
        id="some id",
        task="shop.marked",
        called_directly=False,
        args=(),
        kwargs={},
        delivery_info={"exchange": "", "routing_key": "leader-shop"},
    )
    try:
        assert sent_to(program, marked.signature_from_request(countdown=3).apply_async) == ["leader-shop"]
    finally:
        marked.pop_request()


def test_route_is_added_to_those_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """To none, to one, or to a list of them."""
    monkeypatch.delenv("PGLEADER_ELECTION", raising=False)
    for given, number in ((None, 1), ({"a": "b"}, 2), ([{"a": "b"}, {"c": "d"}], 3)):
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.task_routes = given
        assert app.conf.task_routes == given
        PgLeader(app)
        assert len(app.conf.task_routes) == number
