"""Sends notifications: `send.py MODE NUMBER PACE`. With a pace, one at a time, so many a second; otherwise all at once.

It tells of each when it begins to send it, and when that is committed; of all, if they are sent at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
from notify_app import on_order
from telling import tell

DURABLE = "select pgleader.notify('orders', %s::jsonb)"
DURABLE_AT_ONCE = """
select pgleader.notify('orders', %s::jsonb || jsonb_build_object('number', n)) from generate_series(0, %s - 1) n
"""
RAW = "select pg_notify('orders', %s)"
RAW_AT_ONCE = """
select pg_notify('orders', (%s::jsonb || jsonb_build_object('number', n))::text) from generate_series(0, %s - 1) n
"""
ORDER = {"id": 4711, "customer": "c-0815", "total": "129.90", "items": [{"sku": "tea-1", "count": 2}] * 3}


def one_by_one(send: Callable[[dict[str, Any]], object], number: int, pace: float) -> None:
    """Send each after a pause."""
    for n in range(number):
        tell("sent", number=n)
        send({**ORDER, "number": n})
        tell("committed", number=n)
        time.sleep(1 / pace)  # noqa: TID251 - this is what sends, not what waits


def main(mode: str, number: int, pace: float) -> None:
    """Send them."""
    if mode == "loop":
        if pace:
            one_by_one(lambda order: on_order.apply_async((order,)), number, pace)
        else:
            tell("sent", number=0)
            for n in range(number):
                on_order.apply_async(({**ORDER, "number": n},))
        return
    single, many = (DURABLE, DURABLE_AT_ONCE) if mode == "durable" else (RAW, RAW_AT_ONCE)
    with psycopg.connect(os.environ["BENCH_DATABASE"], autocommit=True) as session:
        if pace:
            one_by_one(lambda order: session.execute(single.encode(), [json.dumps(order)]), number, pace)
        else:
            tell("sent", number=0)
            session.execute(many.encode(), [json.dumps(ORDER), number])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
