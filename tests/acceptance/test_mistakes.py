"""The mistakes that newcomers make: what they are told says what to do.

The list is in tests/documents/test_mistakes.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import celery
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_app.servers import EmbeddedPostgres, free_port
from tests.fixtures.servers import copied
from tests.support.eventually import eventually
from tests.support.operating import Operator, refusal
from tests.support.workers import APP, PATIENCE, QUICK, Worker, Workers

# Beats say so in their messages from this version on; those before cannot be told from other senders.
BEATS_ARE_SEEN = celery.VERSION >= (5, 7)


@pytest.fixture
def workers(tmp_path: Path, database: str, valkey: str) -> Iterator[Workers]:
    """Give workers that are quick to start."""
    with Workers(tmp_path, database, valkey, "solo") as group:
        yield group


@pytest.fixture
def without_servers(tmp_path: Path) -> Iterator[Workers]:
    """Give workers that do not get as far as to need a server."""
    with Workers(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing", "memory://") as group:
        yield group


def beat(workers: Workers, folder: Path, app: str = APP, *options: str) -> Worker:
    """Start a plain `celery beat`, or with options."""
    command = [sys.executable, "-m", "celery", "-A", app, "beat", "-l", "INFO", "--pidfile", "", *options]
    return workers.launch("beat", [*command, "-s", str(folder / "beat-schedule")])


def planted(workers: Workers, name: str, code: str, *options: str, app: str = APP) -> Worker:
    """Start a worker in whose process some code is run first."""
    command = [sys.executable, "-c", f"{code}; import celery.__main__ as c; c.main()", "-A", app, "worker"]
    return workers.run(f"{name}@test", [*command, "-n", f"{name}@test", "-P", "solo", "-l", "INFO", *QUICK, *options])


def await_finding(workers: Workers, words: str) -> None:
    """Wait until `doctor` finds something; what workers are too busy to answer in time it cannot know."""
    operator = Operator(workers)
    eventually(lambda: any(words in found["what"] for found in operator.ask("doctor", code=1)), timeout=PATIENCE)


def test_mistake_1_worker_without_url_says_which_setting_is_missing(without_servers: Workers) -> None:
    """And what such a URL looks like; it does not start."""
    assert refusal(without_servers, "--pgleader", PGLEADER_DATABASE_URL="") == (
        "pgleader_database_url is not set: give the URL of the Postgres database that holds the election, such"
        " as postgresql://user@host/dbname"
    )


def test_mistake_2_text_that_is_no_url_is_refused(without_servers: Workers) -> None:
    """It is not shown, since it may hold a password."""
    line = refusal(without_servers, "--pgleader", PGLEADER_DATABASE_URL="postgres//me:s3cret@db/shop")
    assert "pgleader_database_url (value hidden): must be a libpq URL, such as postgresql://user@host/dbname" in line
    assert "s3cret" not in line


def test_mistake_2_worker_whose_url_leads_nowhere_says_where_it_looked(workers: Workers) -> None:
    """And what to look at; it runs tasks."""
    port = free_port()
    workers.environment["PGLEADER_DATABASE_URL"] = f"postgresql://me@127.0.0.1:{port}/shop"
    worker = workers.start("a")
    worker.await_line("pgleader: no session with shop on 127.0.0.1 (election proj): ")
    worker.await_line("(trying again; is the server up, and the database URL right?)")
    workers.send("slow", 0)
    workers.await_fact("slow ended")


def test_mistake_3_worker_without_rights_says_what_to_run(workers: Workers, empty_database: str) -> None:
    """As somebody who has them; it runs tasks."""
    role = "newcomer_" + str(conninfo_to_dict(empty_database)["dbname"])
    with psycopg.connect(empty_database, autocommit=True) as root:
        root.execute(f"create role {role} login".encode())
        try:
            workers.environment["PGLEADER_DATABASE_URL"] = make_conninfo(empty_database, user=role)
            worker = workers.start("a")
            worker.await_line(f"as a role that may, run `celery -A <app> pgleader migrate --role {role}`")
            workers.send("slow", 0)
            workers.await_fact("slow ended")
        finally:
            for worker in workers.workers:
                worker.end()
            root.execute(f"drop role {role}".encode())


def test_mistake_4_worker_of_the_wrong_app_does_not_lead(workers: Workers) -> None:
    """It says why; and `status` tells which election was meant."""
    workers.write(
        "other",
        "import os\nfrom celery import Celery\napp = Celery('other', broker=os.environ['PROJ_BROKER'])\n"
        "app.conf.beat_schedule = {'report': {'task': 'proj.report', 'schedule': 1.0}}\n",
    )
    del workers.environment["PGLEADER_ELECTION"]
    workers.start("a", "--pgleader-election", "proj")
    worker = workers.start("b", app="other")
    worker.await_line("pgleader: this node does not lead: its app has no task proj.report of report")
    operator = Operator(workers, "other")
    shown = operator.ask("status", code=69, PGLEADER_ELECTION="other")
    assert shown["leader"] is None
    missed = operator.say("status", code=69, PGLEADER_ELECTION="prod")
    assert "nodes are in other, proj, and none is in prod: is this the right app?" in " ".join(missed.split())


def test_mistake_5_beat_left_in_is_refused(without_servers: Workers) -> None:
    """As `-B` beside `--pgleader`."""
    assert refusal(without_servers, "--pgleader", "-B") == (
        "--pgleader takes the place of -B (--beat): the leader runs the schedule; drop -B"
    )


def test_mistake_6_beat_left_running_is_told_of(workers: Workers, tmp_path: Path) -> None:
    """By itself, and by a worker that gets what it has sent."""
    worker = workers.start("a")
    workers.await_leader()
    other = beat(workers, tmp_path)
    other.await_line("pgleader: a@test leads election proj and runs this app's schedule")
    other.await_line("Stop this beat, or start it with -S pgleader")
    if BEATS_ARE_SEEN:
        worker.await_line("pgleader: proj.tick was sent by a celery beat that takes no part in election proj")
        worker.await_line("stop it (`celery beat`, or a worker with -B), or start it with -S pgleader")
    before = len(workers.facts("tick"))
    workers.await_fact("tick", more_than=before + 3)
    assert worker.logged().count("takes no part in election") <= 1


def test_mistake_6_worker_left_running_with_beat_says_so(workers: Workers, tmp_path: Path) -> None:
    """It was left as it was, with `-B`."""
    workers.start("a")
    workers.await_leader()
    other = workers.start("b", "-B", "-s", str(tmp_path / "beat-schedule"), pgleader=False)
    other.await_line("pgleader: a@test leads election proj and runs this app's schedule")


def test_mistake_6_nothing_that_takes_part_is_told_of(workers: Workers, tmp_path: Path) -> None:
    """Neither the leader alone nor a beat with `-S pgleader`."""
    worker = workers.start("a")
    workers.await_leader()
    taking_part = beat(workers, tmp_path, APP, "-S", "pgleader")
    workers.await_successors(1)
    workers.await_fact("tick", more_than=3)
    assert not taking_part.has_logged("leads election")
    assert not worker.has_logged("takes no part")


def test_mistake_6_doctor_finds_a_beat_that_can_be_asked(workers: Workers, tmp_path: Path) -> None:
    """Those of Celery 5.7 and later can, if `beat_enable_remote_control` is on."""
    if not BEATS_ARE_SEEN:
        return
    workers.write("asked", f"from {APP} import app\napp.conf.beat_enable_remote_control = True\n")
    beat(workers, tmp_path, "asked")
    await_finding(workers, "a celery beat runs beside the workers: celerybeat@")


def test_mistake_7_second_election_is_told_of(workers: Workers) -> None:
    """By a worker that gets what another election's leader has sent, and by `doctor`."""
    pair = [workers.start("a"), workers.start("b", "--pgleader-election", "prod")]
    words = "Give all workers of the app the same pgleader_election"
    eventually(lambda: any(worker.has_logged(words) for worker in pair), timeout=PATIENCE)
    await_finding(workers, "b@test takes part in election prod, and this app's is proj")


def test_mistake_7_doctor_finds_a_second_database(workers: Workers, postgres: EmbeddedPostgres, template: str) -> None:
    """What is one election by its name is two if one worker has another URL."""
    workers.start("a")
    workers.await_leader()
    with copied(postgres, template) as other:
        workers.start("b", "--pgleader-database-url", other)
        workers.await_fact("gained", node="b@test")
        await_finding(workers, "b@test leads an election of this name in another database")


def test_mistake_8_doctor_names_the_worker_without_the_package(workers: Workers) -> None:
    """It runs the tasks of any app."""
    workers.write(
        "bare", "import os\nfrom celery import Celery\napp = Celery('proj', broker=os.environ['PROJ_BROKER'])\n"
    )
    workers.start("a")
    planted(workers, "b", "import sys; sys.modules['celery_pgleader'] = None", app="bare")
    await_finding(workers, "b@test does not know celery-pgleader")


def test_mistake_8_option_is_unknown_without_the_package(without_servers: Workers) -> None:
    """Celery says so."""
    without_servers.write("bare", "from celery import Celery\napp = Celery('proj')\n")
    code = "import sys; sys.modules['celery_pgleader'] = None; import celery.__main__ as c; c.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "-A", "bare", "worker", "--pgleader"],
        env=without_servers.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 2
    assert "No such option" in result.stderr


def test_mistake_9_worker_says_that_postgres_is_too_old(workers: Workers) -> None:
    """And which version it takes; it runs tasks."""
    code = "import celery_pgleader.election.lock_session as l; l.OLDEST_VERSION = 990000"
    worker = planted(workers, "a", code, "--pgleader")
    worker.await_line("PostgreSQL 14 or later is needed, this server is ")
    workers.send("slow", 0)
    workers.await_fact("slow ended")
