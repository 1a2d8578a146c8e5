"""Those who send, each at a steady pace, until TERM comes: `python -m tests.chaos.clients SEED`."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
from kombu.exceptions import OperationalError

from celery_pgleader import notify
from tests.chaos.app import DURABLE, LEADER_QUEUE, RAW, make_app
from tests.chaos.history import tell

KEYS = 5
NOTIFYING = 2
# Seconds between one and the next.
NOTIFICATION, LEADER_ONLY, ORDINARY = 0.35, 0.4, 0.3
PAUSE = 0.1


class Notifying:
    """Writes durable notifications, and with each sends a raw one."""

    def __init__(self, database: str, number: int, seed: str) -> None:
        """Prepare; a connection is opened when it is needed."""
        self._database = database
        self._number = number
        self._random = random.Random(f"{seed} notifying {number}")
        self._connection: psycopg.Connection | None = None

    def send(self, count: int) -> None:
        """Send one of each, however long it takes."""
        order = {"name": f"order-{self._number}-{count}", "key": str(self._random.randrange(KEYS))}
        murmur = {"name": f"murmur-{self._number}-{count}", "key": ""}
        began = time.monotonic()
        while not self._commit(order, murmur):
            threading.Event().wait(PAUSE)
        tell("sent", task="chaos.handle", began=began, **order)
        tell("sent", task="chaos.hear", **murmur)

    def close(self) -> None:
        """Let go of the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit(self, order: dict[str, str], murmur: dict[str, str]) -> bool:
        """Tell whether they were committed."""
        try:
            connection = self._connect()
            connection.execute("insert into orders values (%s)", [order["name"]])
            notify(DURABLE, order, key=order["key"], connection=connection)
            notify(RAW, murmur, durable=False, connection=connection)
            connection.commit()
        except psycopg.Error:
            self.close()
            return self._was_committed(order["name"])
        return True

    def _was_committed(self, name: str) -> bool:
        # Not by the number of the transaction, which a server that crashed may give once more.
        while True:
            with contextlib.suppress(psycopg.Error):
                row = self._connect().execute("select from orders where name = %s", [name]).fetchone()
                self.close()
                return row is not None
            self.close()
            threading.Event().wait(PAUSE)

    def _connect(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = psycopg.connect(self._database, connect_timeout=2, application_name="client")
        return self._connection


class Calling:
    """Sends one kind of task, from a program without the package's plugin."""

    def __init__(self, broker: str, task: str, seed: str, longest: float) -> None:
        """Prepare; one in ten takes up to `longest` seconds."""
        self._app = make_app(broker)
        self._task = task
        self._longest = longest
        self._random = random.Random(f"{seed} {task}")

    def send(self, count: int) -> None:
        """Send one, however long it takes."""
        name = f"{self._task}-{count}"
        seconds = round(self._random.uniform(0.2, self._longest), 2) if self._random.random() < 0.1 else 0.0
        # Some leader-only ones come to the ordinary queue, and are forwarded.
        queue = LEADER_QUEUE if self._task == "chaos.lead" and self._random.random() < 0.8 else None
        tell("sent", task=self._task, name=name)
        while True:
            try:
                self._app.send_task(self._task, [name, seconds], task_id=name, queue=queue)
            except (OperationalError, OSError, *self._app.connection().connection_errors):
                # Nobody knows whether it arrived; the next has the same id.
                threading.Event().wait(PAUSE)
            else:
                return

    def close(self) -> None:
        """Let go of the connections."""
        self._app.close()


def main(seed: str) -> None:
    """Send until told to end."""
    database, broker = os.environ["CHAOS_DATABASE"], os.environ["CHAOS_BROKER"]
    with psycopg.connect(database) as db:
        db.execute("create table if not exists orders (name text primary key)")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    senders: list[tuple[Any, float]] = [
        *((Notifying(database, number, seed), NOTIFICATION) for number in range(NOTIFYING)),
        (Calling(broker, "chaos.lead", seed, 0.8), LEADER_ONLY),
        (Calling(broker, "chaos.work", seed, 1.5), ORDINARY),
    ]
    threads = [
        threading.Thread(target=_send_steadily, args=(sender.send, pace, ended), daemon=True)
        for sender, pace in senders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sender, _ in senders:
        sender.close()


def _send_steadily(send: Callable[[int], None], pace: float, ended: threading.Event) -> None:
    began = time.monotonic()
    count = 0
    while not ended.wait(max(0.0, began + count * pace - time.monotonic())):
        send(count)
        count += 1


if __name__ == "__main__":
    main(sys.argv[1])
