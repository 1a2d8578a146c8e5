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
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.workers import APP, PATIENCE, Worker, Workers

PASSWORD = "s3cret-passw0rd"


@pytest.fixture(params=["valkey", "rabbitmq"])
def group(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> Iterator[Workers]:
    """Give workers on each broker."""
    workers = Workers(tmp_path, database, request.getfixturevalue(request.param))
    yield workers
    workers.end()


@pytest.fixture
def on_valkey(tmp_path: Path, database: str, valkey: str) -> Iterator[Workers]:
    """Give workers on Valkey, where the broker makes no difference."""
    workers = Workers(tmp_path, database, valkey)
    yield workers
    workers.end()


def celery(workers: Workers, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a `celery` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "celery", *arguments],
        env={**workers.environment, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def refused(workers: Workers, *options: str, **environment: str) -> str:
    """Return the one line with which a worker refuses to start."""
    result = celery(workers, "-A", APP, "worker", *options, **environment)
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def notify(database: str, channel: str, payload: str) -> None:
    """Send a raw notification as any program might."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_notify(%s, %s)", (channel, payload))


def listening(database: str) -> bool:
    """Tell whether a leader listens."""
    with psycopg.connect(database, autocommit=True) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity"
            " where application_name like 'pgleader listener%' and datname = current_database()"
        ).fetchone()
    return row is not None and bool(row[0])


def test_the_lead_and_all_that_comes_with_it(group: Workers, database: str) -> None:
    """Three workers, three leaders: ticks, leader-only tasks and notifications follow the lead."""
    for name in "abc":
        group.start(name)
    group.await_successors(2)
    for round_number in range(3):
        leader = group.await_leader()
        term = group.await_fact("gained", node=leader.node)["term"]
        ticks = len(group.facts("tick"))
        group.await_fact("tick", more_than=ticks)
        group.send("lead", f"known {round_number}", queue="leader-proj")
        group.send("lead", f"astray {round_number}")
        eventually(lambda: listening(database), timeout=PATIENCE)
        notify(database, "orders", json.dumps({"round": round_number, "it's": '"quoted"'}))
        for key in (f"known {round_number}", f"astray {round_number}"):
            assert group.await_fact("lead", key=key)["node"] == leader.node
        order = group.await_fact("order", more_than=round_number)
        assert order["order"] == {"round": round_number, "it's": '"quoted"'}
        assert (order["channel"], order["term"]) == ("orders", term)
        if round_number < 2:
            leader.send(signal.SIGKILL if round_number else signal.SIGTERM)
            leader.wait()
            group.workers.remove(leader)
            group.await_fact("gained", more_than=round_number + 1)
    terms = [fact["term"] for fact in group.facts("gained")]
    assert terms == sorted(set(terms))
    assert len(terms) == 3


def test_losing_the_session_moves_the_lead(group: Workers, database: str) -> None:
    """`pg_terminate_backend` of the leader: another leads, the old one's beat has stopped, its worker works on."""
    first, second = group.start("a"), group.start("b")
    leader = group.await_leader()
    group.await_successors(1)
    (other,) = {first, second} - {leader}
    (seat,) = [seat for seat in group.seats() if seat.role == "leader"]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(%s)", (seat.backend_pid,))
    group.await_fact("gained", node=other.node)
    group.await_fact("lost", node=leader.node)
    group.send("lead", "after")
    assert group.await_fact("lead", key="after")["node"] == other.node
    eventually(lambda: "beat stopped" in leader.log.read_text(), timeout=PATIENCE)
    group.await_successors(1)


def test_the_beat_stops_within_100_ms(on_valkey: Workers, database: str) -> None:
    """From the loss of the lead to the end of the beat, as the worker's own log tells it, ten times."""
    worker = on_valkey.start("a")
    for number in range(10):
        on_valkey.await_leader()
        worker.await_line("beat started", number + 1)
        (seat,) = [seat for seat in on_valkey.seats() if seat.role == "leader"]
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("select pg_terminate_backend(%s)", (seat.backend_pid,))
        worker.await_line("beat stopped", number + 1)
        worker.await_line("lost leadership", number + 1)
    lost = [fact["at"] for fact in on_valkey.facts("lost")]
    assert len(lost) >= 9
    took = sorted(
        stop - loss
        for loss, stop in zip(moments(worker, "lost leadership"), moments(worker, "beat stopped"), strict=True)
    )
    assert took[len(took) // 2] < 0.1, took


def moments(worker: Worker, words: str) -> list[float]:
    """Return the seconds of the hour at which lines with these words were logged."""
    found = []
    for line in worker.log.read_text().splitlines():
        if words in line and line.startswith("["):
            clock = line.split()[1].rstrip(":")
            _, minutes, rest = clock.split(":")
            seconds, milliseconds = rest.split(",")
            found.append(int(minutes) * 60 + int(seconds) + int(milliseconds) / 1000)
    return found


def test_a_worker_works_while_its_database_is_away(tmp_path: Path, valkey: str, own_postgres: EmbeddedPostgres) -> None:
    """The worker starts, works and shuts down as ever; once the database is there it leads."""
    url = own_postgres.url()
    own_postgres.stop()
    group = Workers(tmp_path, url, valkey)
    try:
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
        assert worker.wait() < 5
        assert worker.process.returncode == 0
        assert "Traceback" not in worker.log.read_text()
    finally:
        group.end()


def test_the_options_have_a_heading_of_their_own(on_valkey: Workers) -> None:
    """`celery worker --help` shows them."""
    text = celery(on_valkey, "-A", APP, "worker", "--help").stdout
    _, heading, options = text.partition("PgLeader Options:")
    assert heading
    for option in ("--pgleader / --no-pgleader", "--pgleader-database-url", "--pgleader-election", "--pgleader-ttl"):
        assert option in options


def test_the_environment_switches_it_on(on_valkey: Workers) -> None:
    """CELERY_WORKER_PGLEADER=1, and --no-pgleader overrules it."""
    on_valkey.environment["CELERY_WORKER_PGLEADER"] = "1"
    on_valkey.start("a", pgleader=False)
    on_valkey.await_leader()
    plain = on_valkey.start("b", "--no-pgleader", pgleader=False)
    assert "standing for election" not in plain.log.read_text()


def test_a_plain_worker_sends_leader_only_tasks_on(on_valkey: Workers) -> None:
    """Without `--pgleader` a worker neither stands nor runs what only the leader may."""
    plain = on_valkey.start("plain", pgleader=False)
    for number in range(3):
        on_valkey.send("lead", str(number))
    eventually(lambda: plain.log.read_text().count("forwarding leader-only task") == 3, timeout=PATIENCE)
    assert not on_valkey.facts("lead")
    leader = on_valkey.start("leader")
    for number in range(3):
        assert on_valkey.await_fact("lead", key=str(number))["node"] == leader.node


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (
            ["--pgleader", "-B"],
            {},
            "--pgleader takes the place of -B (--beat): the leader runs the schedule; drop -B",
        ),
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
        (
            ["--pgleader"],
            {"PGLEADER_DATABASE_URL": ""},
            (
                "pgleader_database_url is not set: give the URL of the Postgres database that holds the election,"
                " such as postgresql://user@host/dbname"
            ),
        ),
    ],
    ids=["-B", "ttl", "relation", "url", "no url"],
)
def test_what_cannot_work_is_refused_in_one_line(
    on_valkey: Workers, options: list[str], environment: dict[str, str], message: str
) -> None:
    """The worker does not start, and says which setting, which value and which rule."""
    assert refused(on_valkey, *options, **environment) == message


def test_an_entry_that_cannot_work_is_refused_in_one_line(on_valkey: Workers) -> None:
    """By workers and by beat processes; a worker that takes no part does not mind."""
    entry = {"task": "proj.tick", "schedule": "daily"}
    code = f"import tests.acceptance.proj as p; app = p.app; app.conf.beat_schedule = {{'report': {entry!r}}}"
    on_valkey.write("with_entry", code)
    rule = "must be a number of seconds, a timedelta, or a schedule such as crontab()"
    for command in (["worker", "--pgleader"], ["beat", "-S", "pgleader", "--pidfile", ""]):
        result = celery(on_valkey, "-A", "with_entry", *command)
        assert result.returncode == 1, result
        assert f"Error: beat_schedule['report']['schedule'] = 'daily': {rule}\n" in result.stderr
        assert "Traceback" not in result.stderr
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
        celery(on_valkey, "-A", "with_password", *command)
        for command in (["report"], ["inspect", "conf"], ["inspect", "stats"], ["pgleader", "status"])
    ]
    for result in shown:
        assert result.returncode == 0, result
        assert PASSWORD not in result.stdout + result.stderr
    assert "pgleader_database_url" in shown[1].stdout
    assert PASSWORD not in worker.log.read_text()


def test_inspect_stats(on_valkey: Workers) -> None:
    """`celery inspect stats` shows this worker's part in the election."""
    worker = on_valkey.start("a")
    term = on_valkey.await_fact("gained")["term"]
    result = celery(on_valkey, "-A", APP, "inspect", "stats", "-j")
    shown = json.loads(result.stdout)[worker.node]["pgleader"]
    assert shown == {
        "election": "proj",
        "node": worker.node,
        "phase": shown["phase"],
        "term": term,
        "priority": 1,
        "stands_back": None,
    }
    assert shown["phase"] in {"leader", "renewing"}


def test_status(on_valkey: Workers, own_postgres: EmbeddedPostgres) -> None:
    """`celery pgleader status` asks Postgres: it works without workers, and exits with 69 for want of an answer."""
    nobody = celery(on_valkey, "-A", APP, "pgleader", "status")
    assert (nobody.returncode, "leader     nobody" in nobody.stdout) == (69, True)
    worker = on_valkey.start("a")
    on_valkey.await_leader()
    result = celery(on_valkey, "-A", APP, "pgleader", "status", "--json")
    assert (result.returncode, json.loads(result.stdout)["leader"]["node"]) == (0, worker.node)
    url = own_postgres.url()
    own_postgres.stop()
    away = celery(on_valkey, "-A", APP, "pgleader", "status", PGLEADER_DATABASE_URL=url)
    assert away.returncode == 69
    assert "cannot ask postgres on 127.0.0.1" in away.stderr
    assert "Traceback" not in away.stderr


def test_an_explicit_pgleader_and_the_plugin_are_harmless_together(on_valkey: Workers) -> None:
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
    assert worker.log.read_text().count("standing for election") == 1


def test_a_program_that_starts_a_worker_itself(on_valkey: Workers) -> None:
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
    assert on_valkey.await_fact("lead", key="here")["node"] == "own@test"
    assert worker.process.poll() is None


def test_the_apps_own_scheduler_runs(on_valkey: Workers) -> None:
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


def test_a_scheduler_that_fails_is_tried_again(on_valkey: Workers) -> None:
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
    assert "pgleader: the beat failed in term" in worker.log.read_text()


def connections(process: psutil.Process, database: str) -> list[Any]:
    """Return a process's connections with Postgres."""
    port = int(str(conninfo_to_dict(database)["port"]))
    try:
        return [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == port]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_incident_15_a_reforked_child_keeps_no_session_alive(on_valkey: Workers, database: str) -> None:
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
def test_a_pool_that_grows_shrinks_and_replaces_its_children_under_load(on_valkey: Workers, database: str) -> None:
    """No task is lost, the lead stays where it is, no child holds a session; and `kill -9` still moves it at once."""
    options = ("--autoscale", "8,1", "--max-tasks-per-child", "5")
    leader = on_valkey.start("a", *options)
    on_valkey.await_leader()
    other = on_valkey.start("b", *options)
    on_valkey.await_successors(1)
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


def test_the_plugin_is_light() -> None:
    """What every `celery` command loads brings neither psycopg nor the election along."""
    code = (
        "import sys, celery.bin.celery;print([m for m in sys.modules if m.startswith(('psycopg', 'celery_pgleader'))])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "celery_pgleader.cli.plugin" in loaded
    assert "psycopg" not in loaded
    assert "celery_pgleader.election" not in loaded
