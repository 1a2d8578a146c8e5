"""Spans around claim, publication and dispatch, and the headers by which the task's own belongs to them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from threading import Event
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import schedule
from celery.signals import before_task_publish
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from celery_pgleader import spans
from celery_pgleader.beat.publisher import Dispatch, Publisher
from celery_pgleader.beat.slot_keeper import SlotKeeper
from celery_pgleader.channels import read_channels
from celery_pgleader.config import Config
from celery_pgleader.election import Term
from celery_pgleader.notifications.dispatcher import Dispatcher
from celery_pgleader.notifications.payload import Notification
from tests.support.memory import MemoryLedger, Outbox
from tests.unit.notifications.test_relay import Desk, make

NOON = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Give what was exported."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process has one provider for ever, and other tests have none.
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
def app() -> Iterator[Celery]:
    """Give an app whose messages go nowhere."""
    made = Celery("proj", broker="memory://", set_as_current=False)
    yield made
    made.close()


def trace_of(headers: dict[str, Any]) -> tuple[int, int]:
    """Return which span a message's headers name."""
    context = trace.get_current_span(TraceContextTextMapPropagator().extract(headers)).get_span_context()
    return context.trace_id, context.span_id


def test_span_is_linked_to_its_cause(exported: InMemorySpanExporter) -> None:
    """It is a trace of its own; what is sent inside of it carries it."""
    headers: dict[str, Any] = {"pgleader_term": 7}
    with spans.span("claim", {"slots": 2}) as cause:
        pass
    with spans.span("publish", {"entry": "tick"}, sends=True, cause=cause):
        spans.carry(headers)
    claim, publish = exported.get_finished_spans()
    assert (claim.name, claim.attributes) == ("pgleader claim", {"pgleader.slots": 2})
    assert (publish.name, publish.attributes) == ("pgleader publish", {"pgleader.entry": "tick"})
    assert publish.kind is trace.SpanKind.PRODUCER
    assert [link.context.span_id for link in publish.links] == [claim.context.span_id]
    assert trace_of(headers) == (publish.context.trace_id, publish.context.span_id)
    assert headers["pgleader_term"] == 7


def test_each_attempt_to_publish_is_a_span(exported: InMemorySpanExporter, app: Celery) -> None:
    """A failed one says so."""
    settled = Event()
    attempts: list[bool] = []

    def send(_entry: Any, _producer: Any) -> None:
        attempts.append(True)
        if len(attempts) == 1:
            raise ValueError("not this time")

    publisher = Publisher(app, send, lambda: True, lambda _outcome: settled.set())
    for number in range(2):
        settled.clear()
        publisher.put(Dispatch("tick", NOON.replace(minute=number), object(), float("inf"), None))
        publisher.start()
        assert settled.wait(30)
    publisher.stop(30)
    failed, published = exported.get_finished_spans()
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert published.status.status_code is trace.StatusCode.UNSET
    assert published.attributes == {"pgleader.entry": "tick", "pgleader.slot": "2026-11-24T12:01:00+00:00"}


def test_claim_is_the_cause_of_its_publications(exported: InMemorySpanExporter, app: Celery) -> None:
    """Of all slots that were claimed together."""
    now = [NOON]
    outbox = Outbox()
    config = Config(database_url="host=db", election="shop")
    keeper = SlotKeeper(config, Term(7, "shop", "a", 1), MemoryLedger(), outbox, lambda: now[0])
    entries = {
        name: ScheduleEntry(name, "proj.tick", NOON, schedule=schedule(60.0, app=app), app=app)
        for name in ("one", "two")
    }
    keeper.recover(entries.get)
    keeper.meet(entries)
    now[0] = NOON + timedelta(seconds=61)
    for name, claims in keeper.claim(entries.values()).items():
        for claim in claims:
            keeper.publish(entries[name], claim)
    (span,) = exported.get_finished_spans()
    assert span.attributes == {"pgleader.election": "shop", "pgleader.term": 7, "pgleader.slots": 2}
    assert [dispatch.cause for dispatch in outbox.dispatches] == [span.context, span.context]


def test_tasks_of_a_raw_notification_belong_to_one_span(exported: InMemorySpanExporter, app: Celery) -> None:
    sent: list[dict[str, Any]] = []

    def note(headers: Any = None, **_: Any) -> None:
        sent.append(headers)

    before_task_publish.connect(note)
    try:
        channels = read_channels("pgleader_channels", {"orders": ["proj.one", "proj.two"]})
        Dispatcher(app, channels).dispatch(Notification("orders", "1", 4711), Term(7, "shop", "a", 1))
    finally:
        before_task_publish.disconnect(note)
    (dispatch,) = exported.get_finished_spans()
    assert dispatch.attributes == {"pgleader.channel": "orders", "pgleader.term": 7}
    assert {trace_of(headers) for headers in sent} == {(dispatch.context.trace_id, dispatch.context.span_id)}
    assert len(sent) == 2


def test_each_durable_notification_is_a_span(exported: InMemorySpanExporter) -> None:
    """A failed one says so."""
    desk = Desk(make(1), make(2, payload='"bad"'))
    sent: list[dict[str, Any]] = []
    send = desk.task.apply_async

    def note(args: Any, **options: Any) -> None:
        sent.append(options["headers"])
        send(args, **options)

    desk.task.apply_async = note
    desk.turn()
    one, two = exported.get_finished_spans()
    assert one.attributes == {"pgleader.channel": "orders", "pgleader.notification": 1, "pgleader.term": 7}
    assert trace_of(sent[0]) == (one.context.trace_id, one.context.span_id)
    assert two.status.status_code is trace.StatusCode.ERROR


def test_spans_do_nothing_without_opentelemetry() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from celery_pgleader.spans import carry, span\n"
        "headers = {}\n"
        "with span('claim', {}) as cause: carry(headers)\n"
        "assert (cause, headers) == (None, {})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
