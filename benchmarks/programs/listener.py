"""A bare listener: LISTEN, and for each notification `apply_async`; with `--only`, just that it is told."""

from __future__ import annotations

import json
import os
import sys

import psycopg
from notify_app import on_order
from telling import tell

with psycopg.connect(os.environ["BENCH_DATABASE"], autocommit=True) as session:
    session.execute("listen orders")
    tell("ready")
    for notification in session.notifies():
        order = json.loads(notification.payload)
        if "--only" in sys.argv:
            tell("ran", number=order["number"])
        else:
            on_order.apply_async((order,))
