"""The types of all that is public, as a user's type checker sees them; checked by mypy, and never run.

A comment `type: ignore` marks what has to be an error: mypy tells if it is none.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg
from typing_extensions import assert_type

import celery_pgleader
from celery_pgleader import (
    Change,
    ConfigurationError,
    LeaderElector,
    LeaderOnlyTask,
    Leadership,
    LeadershipLost,
    NotificationError,
    PgLeader,
    PgLeaderError,
    RunLeadership,
    ServerUnsuitable,
    Slot,
    Term,
    current_leadership,
    current_slot,
    leadership_gained,
    leadership_lost,
    notify,
    on_notification,
)
from celery_pgleader.testing import FakeNode, SentNotification

assert_type(celery_pgleader.__version__, str)
print(celery_pgleader.no_such_name)  # type: ignore[attr-defined]


def errors() -> None:
    """All are of one tree, and those about what was given are also errors of Python's."""
    tree: list[type[PgLeaderError]] = [ConfigurationError, LeadershipLost, NotificationError, ServerUnsuitable]
    values: list[type[ValueError]] = [ConfigurationError, NotificationError]
    states: list[type[ValueError]] = [LeadershipLost]  # type: ignore[list-item]
    print(tree, values, states)


def in_a_task() -> None:
    """Outside of one there is none, which has to be looked at."""
    leadership = current_leadership()
    assert_type(leadership, RunLeadership | None)
    leadership.ensure()  # type: ignore[union-attr]
    assert leadership is not None
    assert_type(leadership.ensure(), None)
    assert_type(leadership.trusted(), bool)
    assert_type(leadership.term, int)
    assert_type(leadership.election, str)
    leadership.term = 7  # type: ignore[misc]

    slot = current_slot()
    assert_type(slot, Slot | None)
    assert slot is not None
    assert_type(slot.at, datetime)
    assert_type(slot.entry, str)
    assert_type(slot.catch_up, bool)


def sending(connection: psycopg.Connection[Any]) -> None:
    """By name, but for channel and payload."""
    assert_type(notify("orders", {"id": 42}, key="tea", durable=True, connection=connection), None)
    notify("orders", {"id": 42}, "tea")  # type: ignore[call-arg]
    notify("orders", 1, key=2)  # type: ignore[arg-type]
    notify(b"orders", 1)  # type: ignore[arg-type]


def handling(handler: Callable[[int], str]) -> None:
    """A handler stays what it was."""
    assert_type(on_notification("orders", deduplicate=True)(handler), Callable[[int], str])


def in_a_worker(app: Any) -> None:
    """What is installed on an app, and heard of it."""
    assert_type(PgLeader(app), PgLeader)
    assert_type(LeaderOnlyTask.leader_only, bool)
    leadership_gained.connect(print)
    leadership_lost.connect(print)


def without_celery() -> None:
    """The election alone."""
    channels: dict[str, Callable[[Any], object]] = {"orders": print}
    with LeaderElector("postgresql://localhost/shop", election="shop", channels=channels) as elector:
        assert_type(elector, LeaderElector)
        assert_type(elector.is_leader, bool)
        assert_type(elector.leadership, Leadership)
        assert_type(elector.leadership.term, Term | None)
        assert_type(elector.leadership.wait(timeout=1.0), Term | None)
        assert_type(elector.leadership.subscribe(on_change), Callable[[], None])
        assert_type(elector.notify({"id": 42}, "orders"), None)
        elector.resign()
    LeaderElector("postgresql://localhost/shop", "shop")  # type: ignore[call-arg]


def on_change(change: Change) -> None:
    """Read all that a change says."""
    assert_type(change.term, Term)
    assert_type(change.gained, bool)
    assert_type(change.reason, str)
    assert_type(change.term.number, int)


def in_a_test(pgleader: FakeNode) -> None:
    """What the fixture gives."""
    assert_type(pgleader.gain(), Term)
    assert_type(pgleader.lose("resigned"), None)
    assert_type(pgleader.leadership, Leadership)
    assert_type(pgleader.sent, list[SentNotification])
    assert_type(pgleader.dispatch("orders", 1, key="tea"), list[Any])
    pgleader.publish("report", datetime(2030, 1, 1))  # type: ignore[call-arg]  # noqa: DTZ001 - what it is of is no matter
