"""What `doctor` finds: each fault is planted for real, and it finds that one and no other."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from celery import Celery
from click.testing import CliRunner, Result
from kombu import Queue
from psycopg import sql
from psycopg.conninfo import make_conninfo

from celery_pgleader.cli import doctor
from celery_pgleader.cli.plugin import pgleader
from celery_pgleader.config import Config
from celery_pgleader.election import Elector, Leadership, LockSession
from celery_pgleader.election.lock_key import leader_key
from celery_pgleader.election.state import Phase
from celery_pgleader.postgres import open_session
from celery_pgleader.store import LEDGER_TERMS, Schema
from celery_pgleader.store import presence as presence_module
from celery_pgleader.store.presence import Abilities, NodePresence
from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.pgbouncer import PgBouncer
from tests.support.standby import Standby

PATIENCE = 60.0
BEHIND = {Phase.SUCCESSOR, Phase.FOLLOWER}
SOUND = {"worker_prefetch_multiplier": 1, "broker_transport_options": {"visibility_timeout": 600}}


class Clinic:
    """An app in good health, until a test plants something."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        """Begin without a node."""
        self.url = url
        self.stack = stack
        self.app = Celery("shop", broker="redis://localhost:1", set_as_current=False)
        self.app.conf.update(**SOUND, pgleader_database_url=url)
        self.root = stack.enter_context(psycopg.connect(url, autocommit=True))

    def run(self, *arguments: str) -> Result:
        """Run `doctor`."""
        result = CliRunner().invoke(pgleader, ["doctor", *arguments], obj=SimpleNamespace(app=self.app))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    def findings(self) -> list[tuple[str, str]]:
        """Return what is found: about what, and what it is; all of which is also printed for people."""
        result = self.run("--json")
        found = json.loads(result.stdout)
        assert result.exit_code == (1 if found else 0)
        assert all(finding["do"] for finding in found)
        printed = self.run().stdout
        assert all(len(line) <= 80 for line in printed.splitlines())
        for finding in found:
            assert " ".join(f"{finding['subject']}: {finding['what']}".split()) in " ".join(printed.split())
        return [(finding["subject"], finding["what"]) for finding in found]

    def finding(self) -> tuple[str, str]:
        """Return the only thing that is found."""
        found = self.findings()
        assert len(found) == 1, found
        return found[0]

    def node(self, name: str, abilities: Abilities | None = None, **settings: Any) -> Elector:
        """Add a node, and wait until it leads, or waits for the lock, or follows, or is unfit to do any of it."""
        config = Config(database_url=self.url, election="shop", poll_interval=0.3, **settings)
        presence = NodePresence(config, name, abilities or Abilities(("report",), "5c2bde8b"))

        def open_lock(config: Config, node: str) -> LockSession:
            return LockSession.open(config, node, LEDGER_TERMS, presence)

        elector = Elector(config, name, leadership=Leadership(), open_session=open_lock)
        self.stack.callback(elector.stop, PATIENCE)
        count = "select count(*) from pgleader.nodes"
        before = self.root.execute(count).fetchone()
        elector.start()
        eventually(lambda: self.root.execute(count).fetchone() != before, PATIENCE)
        # What is found differs from the moment at which somebody is elected.
        if presence.stands_back is None:
            eventually(lambda: elector.leadership.trusted() or elector.phase in BEHIND, PATIENCE)
        return elector


def restock() -> None:
    """Be a task."""


@pytest.fixture
def clinic(database: str) -> Iterator[Clinic]:
    """Give an app in good health."""
    with ExitStack() as stack:
        yield Clinic(database, stack)


@pytest.fixture
def role(clinic: Clinic) -> Iterator[str]:
    """Give a role that has what workers need."""
    name = f"worker_{uuid.uuid4().hex[:8]}"
    identifier = sql.Identifier(name)
    clinic.root.execute(sql.SQL("create role {} login").format(identifier))
    clinic.root.execute(sql.SQL("grant usage on schema pgleader to {}").format(identifier))
    clinic.root.execute(sql.SQL("grant all on all tables in schema pgleader to {}").format(identifier))
    clinic.app.conf.pgleader_database_url = make_conninfo(clinic.url, user=name)
    yield name
    clinic.root.execute(sql.SQL("drop owned by {}").format(identifier))
    clinic.root.execute(sql.SQL("drop role {}").format(identifier))


def test_doctor_finds_nothing_where_all_is_well(clinic: Clinic, role: str) -> None:
    """Before the first worker, and with two of them; the role has no more rights than it needs."""
    assert clinic.findings() == []
    clinic.node("a")
    clinic.node("b")
    assert clinic.findings() == []
    result = clinic.run()
    assert (result.exit_code, result.stdout.partition(":")[0]) == (0, "all is well")


def test_fault_1_missing_connection_is_one_line_and_exit_code_69(clinic: Clinic) -> None:
    """The line says where it has looked."""
    clinic.app.conf.pgleader_database_url = "postgresql://127.0.0.1:1/shop"
    result = clinic.run()
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (69, "", 1)
    assert result.stderr.startswith("Error: cannot ask shop on 127.0.0.1: ")


def test_fault_2_missing_rights_are_found(clinic: Clinic, role: str) -> None:
    """A table that was made without a grant, and a schema that may not be looked into."""
    clinic.root.execute(sql.SQL("revoke update on pgleader.nodes from {}").format(sql.Identifier(role)))
    assert clinic.finding() == ("schema", f"role {role} may not read and write all tables of the schema pgleader")
    clinic.root.execute(sql.SQL("revoke usage on schema pgleader from {}").format(sql.Identifier(role)))
    assert clinic.finding() == ("schema", f"role {role} may not use the schema pgleader")


def test_fault_3_old_schema_is_found(clinic: Clinic, role: str) -> None:
    """And a role that may not change it; whose workers could not bring it up to date."""
    clinic.root.execute("drop table pgleader.nodes")
    clinic.root.execute("delete from pgleader.migrations where version = 4")
    subject, what = clinic.finding()
    assert subject == "schema"
    assert what == f"the schema pgleader lacks 0004_operators.sql, and role {role} may not change it"


def test_fault_4_standby_is_found(clinic: Clinic, own_postgres: EmbeddedPostgres) -> None:
    """Nobody could be elected there."""
    with open_session(own_postgres.url(), "test", unresponsive_after=5) as session:
        Schema(session).migrate()
    with Standby(own_postgres, own_postgres.bin_dir) as standby:
        clinic.app.conf.pgleader_database_url = standby.url()
        assert ("server", "this server is a standby, and no election is held there") in clinic.findings()


def test_old_server_is_found(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none to plant: the oldest version that will do is raised instead."""
    monkeypatch.setattr(doctor, "OLDEST_VERSION", 990_000)
    assert clinic.finding()[0] == "server"


def test_fault_5_pooler_in_transaction_mode_is_found(
    clinic: Clinic, pooler: Callable[..., PgBouncer], database: str
) -> None:
    """What workers refuse, and why."""
    clinic.app.conf.pgleader_database_url = pooler("transaction", 2).in_front_of(database)
    subject, what = clinic.finding()
    assert subject == "pooler"
    assert "transaction or statement mode" in what


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("default_transaction_read_only", "on"),
        ("lock_timeout", "100ms"),
        ("transaction_timeout", "1s"),
        ("deadlock_timeout", "50ms"),
    ],
)
def test_fault_6_unsuitable_server_setting_is_found(clinic: Clinic, setting: str, value: str) -> None:
    """Of the database, as a DBA may have set it for everybody."""
    if setting == "transaction_timeout" and clinic.root.info.server_version < 170_000:
        pytest.skip("PostgreSQL 17 brought it")
    name = sql.Identifier(clinic.root.info.dbname)
    clinic.root.execute(
        sql.SQL("alter database {} set {} = {}").format(name, sql.Identifier(setting), sql.Literal(value))
    )
    subject, what = clinic.finding()
    assert subject == "server settings"
    assert what.startswith(f"{setting} is ")


def test_fault_7_wrong_clock_is_found(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's, and that of this very host."""
    monkeypatch.setattr(presence_module, "time", SimpleNamespace(time=lambda: time.time() - 7))
    clinic.node("late")
    subject, what = clinic.finding()
    assert subject == "clocks"
    assert 6 < seconds(what, "the clock of late is (.*) s behind the database's") < 8
    monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: time.time() + 5))
    (ahead,) = [what for _, what in clinic.findings() if "this host" in what]
    assert 4 < seconds(ahead, "the clock of this host is (.*) s ahead of the database's") < 6


def seconds(what: str, pattern: str) -> float:
    """Return the number in a finding, which has to be of this form."""
    match = re.fullmatch(pattern, what)
    assert match is not None, what
    return float(match[1])


def test_fault_8_differing_nodes_are_found(clinic: Clinic) -> None:
    """In the version of the app, in its schedule, and in their names not at all."""
    clinic.node("a", app_version="v1")
    clinic.node("b", app_version="v2")
    assert clinic.finding() == ("nodes", "nodes have different versions of the app: a v1, b v2")
    clinic.node("c", Abilities(("other",), "77777777"), app_version="v2")
    assert ("nodes", "nodes have different schedules: a 5c2bde8b, b 5c2bde8b, c 77777777") in clinic.findings()
    clinic.app.conf.pgleader_election = "other"
    assert clinic.findings() == []


def test_equal_names_and_unfit_nodes_are_found(clinic: Clinic) -> None:
    """Each in a line of its own."""
    clinic.node("a")
    clinic.node("unfit", Abilities(("report",), "5c2bde8b", "its app has no task shop.report of report"))
    assert clinic.finding() == ("nodes", "unfit does not lead: its app has no task shop.report of report")
    clinic.node("a")
    assert ("nodes", "2 workers are called a") in clinic.findings()


def test_pauses_are_found(clinic: Clinic) -> None:
    """A pause that nobody has ended."""
    for option in ([], ["--election"]):
        CliRunner().invoke(pgleader, ["pause", *option], obj=SimpleNamespace(app=clinic.app))
    assert [what.partition(":")[0] for _, what in clinic.findings()] == [
        "the election is held",
        "the schedule is paused",
    ]


def test_fault_9_foreign_holder_of_the_lock_is_found(clinic: Clinic) -> None:
    """Another program holds the lock; another election has the same key."""
    key = leader_key(Config(database_url=clinic.url, election="shop"))
    with psycopg.connect(clinic.url, application_name="a cron job", autocommit=True) as other:
        other.execute(sql.SQL("select pg_advisory_lock({})").format(key.as_arguments()))
        subject, what = clinic.finding()
    assert subject == "lock key"
    assert "is held by another program" in what
    assert "a cron job" in what


def test_elections_with_the_same_lock_key_are_found(clinic: Clinic) -> None:
    """The first pair of names whose hashes are the same."""
    first, second = "election 63785", "election 82468"
    keys = [leader_key(Config(database_url=clinic.url, election=name)) for name in (first, second)]
    assert keys[0] == keys[1]
    clinic.app.conf.pgleader_election = first
    clinic.root.execute("insert into pgleader.elections values (%s, 1, 'a')", [second])
    assert clinic.finding() == ("lock key", f"the elections {first} and {second} have the same lock key")


def test_fault_10_leader_queue_among_task_queues_is_found(clinic: Clinic) -> None:
    """The leader queue is among everybody's."""
    clinic.app.task(name="shop.restock", leader_only=True, shared=False)(restock)
    assert clinic.findings() == []
    clinic.app.conf.task_queues = [Queue("celery"), Queue("leader-shop")]
    assert clinic.finding()[1].startswith("the leader queue leader-shop is in task_queues")


def test_leader_queue_that_nobody_may_create_is_found(clinic: Clinic) -> None:
    """To a queue that nobody may create."""
    clinic.app.conf.task_create_missing_queues = False
    clinic.app.task(name="shop.restock", leader_only=True, shared=False)(restock)
    assert clinic.finding()[1] == "task_create_missing_queues is off: leader-only tasks cannot be sent to leader-shop"


def test_fault_11_unsuitable_visibility_timeout_is_found(clinic: Clinic) -> None:
    """Or one that is longer than the ledger remembers."""
    clinic.app.conf.broker_transport_options = {}
    assert clinic.finding()[1].startswith("broker_transport_options has no visibility_timeout")
    clinic.app.conf.broker_transport_options = {"visibility_timeout": 7200}
    clinic.app.conf.pgleader_retention = 3600
    assert clinic.finding()[1].startswith("pgleader_retention is 3600 s, and the broker's visibility_timeout is 7200 s")


def test_fault_12_prefetching_is_found(clinic: Clinic) -> None:
    """Celery's default."""
    clinic.app.conf.worker_prefetch_multiplier = 4
    assert clinic.finding()[1].startswith("worker_prefetch_multiplier is 4: ")


def test_channel_with_a_missing_task_is_found(clinic: Clinic) -> None:
    """Its notifications would be dead letters."""
    clinic.app.conf.pgleader_channels = {"orders": "shop.on_order"}
    assert clinic.finding() == ("channels", "channel orders goes to shop.on_order, and this app has no such task")


def test_policy_without_an_entry_is_found(clinic: Clinic) -> None:
    """A name that was misspelt."""
    clinic.app.conf.beat_schedule = {"report": {"task": "shop.report", "schedule": 60}}
    clinic.app.conf.pgleader_schedule = {"rep*": {"misfire": "all"}, "rapport": {"misfire": "all"}}
    assert clinic.finding() == ("schedule", "pgleader_schedule has a policy for 'rapport', and no entry is called so")


def test_role_with_too_few_connections_is_found(clinic: Clinic, role: str) -> None:
    """Fewer than a leader needs."""
    clinic.root.execute(sql.SQL("alter role {} connection limit 3").format(sql.Identifier(role)))
    assert clinic.finding()[1].startswith("the role may have 3 connections")
