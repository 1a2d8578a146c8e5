"""The mistakes that newcomers make: what they are told says what to do.

The list is in tests/documents/test_mistakes.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import celery
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_app.servers import EmbeddedPostgres, free_port
from tests.support.eventually import eventually
from tests.support.operating import Operator
from tests.support.workers import APP, PATIENCE, Worker, Workers

# Beats say so in their messages from this version on; those before cannot be told from other senders.
BEATS_ARE_SEEN = celery.VERSION >= (5, 7)


@pytest.fixture
def workers(tmp_path: Path, database: str, valkey: str) -> Iterator[Workers]:
    """Give workers that are quick to start."""
    group = Workers(tmp_path, database, valkey, "solo")
    yield group
    group.end()


def refusal(workers: Workers, *options: str, **environment: str) -> str:
    """Return the one line with which a worker refuses to start."""
    result = subprocess.run(
        [sys.executable, "-m", "celery", "-A", APP, "worker", *options],
        env={**workers.environment, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


def beat(workers: Workers, folder: Path) -> Worker:
    """Start a plain `celery beat`."""
    command = [sys.executable, "-m", "celery", "-A", APP, "beat", "-l", "INFO", "--pidfile", ""]
    started = Worker("beat", [*command, "-s", str(folder / "beat-schedule")], workers.environment, folder / "beat.log")
    workers.workers.append(started)
    return started


def planted(workers: Workers, name: str, code: str, *options: str, app: str = APP) -> Worker:
    """Start a worker in whose process some code is run first."""
    command = [sys.executable, "-c", f"{code}; import celery.__main__ as c; c.main()", "-A", app, "worker"]
    return workers.run(f"{name}@test", [*command, "-n", f"{name}@test", "-P", "solo", "-l", "INFO", *options])


def await_finding(operator: Operator, words: str) -> None:
    """Wait until `doctor` finds something; what workers are too busy to answer in time it cannot know."""
    eventually(lambda: any(words in found["what"] for found in operator.ask("doctor", code=1)), timeout=PATIENCE)


def test_mistake_1_no_url(workers: Workers) -> None:
    """The worker does not start, and says which setting is missing and what such a URL looks like."""
    assert refusal(workers, "--pgleader", PGLEADER_DATABASE_URL="") == (
        "Error: pgleader_database_url is not set: give the URL of the Postgres database that holds the election, such"
        " as postgresql://user@host/dbname"
    )


def test_mistake_2_a_url_that_is_none(workers: Workers) -> None:
    """It is refused without being shown, since it may hold a password."""
    line = refusal(workers, "--pgleader", PGLEADER_DATABASE_URL="postgres//me:s3cret@db/shop")
    assert "pgleader_database_url (value hidden): must be a libpq URL, such as postgresql://user@host/dbname" in line
    assert "s3cret" not in line


def test_mistake_2_a_url_that_leads_nowhere(workers: Workers) -> None:
    """The worker runs tasks, says where it looked, and what to look at."""
    port = free_port()
    workers.environment["PGLEADER_DATABASE_URL"] = f"postgresql://me@127.0.0.1:{port}/shop"
    worker = workers.start("a")
    worker.await_line("pgleader: no session with shop on 127.0.0.1 (election proj): ")
    worker.await_line("(trying again; is the server up, and the database URL right?)")
    workers.send("slow", 0)
    workers.await_fact("slow ended")


def test_mistake_3_no_rights(workers: Workers, database: str) -> None:
    """The worker runs tasks, and says what somebody with the right has to run."""
    role = "newcomer_" + str(conninfo_to_dict(database)["dbname"])
    with psycopg.connect(database, autocommit=True) as root:
        root.execute(f"create role {role} login".encode())
        try:
            workers.environment["PGLEADER_DATABASE_URL"] = make_conninfo(database, user=role)
            worker = workers.start("a")
            worker.await_line(f"as a role that may, run `celery -A <app> pgleader migrate --role {role}`")
            workers.send("slow", 0)
            workers.await_fact("slow ended")
        finally:
            workers.end()
            root.execute(f"drop role {role}".encode())


def test_mistake_4_the_wrong_app(workers: Workers, database: str) -> None:
    """A worker that cannot run the schedule does not lead, and says why; `status` tells which election was meant."""
    workers.write(
        "other",
        "import os\nfrom celery import Celery\napp = Celery('other', broker=os.environ['PROJ_BROKER'])\n"
        "app.conf.beat_schedule = {'report': {'task': 'proj.report', 'schedule': 1.0}}\n",
    )
    del workers.environment["PGLEADER_ELECTION"]
    workers.start("a", "--pgleader-election", "proj")
    worker = workers.start("b", app="other")
    worker.await_line("pgleader: this node does not lead: its app has no task proj.report of report")
    shown = Operator(workers, database, "other").ask("status", code=69)
    assert shown["leader"] is None
    missed = Operator(workers, database, "other").say("status", code=69, PGLEADER_ELECTION="prod")
    assert "nodes are in other, proj, and none is in prod: is this the right app?" in " ".join(missed.split())


def test_mistake_5_beat_left_in(workers: Workers) -> None:
    """`-B` beside `--pgleader` is refused."""
    assert refusal(workers, "--pgleader", "-B") == (
        "Error: --pgleader takes the place of -B (--beat): the leader runs the schedule; drop -B"
    )


def test_mistake_6_a_beat_left_running(workers: Workers, tmp_path: Path) -> None:
    """A plain `celery beat` beside the leader says so itself, and so does a worker that gets what it has sent."""
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
    assert worker.log.read_text().count("takes no part in election") <= 1


def test_mistake_6_a_worker_with_beat_left_running(workers: Workers, tmp_path: Path) -> None:
    """So does a worker that was left as it was, with `-B`."""
    workers.start("a")
    workers.await_leader()
    other = workers.start("b", "-B", "-s", str(tmp_path / "beat-schedule"), pgleader=False)
    other.await_line("pgleader: a@test leads election proj and runs this app's schedule")


def test_mistake_6_the_leader_alone_is_not_taken_for_a_beat(workers: Workers) -> None:
    """Nor are `run-now` and a beat that takes part."""
    worker = workers.start("a")
    workers.await_leader()
    command = [sys.executable, "-m", "celery", "-A", APP, "beat", "-S", "pgleader", "--pidfile", ""]
    environment = {**workers.environment, "PROJ_SCHEDULE": workers.environment["PROJ_SCHEDULE"] + "-beat"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as taking_part:
        try:
            workers.await_successors(1)
            workers.await_fact("tick", more_than=3)
        finally:
            taking_part.terminate()
            _, said = taking_part.communicate(timeout=PATIENCE)
    assert "leads election" not in said
    assert "takes no part" not in worker.log.read_text()


def test_mistake_6_doctor_finds_a_beat_that_can_be_asked(workers: Workers, database: str, tmp_path: Path) -> None:
    """Those of Celery 5.7 and later can, if `beat_enable_remote_control` is on."""
    if not BEATS_ARE_SEEN:
        return
    workers.write("asked", f"from {APP} import app\napp.conf.beat_enable_remote_control = True\n")
    command = [sys.executable, "-m", "celery", "-A", "asked", "beat", "--pidfile", ""]
    workers.workers.append(
        Worker("beat", [*command, "-s", str(tmp_path / "beat-schedule")], workers.environment, tmp_path / "beat.log")
    )
    await_finding(Operator(workers, database), "a celery beat runs beside the workers: celerybeat@")


def test_mistake_7_two_elections(workers: Workers, database: str) -> None:
    """A worker that gets what another election's leader has sent says so; so does `doctor`."""
    first = workers.start("a")
    second = workers.start("b", "--pgleader-election", "prod")

    def said() -> bool:
        words = "Give all workers of the app the same pgleader_election"
        return any(words in worker.log.read_text() for worker in (first, second))

    eventually(said, timeout=PATIENCE)
    await_finding(Operator(workers, database), "b@test takes part in election prod, and this app's is proj")


def test_mistake_7_two_databases(workers: Workers, database: str, own_postgres: EmbeddedPostgres) -> None:
    """What is one election by its name is two if one worker has another URL: `doctor` finds it."""
    workers.start("a")
    workers.await_leader()
    workers.start("b", "--pgleader-database-url", own_postgres.url())
    workers.await_fact("gained", node="b@test")
    await_finding(Operator(workers, database), "b@test leads an election of this name in another database")


def test_mistake_8_package_missing(workers: Workers, database: str) -> None:
    """`doctor` names the worker that does not have it."""
    workers.write(
        "bare", "import os\nfrom celery import Celery\napp = Celery('proj', broker=os.environ['PROJ_BROKER'])\n"
    )
    workers.start("a")
    planted(workers, "b", "import sys; sys.modules['celery_pgleader'] = None", app="bare")
    await_finding(Operator(workers, database), "b@test does not know celery-pgleader")


def test_mistake_8_package_missing_where_its_option_is_given(workers: Workers) -> None:
    """Celery says that there is no such option."""
    workers.write("bare", "from celery import Celery\napp = Celery('proj')\n")
    code = "import sys; sys.modules['celery_pgleader'] = None; import celery.__main__ as c; c.main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "-A", "bare", "worker", "--pgleader"],
        env={**os.environ, **workers.environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 2
    assert "No such option" in result.stderr


def test_mistake_9_postgres_too_old(workers: Workers) -> None:
    """The worker runs tasks, and says which version it takes."""
    code = "import celery_pgleader.election.lock_session as l; l.OLDEST_VERSION = 990000"
    worker = planted(workers, "a", code, "--pgleader")
    worker.await_line("PostgreSQL 14 or later is needed, this server is ")
    workers.send("slow", 0)
    workers.await_fact("slow ended")
