"""Where the messages of leader-only tasks go, and what is done with those that went astray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, group
from celery.signals import before_task_publish
from celery.worker import state
from kombu.asynchronous.timer import scheduled

from celery_pgleader import LeaderOnlyTask, LeadershipLost, PgLeader, current_leadership
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership, Term
from celery_pgleader.tasks import request as request_module
from celery_pgleader.tasks import route_leader_only_tasks, run_leadership, trust_page
from celery_pgleader.tasks.leader_queue import LeaderQueue
from celery_pgleader.tasks.orphans import GLANCE, LONG_GLANCE, Orphans
from celery_pgleader.tasks.run_guard import RunGuard
from celery_pgleader.tasks.strategy import leader_only


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give an app with a task of each kind."""
    monkeypatch.delenv("PGLEADER_ELECTION", raising=False)
    app = Celery("shop", broker="memory://", set_as_current=False)

    def work() -> None:
        """Do nothing."""

    register: Any = app.task
    register(work, name="based", base=LeaderOnlyTask, shared=False, lazy=False)
    register(work, name="marked", leader_only=True, shared=False, lazy=False)
    register(work, name="plain", shared=False, lazy=False)
    return app


def queue_of(app: Celery, name: str) -> Any:
    """Return the queue that a task asks for when it is sent."""
    task: Any = app.tasks[name]
    return task._get_exec_options().get("queue")  # noqa: SLF001 - what `apply_async` calls


def test_the_base_class_needs_nothing_else(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the queue by the app's name, the setting, or the environment."""
    based: Any = app.tasks["based"]
    assert queue_of(app, "based") == "leader-shop"
    app.conf.pgleader_election = "bazaar"
    assert based.queue == "leader-bazaar"
    monkeypatch.setenv("PGLEADER_ELECTION", "fair")
    assert based.queue == "leader-fair"


def test_a_marked_task_is_routed(app: Celery) -> None:
    """Also if it was sent before; and no other task is."""
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


def test_a_program_that_only_sends_knows_the_leader_queue(program: Celery) -> None:
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


def test_members_of_a_canvas_go_their_own_ways(program: Celery) -> None:
    """A group sends all of them; a chain the first, with the others in it."""
    marked, plain = add_task(program, "shop.marked", leader_only=True), add_task(program, "shop.plain")
    assert sent_to(program, group(marked.si(), plain.si(), marked.si()).delay) == [
        "leader-shop",
        "elsewhere",
        "leader-shop",
    ]
    assert sent_to(program, chain(marked.si(), plain.si()).delay) == ["leader-shop"]
    assert sent_to(program, chain(plain.si(), marked.si()).delay) == ["elsewhere"]


def test_a_retry_goes_to_the_leader_queue(program: Celery) -> None:
    """From where it had come; no other has run it."""
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


def test_routes_are_added_to_an_app_that_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """To none, to one, or to a list of them."""
    monkeypatch.delenv("PGLEADER_ELECTION", raising=False)
    for given, number in ((None, 1), ({"a": "b"}, 2), ([{"a": "b"}, {"c": "d"}], 3)):
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.task_routes = given
        assert app.conf.task_routes == given
        PgLeader(app)
        assert len(app.conf.task_routes) == number


class Message:
    """A message, and what became of it."""

    def __init__(self, queue: str) -> None:
        """Come from a queue."""
        self.delivery_info = {"routing_key": queue}
        self.headers = {"id": "some id"}
        self.fate: list[str] = []

    def ack_log_error(self, *_: object) -> None:
        """Be done with."""
        self.fate.append("acknowledged")

    def reject_log_error(self, *_: object, requeue: bool) -> None:
        """Go back."""
        self.fate.append("returned" if requeue else "dropped")


@pytest.fixture
def handler(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Message], None]]:
    """Make what handles messages in a worker that takes part, or not, and leads, or not."""
    monkeypatch.setattr(
        "celery.worker.strategy.default", lambda *_, **__: lambda message, *_: message.fate.append("run")
    )

    def make(*, takes_part: bool, leads: bool = False) -> Callable[[Message], None]:
        node = SimpleNamespace(
            leader_queue=SimpleNamespace(name="leader-shop"), leadership=SimpleNamespace(trusted=lambda: leads)
        )
        controller = SimpleNamespace(pgleader=node if takes_part else None)
        handle = leader_only(
            app.tasks["based"], app, SimpleNamespace(controller=controller, connection_errors=(OSError,))
        )
        return lambda message: handle(message, None, None, None, ())

    return make


def test_only_the_leader_runs_what_is_in_the_leader_queue(handler: Callable[..., Callable[[Message], None]]) -> None:
    """A worker that leads no more gives it back."""
    for leads, fate in ((True, "run"), (False, "returned")):
        message = Message("leader-shop")
        handler(takes_part=True, leads=leads)(message)
        assert message.fate == [fate]


def test_what_has_waited_in_rabbitmq_has_not_gone_astray(handler: Callable[..., Callable[[Message], None]]) -> None:
    """The routing key of a message that was sent with an `eta` begins with the time to wait, in bits."""
    message = Message("0." * 27 + "1.leader-shop")
    handler(takes_part=True, leads=True)(message)
    assert message.fate == ["run"]


@pytest.mark.parametrize("takes_part", [True, False])
def test_what_went_astray_is_forwarded(
    *, takes_part: bool, handler: Callable[..., Callable[[Message], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the leader, and by a worker that takes no part; it is acknowledged once it was sent."""
    sent: list[str] = []

    def republish(_producer: object, message: Message, *, exchange: str, routing_key: str) -> None:
        assert not message.fate
        sent.append(exchange + routing_key)

    monkeypatch.setattr("celery_pgleader.tasks.strategy.republish", republish)
    message = Message("celery")
    handler(takes_part=takes_part, leads=True)(message)
    assert (sent, message.fate) == (["leader-shop"], ["acknowledged"])


def test_what_cannot_be_forwarded_is_kept(
    app: Celery,
    handler: Callable[..., Callable[[Message], None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes back to its queue, and the worker goes on."""

    @contextmanager
    def no_producer() -> Iterator[None]:
        raise OSError("the broker is away")
        yield

    monkeypatch.setattr(app, "producer_or_acquire", no_producer)
    message = Message("celery")
    handler(takes_part=True)(message)
    assert message.fate == ["returned"]
    assert "could not forward based[some id]" in caplog.text


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Have this process believe that it leads a term, or none."""

    def believe(term: int | None) -> None:
        for module in (trust_page, run_leadership, request_module):
            reader = SimpleNamespace(term=lambda: term, may_begin=lambda: term is not None, is_shut=lambda: False)
            monkeypatch.setattr(module, "reader", reader)

    return believe


def test_a_run_knows_its_own_term_only(believed: Callable[[int | None], None]) -> None:
    """A later term of the same node is another leadership."""
    leadership = run_leadership.RunLeadership("shop", 7)
    believed(7)
    leadership.ensure()
    for term in (8, None):
        believed(term)
        assert not leadership.trusted()
        with pytest.raises(LeadershipLost, match="term 7 of election shop is over"):
            leadership.ensure()


def test_the_end_of_a_run_is_told_to_the_guard_of_its_task() -> None:
    """Of two workers in one process each has guards of its own."""
    told: list[str] = []

    class Guard(RunGuard):
        def before_start(self, task: Any, _task_id: str) -> None:
            told.append(f"{task.app.main} began")

        def after_run(self, task: Any, state: str | None) -> None:
            told.append(f"{task.app.main} ended: {state}")

    for name in ("first", "second"):
        app = Celery(name, broker="memory://", set_as_current=False)
        register: Any = app.task
        task = register(current_leadership, name="work", shared=False, lazy=False)
        Guard(Config(database_url="dbname=none"), "a@b").install(app)
        task.apply()
    assert told == ["first began", "first ended: SUCCESS", "second began", "second ended: SUCCESS"]


def test_outside_of_a_task_there_is_no_leadership() -> None:
    """Nor is there an error."""
    assert current_leadership() is None


@pytest.fixture
def received(app: Celery) -> Iterator[Any]:
    """Give a request for a leader-only task as a worker has it; what became of its message is on it."""
    fates: list[bool] = []
    message = SimpleNamespace(
        headers={"id": "some id", "task": "based"},
        delivery_info={"routing_key": "leader-shop"},
        properties={},
        body=((), {}, {}),
        content_type="application/json",
        content_encoding="utf-8",
        delivery_tag="tag",
        reject_log_error=lambda *_: fates.append(False),
        acknowledged=False,
    )
    request: Any = request_module.LeaderRequest(
        message,
        app=app,
        task=app.tasks["based"],
        decoded=True,
        body=((), {}, {}),
        on_reject=lambda *arguments: fates.append(arguments[-1]),
    )
    request.fates = fates
    state.task_reserved(request)
    yield request
    state.task_ready(request)


def test_a_request_is_vetoed_where_nobody_leads(received: Any, believed: Callable[[int | None], None]) -> None:
    """Its message goes back, once, and the worker forgets it."""
    believed(None)
    assert received.revoked()
    assert received.fates == [True]
    assert received not in state.reserved_requests
    # Whoever had it in hand, such as a timer, comes late.
    believed(7)
    state.task_reserved(received)
    assert received.revoked()
    assert received.fates == [True]
    assert received not in state.reserved_requests
    assert "some id" not in state.requests


def test_a_leader_that_shuts_down_keeps_what_it_cannot_run(received: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it gave the message back while it consumes still, it would get it again."""
    reader = SimpleNamespace(term=lambda: 7, may_begin=lambda: False, is_shut=lambda: True)
    monkeypatch.setattr(request_module, "reader", reader)
    assert received.revoked()
    assert received.fates == []
    assert received in state.reserved_requests


def test_a_leader_runs_its_request(received: Any, believed: Callable[[int | None], None]) -> None:
    """There is nothing to veto."""
    believed(7)
    assert not received.revoked()
    assert received.fates == []
    assert received in state.reserved_requests


@pytest.mark.parametrize("green", [False, True])
def test_what_waits_for_its_time_goes_back(*, green: bool, received: Any) -> None:
    """With green threads it is the thread that is ended: nothing else keeps it from running the request."""
    cancelled: list[Any] = []
    entry: Any = SimpleNamespace(args=(received,))
    thread = SimpleNamespace(entry=entry, canceled=False)
    queue = [thread if green else scheduled(0.0, 6, entry)]
    timer = SimpleNamespace(schedule=SimpleNamespace(queue=queue), cancel=cancelled.append)
    consumer: Any = SimpleNamespace(
        app=None,
        timer=timer,
        qos=SimpleNamespace(decrement_eventually=lambda: None),
        task_consumer=SimpleNamespace(consuming_from=lambda _: False),
        call_soon=lambda call: call(),
    )
    LeaderQueue("leader-shop", Leadership()).attach(consumer)
    assert cancelled == [thread if green else entry]
    assert received.fates == [True]


class Redis:
    """What Redis holds of messages that were taken, and the channel to it."""

    unacked_key = "unacked"

    def __init__(self, **taken: str) -> None:
        """Hold tags, and the queues that they are of."""
        self.taken = taken
        self.restored: list[str] = []
        self.qos = self

    @contextmanager
    def conn_or_acquire(self) -> Iterator[Redis]:
        yield self

    def hscan_iter(self, _key: str) -> Iterator[tuple[bytes, bytes]]:
        for tag, queue in self.taken.items():
            yield tag.encode(), json.dumps([{}, "", queue]).encode()

    def restore_by_tag(self, tag: str, _client: object) -> None:
        self.restored.append(tag)


class OtherLeaders(Orphans):
    """Those who have led before: some have a session, and some answer."""

    def __init__(self, redis: Redis, mine: set[str] | None, sessions: list[str], answers: dict[str, Any]) -> None:
        """Say how it is."""
        replies = [{node: answer} for node, answer in answers.items()]
        app = SimpleNamespace(
            control=SimpleNamespace(broadcast=lambda *_, **__: replies),
            connection_for_read=lambda: nullcontext(SimpleNamespace(default_channel=redis, connection_errors=())),
        )
        queue: Any = SimpleNamespace(name="leader-shop", held=lambda: mine)
        super().__init__(app, SimpleNamespace(), queue)  # type: ignore[arg-type]
        self._sessions = sessions

    def _look(self, _term: Term) -> tuple[list[str], list[str]]:
        return ["a", "b"], list(self._sessions)

    def attempt(self, *, ended: bool = False) -> float | None:
        """Try once, without waiting."""
        ending: Any = SimpleNamespace(wait=lambda _: None, is_set=lambda: ended)
        return self._attempt(Term(7, "shop", "c", 1), ending)


def test_what_nobody_has_is_restored() -> None:
    """Of the leader queue only, and neither what this worker has nor what an earlier leader has."""
    redis = Redis(mine="leader-shop", theirs="leader-shop", nobodys="leader-shop", ordinary="celery")
    leaders = OtherLeaders(redis, {"mine"}, ["a"], {"a": {"held": ["theirs"]}})
    assert leaders.attempt() == LONG_GLANCE, "they may die yet"
    assert redis.restored == ["nobodys"]


def test_when_all_are_gone_there_is_nothing_left_to_restore() -> None:
    """One attempt is enough; and with nothing taken nobody is asked."""
    redis = Redis(mine="leader-shop", nobodys="leader-shop")
    assert OtherLeaders(redis, {"mine"}, [], {}).attempt() is None
    assert redis.restored == ["nobodys"]
    assert OtherLeaders(Redis(ordinary="celery"), set(), ["a"], {}).attempt() is None


@pytest.mark.parametrize(
    ("mine", "answers", "ended"),
    [
        (set(), {}, False),
        (set(), {"b": {"held": []}}, False),
        (set(), {"a": {"error": "no such command"}}, False),
        (None, {"a": {"held": []}}, False),
        (set(), {"a": {"held": []}}, True),
    ],
    ids=["no answer", "of another", "older version", "no connection", "term over"],
)
def test_nothing_is_restored_in_doubt(*, mine: set[str] | None, answers: dict[str, Any], ended: bool) -> None:
    """A leader of before that is there has to say what it has, and this worker has to lead still."""
    redis = Redis(nobodys="leader-shop")
    assert OtherLeaders(redis, mine, ["a"], answers).attempt(ended=ended) == GLANCE
    assert redis.restored == []


def test_what_a_worker_has_in_hand() -> None:
    """What was delivered on its connection, and is not done with, and what runs since before that."""
    queue = LeaderQueue("leader-shop", Leadership())
    assert queue.held() is None, "without a connection"

    def message(tag: str, routing_key: str) -> Any:
        return SimpleNamespace(delivery_tag=tag, delivery_info={"routing_key": routing_key})

    delivered = {
        tag: message(tag, queue) for tag, queue in {"1": "leader-shop", "2": "celery", "4": "leader-shop"}.items()
    }
    consumer = SimpleNamespace(
        task_consumer=SimpleNamespace(channel=SimpleNamespace(qos=SimpleNamespace(_delivered=delivered, _dirty={"4"}))),
        call_soon=lambda _: None,
    )
    queue.attach(consumer)
    running = Running(message("3", "leader-shop"))
    state.active_requests.add(running)
    assert queue.held() == {"1", "3"}
    state.active_requests.discard(running)


class Running:
    """A request that runs."""

    def __init__(self, message: Any) -> None:
        """Come from a message."""
        self.message = message
