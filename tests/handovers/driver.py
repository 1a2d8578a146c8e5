"""Makes the faults: nodes are told to resign, ended, killed, stopped and resumed, and their sessions terminated."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from tests.handovers.app import ELECTION, make_app
from tests.handovers.count import Count, Message, count_slots
from tests.support.eventually import eventually
from tests.support.programs import Program

KINDS = ("resign", "term", "kill", "terminate", "stop")
PATIENCE = 60.0
# Faults fall this long before to this long after a slot, in seconds.
EARLY, LATE = 0.03, 0.06

CREATE_TABLES = """
import os, sqlalchemy
from sqlalchemy_celery_beat.session import SessionManager
manager = SessionManager()
engine = manager.get_engine(os.environ["HANDOVERS_DATABASE"].replace("postgresql://", "postgresql+psycopg://"))
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("create schema celery_schema"))
manager.prepare_models(engine)
"""


class Consumer:
    """Takes every message from the broker, as it comes."""

    def __init__(self, app: Any) -> None:
        """Begin."""
        self.messages: list[Message] = []
        self._app = app
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Take no more."""
        self._ended.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with self._app.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
            while not self._ended.is_set():
                with contextlib.suppress(queue.Empty):
                    message = queue.get(timeout=0.2)
                    slot = message.headers["pgleader_slot"]
                    self.messages.append(
                        Message(message.headers["id"], slot["entry"], datetime.fromisoformat(slot["at"]), slot["term"])
                    )
                    message.ack()


class Driver:
    """A fleet of nodes over one store of one scheduler."""

    def __init__(self, scheduler: str, database: str, broker: str, folder: Path, seed: int, nodes: int = 3) -> None:
        """Prepare the store, and start the nodes."""
        self._database = database
        self._config = Config(database_url=database, election=ELECTION)
        self._random = random.Random(seed)
        self.kinds: dict[str, int] = Counter()
        environment = {
            **os.environ,
            "HANDOVERS_SCHEDULER": scheduler,
            "HANDOVERS_DATABASE": database,
            "HANDOVERS_STORE": database,
            "HANDOVERS_BROKER": broker,
            "DJANGO_SETTINGS_MODULE": "tests.handovers.django_settings",
            "PYTHONWARNINGS": "ignore",
        }
        migrate = [sys.executable, "-m", "django", "migrate", "-v", "0"]
        if scheduler == "django-two-databases":
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("create database store")
            environment["HANDOVERS_STORE"] = make_conninfo(database, dbname="store")
            subprocess.run([*migrate, "--database", "ledger", "pgleader"], env=environment, check=True)
        if scheduler.startswith("django"):
            subprocess.run(migrate, env=environment, check=True)
        if scheduler == "sqlalchemy":
            # Its nodes would create the tables together, and get into each other's way.
            subprocess.run([sys.executable, "-c", CREATE_TABLES], env=environment, check=True)
        self._consumer = Consumer(make_app(environment))
        command = [sys.executable, "-m", "tests.handovers.node"]
        self._nodes = {
            name: Program(name, [*command, name, str(folder / f"{name}.schedule")], environment, folder)
            for name in (f"node{number}" for number in range(nodes))
        }
        self._db = psycopg.connect(database, autocommit=True)

    def __enter__(self) -> Driver:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind."""
        for node in self._nodes.values():
            node.end()
        self._consumer.end()
        self._db.close()

    def run(self, handovers: int) -> Count:
        """Hand over so many times, and count."""
        eventually(lambda: self._leader() and self._consumer.messages, PATIENCE)
        for _ in range(handovers):
            self._hand_over()
        self._settle()
        return count_slots(self._database, ELECTION, self._consumer.messages)

    def _leader(self) -> tuple[Program, int] | None:
        # A session that ends while it is looked at has no name any more.
        leaders = [seat for seat in observe(self._config) if seat.role == "leader" and seat.node in self._nodes]
        return (self._nodes[leaders[0].node], leaders[0].backend_pid) if leaders else None

    def _successors(self) -> int:
        return sum(seat.role == "successor" for seat in observe(self._config))

    def _hand_over(self) -> None:
        eventually(lambda: self._leader() and self._successors(), PATIENCE)
        node, pid = self._leader() or (None, 0)
        assert node is not None
        kind = self._random.choice(KINDS)
        self.kinds[kind] += 1
        self._wait_for_a_slot()
        if kind == "resign":
            node.send(signal.SIGUSR1)
        elif kind == "term":
            node.send(signal.SIGTERM)
        elif kind == "kill":
            node.send(signal.SIGKILL)
        elif kind == "terminate":
            self._db.execute("select pg_terminate_backend(%s)", [pid])
        else:
            node.send(signal.SIGSTOP)
        eventually(lambda: (self._leader() or (node, pid))[1] != pid, PATIENCE)
        if kind == "stop":
            node.send(signal.SIGCONT)
        elif kind in {"term", "kill"}:
            node.await_end()
            node.restart()

    def _wait_for_a_slot(self) -> None:
        row = self._db.execute(
            "select anchor from pgleader.entries where entry = %s", [self._random.choice(["second", "second", "long"])]
        ).fetchone()
        # Every entry but the crontab has its slots at the same fraction of a second.
        fraction = row[0].timestamp() % 1 if row and self._random.random() < 0.8 else 0.0
        offset = self._random.uniform(-EARLY, LATE)
        now = time.time()
        target = int(now) + fraction + offset
        while target < now:
            target += 1
        threading.Event().wait(target - now)

    def _end_nodes(self) -> None:
        for node in self._nodes.values():
            node.send(signal.SIGTERM)
        for node in self._nodes.values():
            node.await_end()

    def _settle(self) -> None:
        """Let the last leader account for everything, and end."""
        began = time.time()
        query = """
            select count(*) filter (where extract(epoch from last_slot) < %s and entry <> 'minute') = 0
                   and not exists (select from pgleader.slots where state = 'claimed')
              from pgleader.entries
        """
        eventually(lambda: (self._db.execute(query, [began]).fetchone() or (False,))[0], PATIENCE)
        self._end_nodes()
        # Ended between a claim and its message; that is the next leader's to send.
        while self._db.execute("select from pgleader.slots where state = 'claimed'").fetchone():
            self._nodes["node0"].restart()
            eventually(lambda: (self._db.execute(query, [began]).fetchone() or (False,))[0], PATIENCE)
            self._end_nodes()
        # What was published last is on its way.
        seen = -1
        while seen != len(self._consumer.messages):
            seen = len(self._consumer.messages)
            threading.Event().wait(1.0)
