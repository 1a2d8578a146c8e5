"""Payloads, routes and dispatch, without a database or a broker."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from celery_pgleader import ConfigurationError, NotificationError, Term, on_notification
from celery_pgleader.channels import Route
from celery_pgleader.notifications.dispatcher import Dispatcher
from celery_pgleader.notifications.payload import MAX_PAYLOAD_BYTES, Notification, decode, encode
from celery_pgleader.notifications.registry import routes

TERM = Term(7, "shop", "a", 11)


@pytest.mark.parametrize("value", [None, 0, 'it\'s "quoted" \\ ü ✓ \0', [1, [2]], {"a": {"b": None}}, True, 1.5])
def test_what_goes_in_comes_out(value: object) -> None:
    """Any JSON value."""
    assert decode(encode(value)) == value


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), "\ud800", b"bytes"])
def test_what_is_no_json_is_refused(value: object) -> None:
    """With a reason."""
    with pytest.raises(NotificationError, match="the payload"):
        encode(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    """Or nested beyond all measure."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotificationError):
        encode(endless)


def test_the_limit_is_postgres_own() -> None:
    """Payloads shorter than 8000 bytes, quotes included."""
    assert len(encode("x" * (MAX_PAYLOAD_BYTES - 2))) == MAX_PAYLOAD_BYTES
    with pytest.raises(NotificationError, match="the payload has 8000 bytes, Postgres takes at most 7999"):
        encode("x" * (MAX_PAYLOAD_BYTES - 1))


@pytest.mark.parametrize("payload", ["", "{", "it's", "NaN", "[-Infinity]", "[" * 100_000])
def test_what_is_no_json_cannot_be_decoded(payload: str) -> None:
    """With a reason."""
    with pytest.raises(NotificationError, match="the payload is not JSON"):
        decode(payload)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """Give an app with a task, and an empty registry."""
    monkeypatch.setattr("celery_pgleader.notifications.registry._registered", [])
    app = Celery("shop", broker="memory://", set_as_current=False)

    @app.task(name="shop.on_order", shared=False)
    def on_order(order: object) -> None:
        """Handle an order."""

    return app


def test_routes_are_those_configured_and_those_registered(app: Celery) -> None:
    """Each task once, and no other app's."""
    task = app.tasks["shop.on_order"]
    other = Celery("other", set_as_current=False)
    assert on_notification("orders")(task) is task
    on_notification("returns", decode="text", deduplicate=True)(task)

    @on_notification("orders")
    @other.task(name="other.on_order", shared=False)
    def on_order(order: object) -> None:
        """Handle an order elsewhere."""

    log, known = Route("shop.log"), Route("shop.on_order", queue="slow")
    assert routes(app, {"orders": (log, known)}) == {
        "orders": (log, known),
        "returns": (Route("shop.on_order", decode="text", deduplicate=True),),
    }


def test_a_bad_channel_is_refused_where_it_is_written() -> None:
    """At import, with the rule."""
    with pytest.raises(ConfigurationError, match="at most 63 bytes"):
        on_notification("x" * 64)


def test_dispatch(app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One task that fails, or a payload that cannot be read, does not keep the others from theirs."""
    calls: list[tuple[Any, ...]] = []

    def fail(*_: object, **__: object) -> None:
        raise OSError("the broker is away")

    monkeypatch.setattr(app, "send_task", fail)
    monkeypatch.setattr(app.tasks["shop.on_order"], "apply_async", lambda args, headers: calls.append((args, headers)))
    dispatcher = Dispatcher(app, {"orders": (Route("shop.unknown"), Route("shop.on_order"))})
    dispatcher.dispatch(Notification("orders", "{", 11), TERM)
    dispatcher.dispatch(Notification("orders", "[", 11), TERM)
    dispatcher.dispatch(Notification("orders", '{"id": 1}', 11), TERM)
    headers = {"pgleader_channel": "orders", "pgleader_backend_pid": 11, "pgleader_term": 7}
    assert calls == [(({"id": 1},), headers)]
    assert caplog.text.count("dropped a notification on channel orders") == 1, "further ones are counted only"
    assert dispatcher.failures["orders", "undecodable"] == 4
    assert "could not send shop.unknown for channel orders" in caplog.text
