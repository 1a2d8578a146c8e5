"""How the demo knows what really happened; an app of your own needs none of this.

Every message is stamped when it is sent, and every run of a task records itself and that stamp in the table `facts`.
"""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg
from celery.signals import before_task_publish

from celery_pgleader import Term, leadership_gained, leadership_lost

RECORD = """
insert into facts (kind, key, node, run, term, sent_at, sent_by)
values (%(kind)s, %(key)s, %(node)s, %(run)s, %(term)s, to_timestamp(%(sent_at)s), %(sent_by)s)
"""


def record(db: psycopg.Connection[Any], kind: str, key: object, request: Any) -> None:
    """Record a run of a task.

    Args:
        db: the connection in whose transaction the task does its work, so that both are done or neither.
        kind: what was done.
        key: to which one.
        request: the task's `self.request`.

    """
    facts = {"kind": kind, "key": str(key), "node": request.hostname, "run": request.id}
    stamp = {name: getattr(request, header, None) for name, header in HEADERS.items()}
    db.execute(RECORD, {**facts, **stamp})


# A custom header of a message is an attribute of the task's request.
HEADERS = {"term": "pgleader_term", "sent_at": "shop_sent_at", "sent_by": "shop_sent_by"}


def _stamp(headers: dict[str, Any], **_: Any) -> None:
    headers["shop_sent_at"] = time.time()
    headers["shop_sent_by"] = os.getpid()


def _record_change(kind: str, node: str, term: Term) -> None:
    # A worker's database URL is its app's.
    from example_app.shop import DATABASE_URL  # noqa: PLC0415 - the shop imports this module

    facts = {"kind": kind, "key": "leadership", "node": node, "run": None, "term": term.number}
    with psycopg.connect(DATABASE_URL) as db:
        db.execute(RECORD, {**facts, "sent_at": time.time(), "sent_by": os.getpid()})


def _gained(sender: str, term: Term, **_: Any) -> None:
    _record_change("gained", sender, term)


def _lost(sender: str, term: Term, **_: Any) -> None:
    _record_change("lost", sender, term)


before_task_publish.connect(_stamp)
leadership_gained.connect(_gained)
leadership_lost.connect(_lost)
