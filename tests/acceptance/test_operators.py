"""What operators ask and order, with real workers: `celery -A proj pgleader ...`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from example_app.servers import EmbeddedPostgres, EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.operating import Operator
from tests.support.workers import APP, PATIENCE, Worker, Workers

ORDERS = "create table orders (id bigint primary key)"


@pytest.fixture
def operator(tmp_path: Path, database: str, valkey: str) -> Iterator[Operator]:
    """Give an operator of workers on a shared broker."""
    with Workers(tmp_path, database, valkey, "solo") as workers:
        yield Operator(workers)


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, modules_database: str, modules_valkey: str
) -> Iterator[tuple[Operator, Worker, Worker]]:
    """Give an operator of a leader and of a worker that follows, for tests that change nothing."""
    with Workers(tmp_path_factory.mktemp("fleet"), modules_database, modules_valkey, "solo") as workers:
        yield Operator(workers), *workers.pair()


def states(operator: Operator, entry: str) -> Counter[tuple[str, str | None]]:
    """Return how many rows of an entry's slots came to which end."""
    rows = operator.query("select state, reason from pgleader.slots where entry = %s", entry)
    return Counter((state, reason) for state, reason in rows)


def await_more(operator: Operator, entry: str, state: str, reason: str | None = None) -> None:
    """Wait until one more slot of an entry has come to an end."""
    before = states(operator, entry)[state, reason]
    eventually(lambda: states(operator, entry)[state, reason] > before, timeout=PATIENCE)


def test_status_shows_who_leads_and_who_follows(fleet: tuple[Operator, Worker, Worker]) -> None:
    """Since when, who is next, and what they run."""
    operator, leader, other = fleet
    shown = operator.say("status")
    assert f"leader     {leader.node} (backend " in shown
    assert f"successor  {other.node} (backend " in shown
    eventually(lambda: "schedule   on time" in operator.say("status"), timeout=PATIENCE)
    eventually(lambda: operator.ask("status")["lateness"] == 0, timeout=PATIENCE)
    eventually(lambda: 0 < operator.ask("status")["trust_left"] <= 2.7, timeout=PATIENCE)
    facts = operator.ask("status")
    assert (facts["term"], facts["leader"]["node"]) == (1, leader.node)
    roles = {node["node"]: node["role"] for node in facts["nodes"]}
    assert roles == {leader.node: "leader", other.node: "successor"}
    assert all(abs(node["clock_skew"]) < 1 for node in facts["nodes"])
    assert len({node["schedule"] for node in facts["nodes"]}) == 1


def test_schedule_shows_each_entry_with_its_slots(fleet: tuple[Operator, Worker, Worker]) -> None:
    """The next one, and what became of the last one."""
    operator = fleet[0]
    operator.workers.await_fact("tick")
    (entry,) = operator.ask("schedule")[-1:]
    assert (entry["entry"], entry["task"], entry["schedule"]) == ("tick", "proj.tick", "every 0:00:01")
    next_slot, last_slot = (datetime.fromisoformat(entry[key]) for key in ("next_slot", "last_slot"))
    assert next_slot - last_slot == timedelta(seconds=1)
    shown = operator.say("schedule")
    assert "tick " in shown
    assert "published" in shown


def test_inspect_shows_each_nodes_part(fleet: tuple[Operator, Worker, Worker]) -> None:
    """`celery inspect pgleader`, and `inspect stats`."""
    operator, leader, other = fleet
    shown = remote(operator, "inspect", "pgleader")
    assert {node: part["phase"] in {"leader", "renewing"} for node, part in shown.items()} == {
        leader.node: True,
        other.node: False,
    }
    assert shown[leader.node]["term"] == 1
    part = remote(operator, "inspect", "stats", to=leader)[leader.node]["pgleader"]
    phase = part.pop("phase")
    assert phase in {"leader", "renewing"}
    assert part == {"election": "proj", "node": leader.node, "term": 1, "priority": 1, "stands_back": None}


def test_history_shows_how_each_term_ended(operator: Operator) -> None:
    """Who led before, and how long nobody did."""
    leader, other = operator.workers.pair()
    leader.kill()
    operator.workers.await_fact("gained", node=other.node)
    second, first = operator.ask("history")
    assert (first["node"], first["reason"], first["gap_is_at_most"]) == (leader.node, "lost", True)
    assert (second["node"], second["term"], second["ended_at"]) == (other.node, 2, None)
    # Since the last renewal of the one that was killed.
    assert 0 < first["gap"] < PATIENCE
    assert "lost" in operator.say("history")


def test_watched_status_goes_on_while_postgres_is_away(
    tmp_path: Path, valkey: str, own_postgres: EmbeddedPostgres
) -> None:
    """It is shown again and again, until somebody interrupts it."""
    # What a shell runs in the background is born without an ear for interrupts, and so are its children.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import celery.__main__ as c; c.main()"
    )
    command = [sys.executable, "-c", program, "-A", APP, "pgleader", "status", "--watch"]
    with Workers(tmp_path, own_postgres.url(), valkey) as workers:
        watching = workers.launch("watching", command)
        watching.await_line("leader     nobody", 2)
        own_postgres.stop()
        watching.await_line("Error: cannot ask postgres on 127.0.0.1")
        own_postgres.start()
        watching.await_line("leader     nobody", watching.logged().count("leader     nobody") + 1)
        watching.send(signal.SIGINT)
        assert watching.wait() == 0
        assert not watching.has_logged("Traceback")


def test_resign_under_load_loses_no_slot(tmp_path: Path, database: str, valkey: str) -> None:
    """Each time the node that was named leads next, and each slot is run once."""
    entries = {f"entry {number}": {"schedule": 0.5} for number in range(20)}
    with Workers(tmp_path, database, valkey, "solo") as group:
        operator = Operator(group)
        group.plan(entries, {"*": {"misfire": "all"}})
        group.start_all("abc")
        for number in range(4):
            group.await_successors(2)
            leader = group.await_leader()
            wanted = next(worker for worker in reversed(group.workers) if worker is not leader)
            group.workers.reverse()
            handed = operator.ask("resign", "--to", wanted.node)
            assert (handed["leader"], handed["term"]) == (wanted.node, number + 2)
            done = len(group.facts("ended"))
            group.await_fact("ended", more_than=done + 20)
        ends = operator.query("select count(*) from pgleader.terms where reason like 'handed over to %'")
        assert ends == [(4,)]
        rows = operator.query(
            "select entry, count(*), count(*) filter (where state in ('claimed', 'published')),"
            " extract(epoch from max(slot) - min(slot))::float from pgleader.slots group by entry"
        )
        assert len(rows) == len(entries)
        for entry, number, run, seconds in rows:
            assert (number, run) == (round(seconds / 0.5) + 1, number), entry
        runs = Counter((fact["entry"], fact["slot"]) for fact in group.facts("began"))
        assert set(runs.values()) == {1}


def test_orders_say_what_they_have_done_and_what_they_cannot_do(operator: Operator) -> None:
    """Resign, cordon, uncordon and switchover."""
    operator.workers.environment["PGLEADER_POLL_INTERVAL"] = "1"
    leader, other = operator.workers.pair()
    assert operator.say("resign", "--to", leader.node) == f"{leader.node} leads already\n"
    refused = operator.run("resign", "--to", "c@test")
    assert (refused.returncode, refused.stderr) == (1, "Error: c@test is not there; there are a@test, b@test\n")
    handed = operator.ask("resign", "--to", other.node)
    assert (handed["leader"], handed["term"], handed["changed"]) == (other.node, 2, True)
    operator.workers.await_successors(1)
    assert operator.say("resign").startswith(f"{leader.node} leads, term 3; nobody led for ")
    operator.workers.await_successors(1)
    operator.say("cordon", leader.node)
    operator.workers.await_fact("gained", node=other.node, term=4)
    assert f"cordoned   {leader.node}" in operator.say("status")
    # It is there again a moment after it has led.
    cordoned = f"Error: {leader.node} is cordoned; see `pgleader uncordon`\n"
    eventually(lambda: operator.run("resign", "--to", leader.node).stderr == cordoned, timeout=PATIENCE)
    assert operator.say("uncordon", leader.node) == f"{leader.node} may lead again\n"
    assert operator.say("uncordon", leader.node) == f"{leader.node} was not cordoned\n"
    operator.workers.await_successors(1)
    ((now,),) = operator.query("select now()")
    # Time enough for two commands, however slow the machine.
    at = now + timedelta(seconds=10)
    operator.say("switchover", "--at", at.isoformat(), "--to", leader.node)
    assert "switchover at " in operator.say("status")
    operator.workers.await_fact("gained", node=leader.node, term=5)
    ((gained_at,),) = operator.query("select gained_at from pgleader.terms where term = 5")
    assert gained_at >= at
    assert operator.ask("switchover", "--cancel") == {"cancelled": None}
    passed = operator.run("switchover", "--at", "2020-01-01T00:00")
    assert passed.returncode == 2
    assert "2020-01-01 00:00:00 has passed" in passed.stderr
    operator.say("switchover", "--at", "2099-01-01 10:00")
    assert operator.say("switchover", "--cancel") == "the switchover at 2099-01-01 10:00:00 is cancelled\n"
    assert operator.run("switchover", "--at", "soon").returncode == 2
    assert [reason for (reason,) in operator.query("select reason from pgleader.terms order by term")] == [
        f"handed over to {other.node}",
        "resigned",
        "cordoned",
        f"handed over to {leader.node}",
        None,
    ]


def test_nothing_is_claimed_while_the_schedule_or_an_entry_is_paused(operator: Operator) -> None:
    """And nobody is elected while the election is held."""
    operator.workers.environment["PGLEADER_POLL_INTERVAL"] = "1"
    leader, other = operator.workers.pair()
    await_more(operator, "tick", "published")
    assert operator.say("pause").startswith("the schedule is paused")
    ((paused_at,),) = operator.query("select paused_at from pgleader.elections")
    await_more(operator, "tick", "skipped", "paused")
    assert "paused     since " in operator.say("status")
    assert operator.ask("run-now", "tick")["state"] == "published"
    assert operator.ask("resume") == {"schedule": True, "election": False}
    await_more(operator, "tick", "published")
    late = "select count(*) from pgleader.slots where state = 'published' and reason is null and claimed_at > %s"
    ((resumed,),) = operator.query(
        "select min(slot) from pgleader.slots where state = 'published' and slot > %s", paused_at
    )
    assert operator.query(late + " and slot < %s", paused_at, resumed - timedelta(seconds=0.5)) == [(0,)]
    assert operator.say("pause-entry", "tick") == "tick is paused: its slots are skipped\n"
    await_more(operator, "tick", "skipped", "paused")
    assert operator.ask("resume-entry", "tick") == {"entry": "tick", "changed": True}
    await_more(operator, "tick", "published")
    unknown = operator.run("pause-entry", "tikc")
    assert unknown.stderr == "Error: no leader has an entry 'tikc' in its schedule; did you mean 'tick'?\n"
    assert unknown.returncode == 1
    operator.say("pause", "--election")
    refused = operator.run("resign")
    assert refused.stderr == "Error: the election is held, so nobody would be elected; see `pgleader resume`\n"
    leader.send(signal.SIGTERM)
    leader.await_end()
    eventually(lambda: "stands back" not in operator.say("status", code=69), timeout=PATIENCE)
    assert "held       since " in operator.say("status", code=69)
    other.await_line("pgleader: ")
    assert len(operator.query("select term from pgleader.terms")) == 1
    assert operator.say("resume") == "the election goes on\n"
    operator.workers.await_fact("gained", node=other.node)
    assert operator.say("resume") == "nothing was paused\n"


def everything(node: str, lateness: str = "30") -> list[list[str]]:
    """Return all commands, such as each would be given."""
    return [
        ["status"],
        ["history"],
        ["schedule"],
        ["explain", "tick"],
        ["pause"],
        ["resume"],
        ["pause-entry", "tick"],
        ["resume-entry", "tick"],
        ["cordon", node],
        ["uncordon", node],
        ["run-now", "tick"],
        ["switchover", "--cancel"],
        ["notifications", "list"],
        ["notifications", "retry", "--all"],
        ["notifications", "drop", "--all"],
        ["watch", "orders", "--channel", "orders"],
        ["watches"],
        ["unwatch", "orders", "--channel", "orders"],
        ["notify", "orders", "1"],
        ["migrate"],
        ["check", "--leader-exists"],
        ["check", "--max-lateness", lateness],
        ["check", "--live", "--node", node],
        ["doctor"],
    ]


def test_commands_work_while_the_broker_is_away(tmp_path: Path, database: str, own_valkey: EmbeddedValkey) -> None:
    """What is to be published waits."""
    with Workers(tmp_path, database, own_valkey.url, "solo") as group:
        operator = Operator(group)
        # They run nothing: Celery's own worker may end if the broker goes while it acknowledges (docs/reliability.md).
        leader, other = group.pair("-Q", "idle")
        await_more(operator, "tick", "published")
        operator.query(ORDERS)
        own_valkey.stop()
        for command in everything(other.node):
            if command[0] not in {"doctor", "run-now"}:
                operator.say(*command)
        assert "broker" in operator.say("doctor", code=1)
        # No newer slot is to take its place.
        operator.say("pause")
        assert operator.ask("run-now", "tick")["state"] == "claimed"
        assert operator.ask("resign", "--to", other.node)["leader"] == other.node
        own_valkey.start()
        eventually(lambda: ("claimed", "run-now") not in states(operator, "tick"), timeout=PATIENCE)
        assert leader.process.poll() is None


def test_commands_say_in_one_line_that_postgres_is_away(
    tmp_path: Path, valkey: str, own_postgres: EmbeddedPostgres
) -> None:
    """And exit with 69."""
    own_postgres.stop()
    commands = [*everything("a@test"), ["resign"], ["resign", "--to", "a@test"]]
    commands.remove(["check", "--live", "--node", "a@test"])
    with Workers(tmp_path, own_postgres.url(), valkey) as workers:
        operator = Operator(workers)
        for command in commands:
            result = operator.run(*command)
            assert result.returncode == 69, result
            (line,) = (result.stdout + result.stderr).splitlines()
            assert "cannot ask postgres on 127.0.0.1: " in line, result


def test_commands_work_while_nobody_leads(tmp_path: Path, empty_database: str, valkey: str) -> None:
    """Before there ever was a leader or a schema, and after the last leader has gone."""
    with Workers(tmp_path, empty_database, valkey, "solo") as workers:
        check_without_leader(Operator(workers))


def check_without_leader(operator: Operator) -> None:
    """Run all commands, before and after there was a leader."""
    empty = operator.run("status")
    assert (empty.returncode, empty.stdout.splitlines()[1]) == (69, "leader     nobody")
    operator.say("migrate")
    operator.query(ORDERS)
    assert operator.say("history") == "nobody has led yet\n"
    assert operator.say("schedule") == "no leader has had a schedule yet\n"
    worker = operator.workers.start("a")
    await_more(operator, "tick", "published")
    worker.send(signal.SIGTERM)
    worker.await_end()
    assert "nobody; the last was a@test" in operator.say("status", code=69)
    for command in everything("a@test", lateness="0.1"):
        operator.ask(*command, code={"status": 69, "doctor": 1, "check": 2}.get(command[0], 0))
    away = operator.run("resign")
    assert (away.returncode, away.stderr) == (69, "Error: nobody leads\n")
    assert states(operator, "tick")["claimed", "run-now"] == 1
    operator.workers.start("b")
    eventually(lambda: states(operator, "tick")["published", "run-now"] == 1, timeout=PATIENCE)


STALLING = """
from pathlib import Path
from typing import Any
from threading import Event
from celery.beat import PersistentScheduler
from tests.acceptance.proj import app

class Stalling(PersistentScheduler):
    def should_sync(self):
        while Path(__file__).with_name("stalled").exists():
            Event().wait(0.05)
        return super().should_sync()

app.conf.beat_scheduler = "stalling:Stalling"
"""


def test_leader_whose_beat_has_stalled_fails_its_probe(operator: Operator) -> None:
    """And so does the schedule; the worker that follows, and the question whether anybody leads, do not."""
    group = operator.workers
    # It has no reason to give up the lead while the machine is busy.
    group.environment["PGLEADER_TTL"] = "60"
    module = group.write("stalling", STALLING)
    leader, other = group.pair(app="stalling")
    await_more(operator, "tick", "published")

    def probe(*checks: str, code: int = 0) -> list[str]:
        return operator.say("check", *checks, code=code).splitlines()

    assert probe("--live", "--leader-exists", "--max-lateness", "30", "--node", leader.node) == [
        f"OK live: {leader.node} takes part and leads",
        f"OK leader-exists: {leader.node} leads",
        "OK max-lateness: on time",
    ]
    module.with_name("stalled").touch()
    eventually(lambda: operator.run("check", "--max-lateness", "1").returncode == 2, timeout=PATIENCE)
    eventually(lambda: operator.run("check", "--live", "--node", leader.node).returncode == 2, timeout=PATIENCE)
    (line,) = probe("--live", "--node", leader.node, code=2)
    assert line.startswith(f"CRITICAL live: {leader.node} leads, and has not come to a slot that was due ")
    assert probe("--live", "--node", other.node) == [f"OK live: {other.node} takes part"]
    assert [result["ok"] for result in operator.ask("check", "--leader-exists")] == [True]
    assert operator.run("check").returncode == 2
    assert probe("--live", "--node", "c@test", code=2) == ["CRITICAL live: c@test takes no part in the election"]


class Events:
    """Hears worker events, as `celery events` would."""

    def __init__(self, workers: Workers) -> None:
        """Begin."""
        self.heard: list[dict[str, Any]] = []
        handlers = {"worker-leader-gained": self.heard.append, "worker-leader-lost": self.heard.append}
        self._connection = workers.sender.connection_for_read()
        self._receiver = workers.sender.events.Receiver(self._connection, handlers=handlers)
        self._ready = threading.Event()
        self._receiver.on_consume_ready = lambda *_, **__: self._ready.set()
        self._thread = threading.Thread(target=self._receiver.capture, kwargs={"wakeup": False}, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def of(self, kind: str) -> list[tuple[str, int, str]]:
        """Return from whom events of a kind came, of which term, and why."""
        return [(e["hostname"], e["term"], e["reason"]) for e in self.heard if e["type"] == kind]

    def end(self) -> None:
        """Hear no more."""
        self._receiver.should_stop = True
        self._thread.join(PATIENCE)
        self._connection.release()


def remote(operator: Operator, verb: str, *arguments: str, to: Worker | None = None) -> Any:
    """Run `celery inspect` or `celery control`; return the answers by node."""
    destination = ["-d", to.node] if to is not None else []
    result = operator.celery(verb, *destination, "-j", *arguments)
    assert result.returncode == 0, result
    answers = json.loads(result.stdout)
    # `inspect` shows one object, `control` a list of them.
    return answers if isinstance(answers, dict) else {name: a for answer in answers for name, a in answer.items()}


def test_remote_control_moves_the_lead_and_events_tell(operator: Operator) -> None:
    """`celery control pgleader_...`, and what `celery events` sees of it, without -E."""
    events = Events(operator.workers)
    try:
        leader, other = operator.workers.pair(quick=False)
        assert remote(operator, "control", "pgleader_resign", "0.5", to=other) == {other.node: {"ok": "does not lead"}}
        assert remote(operator, "control", "pgleader_resign", "0.5", to=leader) == {leader.node: {"ok": "resigns"}}
        operator.workers.await_fact("gained", node=other.node, term=2)
        operator.workers.await_successors(1)
        assert remote(operator, "control", "pgleader_hold", to=other) == {other.node: {"ok": "stands back"}}
        operator.workers.await_fact("gained", node=leader.node, term=3)
        eventually(lambda: f"{other.node} does not lead: on hold" in operator.say("status"), timeout=PATIENCE)
        assert remote(operator, "inspect", "pgleader", to=other)[other.node]["stands_back"] == "on hold"
        campaign = remote(operator, "control", "pgleader_campaign", to=other)
        assert campaign == {other.node: {"ok": "stands for the election"}}
        operator.workers.await_successors(1)
        plain = operator.workers.start("plain", pgleader=False)
        assert "takes no part" in json.dumps(remote(operator, "inspect", "pgleader", to=plain))
        eventually(lambda: len(events.of("worker-leader-gained")) >= 2, timeout=PATIENCE)
        eventually(lambda: len(events.of("worker-leader-lost")) >= 2, timeout=PATIENCE)
        assert (other.node, 2, "elected") in events.of("worker-leader-gained")
        assert (leader.node, 3, "elected") in events.of("worker-leader-gained")
        assert events.of("worker-leader-lost") == [(leader.node, 1, "resigned"), (other.node, 2, "on hold")]
    finally:
        events.end()


def test_priorities_under_repeated_faults(operator: Operator) -> None:
    """The preferred worker leads again after each fault, and a fault costs one change more at the most."""
    group = operator.workers
    # The term of the other lasts four times this at least.
    group.environment["PGLEADER_TTL"] = "1"
    group.environment["PGLEADER_POLL_INTERVAL"] = "0.5"
    low = group.start("low")
    group.await_fact("gained", node=low.node)
    high = group.start("high", "--pgleader-priority", "7")
    group.await_fact("gained", node=high.node)
    group.await_successors(1)
    terms = [("low@test", "handed over to high@test")]
    for fault in ("kill", "session", "low killed", "stop"):
        led = len(group.facts("gained", node=high.node))
        if fault == "kill":
            group.kill(high)
            high = group.start("high", "--pgleader-priority", "7")
        elif fault == "session":
            group.end_session()
        elif fault == "low killed":
            group.kill(low)
            low = group.start("low")
            group.await_successors(1)
            continue
        else:
            high.send(signal.SIGSTOP)
            group.await_leader(other_than=high)
            high.send(signal.SIGCONT)
        terms += [("high@test", "lost"), ("low@test", "handed over to high@test")]
        group.await_fact("gained", node=high.node, more_than=led)
        group.await_successors(1)
    ended = operator.query("select node, reason from pgleader.terms where ended_at is not null order by term")
    assert [node for node, _ in ended] == [node for node, _ in terms]
    assert [reason for node, reason in ended if node == "low@test"] == ["handed over to high@test"] * 4
    assert group.await_leader() is high


def test_incident_13_worker_that_lacks_a_task_of_its_schedule_does_not_lead(operator: Operator) -> None:
    """It says so, runs tasks, and leads once it is the same app again."""
    group = operator.workers
    group.environment["PGLEADER_POLL_INTERVAL"] = "1"
    code = (
        "from tests.acceptance.proj import app\napp.conf.beat_schedule['more'] = {'task': 'proj.no', 'schedule': 60}\n"
    )
    group.write("lacking", code)
    lacking = group.start("a", app="lacking")
    lacking.await_line("pgleader: this node does not lead: its app has no task proj.no of more")
    eventually(lambda: operator.query("select node from pgleader.nodes") == [("a@test",)], timeout=PATIENCE)
    assert "a@test does not lead: its app has no task proj.no of more" in operator.say("status", code=69)
    sound = group.start("b")
    group.await_fact("gained", node=sound.node)
    sound.kill()
    group.send("slow", 0)
    group.await_fact("slow ended", node=lacking.node)
    assert {fact["node"] for fact in group.facts("gained")} == {sound.node}
