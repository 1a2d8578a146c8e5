"""`python -m tests.chaos.clients SEED`: those who send at a steady pace until TERM comes, but all that is the least."""

from __future__ import annotations

import operator
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import psycopg
from kombu.exceptions import OperationalError

from celery_pgleader import notify
from tests.chaos.app import DURABLE, LEADER_QUEUE, RAW, make_app
from tests.chaos.history import tell
from tests.chaos.scenarios import Scenario, current

PAUSE = 0.1
# What takes some time takes at least and at most so many seconds.
LONG = {"chaos.lead": (0.2, 1.0), "chaos.work": (0.2, 1.5)}


class Notifying:
    """Writes durable notifications, and with each sends a raw one."""

    def __init__(self, database: str, number: int, seed: str, scenario: Scenario) -> None:
        """Prepare; a connection is opened when it is needed."""
        self._database = database
        self._scenario = scenario
        # Where all goes to the witness, it takes them once, and in order.
        self._task = "chaos.witness" if scenario.witnessed else "chaos.handle"
        self._number = number
        self._random = random.Random(f"{seed} notifying {number}")
        self._connection: psycopg.Connection | None = None

    def send(self, count: int) -> None:
        """Send one of each, however long it takes."""
        order = {"name": f"order-{self._number}-{count}", "key": str(self._random.randrange(self._scenario.keys))}
        murmur = {"name": f"murmur-{self._number}-{count}", "key": ""}
        began = time.monotonic()
        while not self._commit(order, murmur):
            threading.Event().wait(PAUSE)
        tell("sent", task=self._task, began=began, **order)
        tell("sent", task="chaos.hear", **murmur)

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()

    def _commit(self, order: dict[str, str], murmur: dict[str, str]) -> bool:
        """Tell whether they are committed."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._database, connect_timeout=2, application_name="client")
            connection = self._connection
            connection.execute("insert into orders values (%s)", [order["name"]])
            notify(DURABLE, order, key=order["key"], connection=connection)
            notify(RAW, murmur, durable=False, connection=connection)
            connection.commit()
        except psycopg.errors.UniqueViolation:
            # An earlier attempt was committed, though nobody was told.
            self.close()
        except psycopg.Error:
            tell("in doubt", name=order["name"])
            self.close()
            return False
        return True


class Calling:
    """Sends one kind of task, from a program without the package's plugin."""

    def __init__(self, broker: str, task: str, seed: str, scenario: Scenario) -> None:
        """Prepare."""
        self._app = make_app(broker, scenario)
        self._task = task
        self._scenario = scenario
        self._random = random.Random(f"{seed} {task}")

    def send(self, count: int) -> None:
        """Send one, or a chain of them, however long it takes."""
        names, options = [f"{self._task}-{count}"], {}
        draw = self._random.random() if self._task == "chaos.lead" else 1.0
        if draw < self._scenario.chains:
            names += [f"{names[0]}.{link}" for link in (1, 2)]
        elif draw < self._scenario.chains + self._scenario.later:
            options = {"countdown": self._random.uniform(1.0, 4.0)}
        for after, name in zip([None, *names[:-1]], names, strict=True):
            tell("sent", task=self._task, name=name, after=after, due=after is None and not options)
        signature = reduce(operator.or_, map(self._signature, names))
        while True:
            try:
                signature.apply_async(**options)
            except (OperationalError, OSError, *self._app.connection().connection_errors):
                # Nobody knows whether it arrived; the next has the same id.
                for name in names:
                    tell("in doubt", name=name)
                threading.Event().wait(PAUSE)
            else:
                return

    def close(self) -> None:
        """Let go of the connections."""
        self._app.close()

    def _signature(self, name: str) -> Any:
        seconds = self._random.uniform(*LONG[self._task]) if self._random.random() < self._scenario.long else 0.0
        # Some leader-only ones come to the ordinary queue, and are forwarded.
        to_leader = self._task == "chaos.lead" and self._random.random() < 0.8
        queue = {"queue": LEADER_QUEUE} if to_leader else {}
        return self._app.signature(self._task, [name, round(seconds, 2)], immutable=True, task_id=name, **queue)


def main(seed: str) -> None:
    """Send until told to end."""
    database, broker, scenario = os.environ["CHAOS_DATABASE"], os.environ["CHAOS_BROKER"], current()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with psycopg.connect(database) as db:
        db.execute("create table if not exists orders (name text primary key)")
    senders: list[tuple[Any, float]] = [
        *((Notifying(database, number, seed, scenario), scenario.notification) for number in range(scenario.notifying)),
        *((Calling(broker, task, seed, scenario), pace) for task, pace in scenario.calling.items()),
    ]
    with ThreadPoolExecutor(len(senders) or 1) as pool:
        for sending in [pool.submit(_send, sender, pace, scenario.amount(pace), ended) for sender, pace in senders]:
            sending.result()


def _send(sender: Any, pace: float, least: int, ended: threading.Event) -> None:
    began, count, pause = time.monotonic(), 0, threading.Event()
    while not ended.is_set() or count < least:
        sender.send(count)
        count += 1
        (pause if count < least else ended).wait(max(0.0, began + count * pace - time.monotonic()))
    sender.close()


if __name__ == "__main__":
    main(sys.argv[1])
