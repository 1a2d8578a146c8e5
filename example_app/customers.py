"""The shop's customers, who place orders at a steady pace.

    python -m example_app.customers

Now and then they also have goods ordered from the supplier, which is a leader-only task.
"""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from typing import Any

import psycopg

from celery_pgleader import PgLeader, notify
from example_app.shop import DATABASE_URL, app, restock

ORDERS_PER_SECOND = 5.0
ORDERS_PER_DELIVERY = 3
ITEMS = {"tea": 4.50, "coffee": 7.20, "honey": 6.90, "jam": 3.80, "bread": 2.95}
READY = "select to_regprocedure('pgleader.notify(text, jsonb, text)') is not null"
GLANCE = 0.5

# This program only sends tasks. With this, leader-only ones go straight to the queue that the leader consumes.
PgLeader(app)
app.finalize()


def place_order(db: psycopg.Connection[Any]) -> None:
    """Place an order and have it handled, in one transaction: both happen, or neither does."""
    item, price = random.choice(list(ITEMS.items()))
    with db.transaction():
        row = db.execute("insert into orders (item, price) values (%s, %s) returning id", [item, price]).fetchone()
        assert row is not None
        # A row as well, which stays there until the leader has sent the task. Orders of one item are sent in order.
        notify("orders", {"id": row[0], "item": item, "price": price}, key=item, connection=db)


def send_for_goods(db: psycopg.Connection[Any]) -> None:
    """Send a leader-only task, and note that it was sent."""
    with db.transaction():
        row = db.execute("insert into deliveries default values returning id").fetchone()
        assert row is not None
        restock.delay(row[0])


def main() -> None:
    """Be customers until SIGTERM or Ctrl-C."""
    closed = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: closed.set())
    with psycopg.connect(DATABASE_URL, autocommit=True) as db:
        # The first worker that starts creates the schema in which orders are left for the leader.
        while db.execute(READY).fetchone() != (True,):
            if closed.wait(GLANCE):
                return
        started = time.monotonic()
        for count in itertools.count(1):
            # From the start on, not from order to order: the pace stays the same when one takes longer.
            if closed.wait(max(0.0, started + count / ORDERS_PER_SECOND - time.monotonic())):
                return
            place_order(db)
            if count % ORDERS_PER_DELIVERY == 0:
                send_for_goods(db)


if __name__ == "__main__":
    main()
