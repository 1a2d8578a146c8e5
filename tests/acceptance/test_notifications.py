"""Durable notifications while leaders, the broker and Postgres fail; and raw ones to and from Node.

The first is a short form of `python -m tests.chaos --scenario relaying`, which sends twenty thousand of them.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celery_pgleader import notify
from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.acceptance import test_interop_node
from tests.chaos.check import check
from tests.chaos.driver import run
from tests.chaos.scenarios import SCENARIOS
from tests.support.eventually import eventually
from tests.support.rabbitmq import RabbitMQ
from tests.support.workers import Workers

# Node, and the programs in it.
node, node_programs = test_interop_node.node, test_interop_node.node_programs

SECONDS = 16.0


def check_chaos(postgres: EmbeddedPostgres, broker: EmbeddedValkey | RabbitMQ, folder: Path) -> None:
    """Send six hundred, and see that each was run once and in order."""
    relaying = SCENARIOS["relaying"]
    scenario = dataclasses.replace(
        relaying, times=len(relaying.faults), seconds=SECONDS, notification=relaying.notifying * SECONDS / 600
    )
    report = check(run(scenario, postgres, broker, folder, seed=4))
    # As text, which is shown whole.
    assert report.faultless, str(vars(report))
    assert report.notifications["sent"] >= 600
    assert set(report.faults) == set(relaying.faults)


def test_none_is_lost_or_run_twice_on_valkey(
    tmp_path: Path, own_postgres: EmbeddedPostgres, own_valkey: EmbeddedValkey
) -> None:
    """And the order within each key is kept."""
    check_chaos(own_postgres, own_valkey, tmp_path)


@pytest.mark.long
def test_none_is_lost_or_run_twice_on_rabbitmq(
    tmp_path: Path, own_postgres: EmbeddedPostgres, shared_rabbitmq: RabbitMQ
) -> None:
    """And the order within each key is kept."""
    check_chaos(own_postgres, shared_rabbitmq, tmp_path)


PAYLOADS: list[Any] = [
    {"id": 1, "state": "paid"},
    {"note": """it's a "quoted" word, and \\ a \\n backslash; '); drop table orders; -- %s $1 $$"""},
    {"grüße": "naïve 漢字 😀 \u2028", "control": "\u0000\t\n\u001f"},
    [[], {}, [1, 2.5, -3, None, True, False]],
    "",
    0,
    None,
    {"long": "é" * 3900},
]


class NodeProgram:
    """A program that listens and sends with node-postgres."""

    def __init__(self, executable: str, program: Path, database: str, channel: str) -> None:
        """Start it, and wait until it listens."""
        self.heard: list[str] = []
        self._process = subprocess.Popen(
            [executable, str(program), database, channel],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=self._read, daemon=True).start()
        eventually(lambda: self.heard == ["listening"])
        self.heard.clear()

    def send(self, payload: str) -> None:
        """Send a payload, as it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(payload) + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.heard.append(json.loads(line))


@pytest.fixture
def node_program(
    node: tuple[str, Sequence[str]], node_programs: Path, database: str
) -> Iterator[Callable[[str], NodeProgram]]:
    """Start a program on a channel."""
    started: list[NodeProgram] = []

    def start(channel: str) -> NodeProgram:
        started.append(NodeProgram(node[0], node_programs / "notify.mjs", database, channel))
        return started[-1]

    yield start
    for program in started:
        program.end()


@pytest.mark.timeout(300)
def test_notifications_from_node_reach_our_tasks(
    node_program: Callable[[str], NodeProgram], database: str, valkey: str, tmp_path: Path
) -> None:
    """Any JSON, unchanged; what is none is dropped."""
    with Workers(tmp_path, database, valkey, "solo") as group:
        group.start("a")
        group.await_leader()
        program = node_program("orders")

        def is_heard() -> bool:
            program.send('"probe"')
            return bool(group.facts("order", order="probe"))

        # A leader begins to listen a moment after it begins to lead.
        eventually(is_heard)
        for payload in PAYLOADS:
            program.send("no JSON")
            program.send(json.dumps(payload, ensure_ascii=False))

        def came() -> list[Any]:
            return [fact["order"] for fact in group.facts("order") if fact["order"] != "probe"]

        eventually(lambda: len(came()) >= len(PAYLOADS))
        # As text: to Python, `0 == False`.
        assert json.dumps(came()) == json.dumps(PAYLOADS)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("channel", ["orders", """it's "my" Channel, 50 %"""])
def test_our_notifications_reach_node(channel: str, node_program: Callable[[str], NodeProgram], database: str) -> None:
    """Any JSON, unchanged."""
    program = node_program(channel)
    with psycopg.connect(database, autocommit=True) as connection:
        for payload in PAYLOADS:
            notify(channel, payload, durable=False, connection=connection)
    eventually(lambda: len(program.heard) >= len(PAYLOADS))
    assert json.dumps([json.loads(payload) for payload in program.heard]) == json.dumps(PAYLOADS)
