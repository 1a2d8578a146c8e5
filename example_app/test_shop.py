"""The shop's own tests, without Postgres, broker and worker: what `pgleader` does is in docs/testing.md.

pytest example_app
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest

from celery_pgleader.testing import FakeNode
from example_app import customers, shop

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def pgleader_app() -> Any:
    """Test the shop, whichever app was made last."""
    return shop.app


@pytest.fixture(autouse=True)
def db(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """Give what takes the place of every connection to the shop's database."""
    db = MagicMock()
    db.__enter__.return_value = db
    monkeypatch.setattr(psycopg, "connect", lambda _url: db)
    return db


def recorded(db: MagicMock) -> list[tuple[str, str]]:
    """Return kind and key of what was recorded, oldest first."""
    rows = [call.args[1] for call in db.execute.call_args_list if "insert into facts" in call.args[0]]
    return [(row["kind"], row["key"]) for row in rows]


def test_only_the_leader_restocks(pgleader: FakeNode, db: MagicMock) -> None:
    """Others leave it to the leader."""
    shop.restock.apply((7,))
    assert recorded(db) == []
    pgleader.gain()
    shop.restock.apply((7,))
    assert recorded(db) == [("gained", "leadership"), ("restock", "7")]


def test_changes_of_leadership_are_recorded(pgleader: FakeNode, db: MagicMock) -> None:
    """By the receivers of the signals."""
    pgleader.gain()
    pgleader.lose()
    assert recorded(db) == [("gained", "leadership"), ("lost", "leadership")]


def test_order_is_confirmed_by_the_task_of_its_notification(pgleader: FakeNode, db: MagicMock) -> None:
    """In the database."""
    pgleader.dispatch("orders", {"id": 42, "item": "tea", "price": 4.5}, key="tea")
    update, parameters = db.execute.call_args_list[0].args
    assert update.startswith("update orders set confirmed_at")
    assert parameters == [42]
    assert recorded(db) == [("order", "42")]


def test_report_runs_once_for_its_slot(pgleader: FakeNode, db: MagicMock) -> None:
    """It knows which one that is."""
    db.execute.return_value.fetchone.return_value = (3, 12)
    assert pgleader.publish("report", at=NOON).get() == "3 orders, 12 in all"
    assert pgleader.publish("report", at=NOON).state == "IGNORED"
    assert recorded(db) == [("tick", str(NOON.timestamp()))]


def test_order_and_its_notification_are_written_together(pgleader: FakeNode, db: MagicMock) -> None:
    """In one transaction, and in order within the item."""
    db.execute.return_value.fetchone.return_value = (42,)
    customers.place_order(db)
    (sent,) = pgleader.sent
    assert sent.connection is db
    assert (sent.channel, sent.payload["id"], sent.durable) == ("orders", 42, True)
    assert sent.key == sent.payload["item"]
