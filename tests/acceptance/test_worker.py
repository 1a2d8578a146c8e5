"""What a user sees of `celery worker --pgleader`, on Valkey and on RabbitMQ."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.operating import refusal, run_celery
from tests.support.workers import APP, PATIENCE, Workers

PASSWORD = "s3cret-passw0rd"
LISTENERS = """
select 1 from pg_stat_activity where starts_with(application_name, 'pgleader listener') and datname = current_database()
"""


@pytest.fixture
def on_valkey(tmp_path: Path, database: str, valkey: str) -> Iterator[Workers]:
    """Give workers on Valkey, where the broker makes no difference."""
    with Workers(tmp_path, database, valkey) as workers:
        yield workers


@pytest.fixture
def without_servers(tmp_path: Path) -> Iterator[Workers]:
    """Give workers that do not get as far as to need a server."""
    with Workers(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing", "memory://") as workers:
        yield workers


@pytest.mark.parametrize("broker", ["valkey", "rabbitmq"])
def test_schedule_tasks_and_notifications_follow_the_lead(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    """Three workers, three leaders, one after the other; started as users start them."""
    with Workers(tmp_path, database, request.getfixturevalue(broker)) as group:
        group.start_all("abc", quick=False)
        group.await_successors(2)
        for number in range(3):
            leader = group.await_leader()
            term = group.await_fact("gained", node=leader.node)["term"]
            ticks = len(group.facts("tick"))
            group.await_fact("tick", more_than=ticks)
            group.send_to_leader("lead", f"known {number}")
            group.send("lead", f"astray {number}")
            eventually(lambda: group.query(LISTENERS), timeout=PATIENCE)
            payload = {"round": number, "it's": '"quoted"'}
            group.query("select pg_notify('orders', %s)", json.dumps(payload))
            for key in (f"known {number}", f"astray {number}"):
                assert group.await_fact("ended", key=key)["node"] == leader.node
            order = group.await_fact("order", more_than=number)
            assert (order["order"], order["channel"], order["term"]) == (payload, "orders", term)
            if number < 2:
                leader.send(signal.SIGKILL if number else signal.SIGTERM)
                leader.await_end()
                group.workers.remove(leader)
                group.await_fact("gained", more_than=number + 1)
        terms = [fact["term"] for fact in group.facts("gained")]
        assert terms == sorted(set(terms))
        assert len(terms) == 3


def test_next_worker_leads_when_the_leader_loses_its_session(on_valkey: Workers) -> None:
    """The old leader's beat stops, and its worker works on and takes a place in the line."""
    group = on_valkey
    leader, other = group.pair()
    group.end_session()
    group.await_fact("gained", node=other.node)
    group.await_fact("lost", node=leader.node)
    group.send("lead", "after")
    assert group.await_fact("ended", key="after")["node"] == other.node
    leader.await_line("beat stopped")
    group.await_successors(1)


def test_beat_that_sleeps_stops_when_the_lead_is_lost(on_valkey: Workers) -> None:
    """Each time, and long before it would have woken up by itself."""
    on_valkey.plan({"rare": {"schedule": 3600.0}}, beat_max_loop_interval=3600)
    worker = on_valkey.start("a")
    for number in range(1, 6):
        on_valkey.await_leader()
        worker.await_line("beat started", number)
        on_valkey.end_session()
        worker.await_line("beat stopped", number)
        worker.await_line("lost leadership", number)
        on_valkey.await_fact("lost", more_than=number - 1)


def test_worker_works_while_its_database_is_away(tmp_path: Path, valkey: str, own_postgres: EmbeddedPostgres) -> None:
    """It starts, works and ends as ever; once the database is there it leads."""
    own_postgres.stop()
    with Workers(tmp_path, own_postgres.url(), valkey) as group:
        # What waited for Postgres would wait as long.
        group.environment["PGLEADER_TTL"] = group.environment["PGLEADER_DRAIN_TIMEOUT"] = str(5 * PATIENCE)
        worker = group.start("a")
        group.send("slow", 0)
        group.await_fact("slow ended")
        own_postgres.start()
        group.await_fact("gained", node=worker.node)
        group.await_fact("tick")
        own_postgres.stop()
        group.await_fact("lost", node=worker.node)
        group.send("slow", 0)
        group.await_fact("slow ended", more_than=1)
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert not worker.has_logged("Traceback")


def test_help_of_the_worker_has_a_heading_for_our_options(without_servers: Workers) -> None:
    """Each of them stands below it."""
    text = run_celery(without_servers, "-A", APP, "worker", "--help").stdout
    _, heading, options = text.partition("PgLeader Options:")
    assert heading
    for option in ("--pgleader / --no-pgleader", "--pgleader-database-url", "--pgleader-election", "--pgleader-ttl"):
        assert option in options


def test_environment_switches_it_on(on_valkey: Workers) -> None:
    """CELERY_WORKER_PGLEADER=1, and --no-pgleader overrules it."""
    on_valkey.environment["CELERY_WORKER_PGLEADER"] = "1"
    on_valkey.start("a", pgleader=False)
    on_valkey.await_leader()
    plain = on_valkey.start("b", "--no-pgleader", pgleader=False)
    assert not plain.has_logged("standing for election")


def test_plain_worker_forwards_leader_only_tasks(on_valkey: Workers) -> None:
    """Without `--pgleader` a worker neither stands nor runs what only the leader may."""
    plain = on_valkey.start("plain", pgleader=False)
    for number in range(3):
        on_valkey.send("lead", str(number))
    plain.await_line("forwarding leader-only task", 3)
    assert not on_valkey.facts("began")
    leader = on_valkey.start("leader")
    for number in range(3):
        assert on_valkey.await_fact("ended", key=str(number))["node"] == leader.node


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (
            ["--pgleader", "--pgleader-ttl", "0.2"],
            {},
            "pgleader_ttl = '0.2': must be a number of seconds from 1 to 86400",
        ),
        (
            ["--pgleader"],
            {"PGLEADER_RENEW_INTERVAL": "9"},
            (
                "pgleader_renew_interval = 9.0: must be below pgleader_ttl minus pgleader_trust_margin (2.7),"
                " or a leader would lose trust between two renewals"
            ),
        ),
        (
            ["--pgleader", "--pgleader-database-url", f"postgresql://a:{PASSWORD}@[b/c"],
            {},
            (
                "pgleader_database_url (value hidden): must be a libpq URL, such as postgresql://user@host/dbname,"
                " or a keyword string, such as host=db dbname=shop"
            ),
        ),
    ],
    ids=["ttl", "relation", "url"],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    without_servers: Workers, options: list[str], environment: dict[str, str], message: str
) -> None:
    """The worker does not start, and says which setting, which value and which rule."""
    assert refusal(without_servers, *options, **environment) == message


def test_entry_that_cannot_work_is_refused_in_one_line(on_valkey: Workers) -> None:
    """By workers and by beat processes; a worker that takes no part does not mind."""
    entry = {"task": "proj.tick", "schedule": "daily"}
    code = f"import tests.acceptance.proj as p; app = p.app; app.conf.beat_schedule = {{'report': {entry!r}}}"
    on_valkey.write("with_entry", code)
    rule = "must be a number of seconds, a timedelta, or a schedule such as crontab()"
    for command in (["worker", "--pgleader"], ["beat", "-S", "pgleader", "--pidfile", ""]):
        result = run_celery(on_valkey, "-A", "with_entry", *command)
        assert result.returncode == 1, result
        assert f"Error: beat_schedule['report']['schedule'] = 'daily': {rule}\n" in result.stderr
    on_valkey.start("a", app="with_entry", pgleader=False)


def test_incident_14_no_password_is_shown(on_valkey: Workers, database: str) -> None:
    """Neither by `celery report`, `inspect conf`, `inspect stats`, the status command nor the log."""
    url = make_conninfo(database, password=PASSWORD)
    code = f"import tests.acceptance.proj as p; p.app.conf.pgleader_database_url = {url!r}; app = p.app"
    on_valkey.write("with_password", code)
    del on_valkey.environment["PGLEADER_DATABASE_URL"]
    worker = on_valkey.start("a", app="with_password")
    on_valkey.await_leader()
    shown = [
        run_celery(on_valkey, "-A", "with_password", *command)
        for command in (["report"], ["inspect", "conf"], ["inspect", "stats"], ["pgleader", "status"])
    ]
    for result in shown:
        assert result.returncode == 0, result
        assert PASSWORD not in result.stdout + result.stderr
    assert "pgleader_database_url" in shown[1].stdout
    assert not worker.has_logged(PASSWORD)


def test_explicit_pgleader_and_the_plugin_do_not_get_in_each_others_way(on_valkey: Workers) -> None:
    """`PgLeader(app)`, twice, beside the plugin: the worker takes part without the option, and once."""
    on_valkey.write(
        "explicit",
        "from tests.acceptance.proj import app\n"
        "from celery_pgleader import PgLeader\n"
        "PgLeader(app)\nPgLeader(app)\n"
        "if __name__ == '__main__':\n"
        "    app.worker_main(['worker', '-n', 'main@test', '-P', 'solo', '-l', 'INFO'])\n",
    )
    worker = on_valkey.start("a", app="explicit", pgleader=False)
    on_valkey.await_leader()
    assert worker.logged().count("standing for election") == 1


def test_program_can_start_a_worker_itself(on_valkey: Workers) -> None:
    """`PgLeader(app)` and `app.Worker()`, without any command line."""
    program = on_valkey.write(
        "program",
        "from tests.acceptance.proj import app\n"
        "from celery_pgleader import PgLeader\n"
        "PgLeader(app)\n"
        "app.Worker(hostname='own@test', pool='solo', loglevel='INFO').start()\n",
    )
    worker = on_valkey.run("own@test", [sys.executable, str(program)])
    on_valkey.await_fact("gained", node="own@test")
    on_valkey.await_fact("tick")
    on_valkey.send("lead", "here")
    assert on_valkey.await_fact("ended", key="here")["node"] == "own@test"
    assert worker.process.poll() is None


def test_scheduler_of_the_app_gets_its_schedule_file(on_valkey: Workers) -> None:
    """`--scheduler`, a class of the app's own with a schedule of its own, gets the schedule file of `-s`."""
    module = on_valkey.write(
        "ownsched",
        "from celery.beat import PersistentScheduler\n"
        "from tests.acceptance.proj import app, tell\n"
        "class Own(PersistentScheduler):\n"
        "    def setup_schedule(self):\n"
        "        super().setup_schedule()\n"
        "        tell('set up', file=self.schedule_filename)\n",
    )
    file = str(module.with_name("own-schedule"))
    on_valkey.start("a", "--scheduler", "ownsched:Own", "-s", file, app="ownsched")
    assert on_valkey.await_fact("set up")["file"] == file
    on_valkey.await_fact("tick")


def test_scheduler_that_fails_is_tried_again(on_valkey: Workers) -> None:
    """The worker lives, and says what went wrong."""
    on_valkey.write(
        "failing",
        "from celery.beat import PersistentScheduler\n"
        "from tests.acceptance.proj import app, tell\n"
        "class Failing(PersistentScheduler):\n"
        "    def tick(self, *args, **kwargs):\n"
        "        tell('tried')\n"
        "        raise RuntimeError('out of order')\n",
    )
    worker = on_valkey.start("a", "--scheduler", "failing:Failing", app="failing")
    on_valkey.await_fact("tried", more_than=1)
    on_valkey.send("slow", 0)
    on_valkey.await_fact("slow ended")
    worker.await_line("pgleader: the beat failed in term")


def connections(process: psutil.Process, database: str) -> list[Any]:
    """Return a process's connections with Postgres."""
    port = int(str(conninfo_to_dict(database)["port"]))
    try:
        return [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == port]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_incident_15_reforked_child_keeps_no_session_alive(on_valkey: Workers, database: str) -> None:
    """Pool children forked again after the election began hold none of its sockets."""
    worker = on_valkey.start("a", "--max-tasks-per-child", "1")
    on_valkey.await_leader()
    for number in range(8):
        on_valkey.send("slow", 0)
        on_valkey.await_fact("slow ended", more_than=number)
    parent = psutil.Process(worker.process.pid)
    assert connections(parent, database)
    # One that was forked this very moment may not have closed its copy yet.
    eventually(lambda: not any(connections(child, database) for child in parent.children()), timeout=PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pool_that_grows_shrinks_and_replaces_its_children_disturbs_nothing(on_valkey: Workers, database: str) -> None:
    """No task is lost, the lead stays where it is, no child holds a session; and `kill -9` still moves it at once."""
    options = ("--autoscale", "8,1", "--max-tasks-per-child", "5")
    leader, other = on_valkey.pair(*options)
    tasks = 200
    for _ in range(tasks):
        on_valkey.send("slow", 0.05)
    eventually(lambda: len(on_valkey.facts("slow ended")) >= tasks, timeout=PATIENCE)
    assert len(on_valkey.facts("slow ended")) == tasks
    # So many processes have run so few tasks each that children were replaced all the while.
    assert len({fact["pid"] for fact in on_valkey.facts("slow ended")}) > tasks / 5 / 2
    assert [fact["node"] for fact in on_valkey.facts("gained")] == [leader.node]
    assert not on_valkey.facts("lost")
    for worker in (leader, other):
        assert worker.process.poll() is None
        parent = psutil.Process(worker.process.pid)
        eventually(lambda p=parent: not any(connections(c, database) for c in p.children()), timeout=PATIENCE)  # type: ignore[misc]
    leader.send(signal.SIGKILL)
    on_valkey.await_fact("gained", node=other.node)


def test_plugin_imports_neither_psycopg_nor_the_election() -> None:
    """Every `celery` command loads it."""
    code = (
        "import sys, celery.bin.celery;print([m for m in sys.modules if m.startswith(('psycopg', 'celery_pgleader'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "celery_pgleader.cli.plugin" in loaded
    assert "psycopg" not in loaded
    assert "celery_pgleader.election" not in loaded
