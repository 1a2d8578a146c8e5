"""Routes: those of the settings and those that are registered."""

from __future__ import annotations

import pytest
from celery import Celery

from celery_pgleader import ConfigurationError, on_notification
from celery_pgleader.channels import Route
from celery_pgleader.notifications.registry import routes


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


def test_bad_channel_is_refused_where_it_is_written() -> None:
    """At import, with the rule."""
    with pytest.raises(ConfigurationError, match="at most 63 bytes"):
        on_notification("x" * 64)
