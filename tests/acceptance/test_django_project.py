"""A Django project that is set up as docs/django.md says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from celery_pgleader.postgres import open_session
from celery_pgleader.store import Schema
from celery_pgleader.store.schema import LOCK_CLASSID, migrations
from example_app.servers import EmbeddedPostgres
from tests.fixtures.servers import copied
from tests.support import django_project
from tests.support.dashboard import serving
from tests.support.django_project import PAGE, DjangoProject
from tests.support.eventually import eventually

STEPS = [step.name.removesuffix(".sql") for step in migrations()]

SHOW_PAGES = """
import logging
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment

logging.disable()
setup_test_environment()
root = Client()
root.force_login(User.objects.create_superuser("root"))
print(root.get("/admin/").status_code)
for model in ("election", "term", "entry", "slot", "notification", "deadletter"):
    folder = f"/admin/pgleader/{model}/"
    page = root.get(folder, {"q": "o", "o": "1.2"} if model != "election" else {})
    rows = root.get(folder).context["cl"].result_count
    print(model, page.status_code, rows, root.get(folder + "add/").status_code)
page = "/admin/pgleader/notification/1/"
print(root.get(page + "change/").status_code, "jam" in root.get(page + "change/").content.decode())
print(root.post(page + "change/", {"channel": "x"}).status_code, root.post(page + "delete/").status_code)
print(Client().get(page + "change/").status_code)
"""

ADD_ENTRY = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
PeriodicTask.objects.create(name="each second", task="celery.accumulate", interval=every, args="[1]")
"""

SHOW_STEPS = """
import io, json
from django.core.management import call_command
texts = [io.StringIO() for _ in {0}]
for name, text in zip({0}, texts):
    call_command("sqlmigrate", "pgleader", name, stdout=text)
call_command("makemigrations", check_changes=True, dry_run=True)
call_command("check", fail_level="WARNING")
print(json.dumps([text.getvalue() for text in texts]))
"""

NOT_THERE = """
class Router:
    def allow_migrate(self, db, app_label, **hints):
        return False if app_label == "pgleader" else None
"""


@pytest.fixture
def project(tmp_path: Path, empty_database: str) -> DjangoProject:
    """Give a project with one database, in which there is nothing yet."""
    return DjangoProject(tmp_path, empty_database, "memory://", PAGE["settings"])


def test_dashboard_finds_the_ledger_as_the_workers_do(project: DjangoProject) -> None:
    """By the project's settings."""
    project.shell(PAGE["migrate"])
    with serving("shop", project.environment, project.folder) as dashboard:
        assert "nobody has led yet" in dashboard.get("/")
        assert 'pgleader_up{election="shop"} 1.0' in dashboard.get("/metrics")


@pytest.fixture
def second(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Give the name of another database."""
    with copied(postgres, "template1") as url:
        yield str(conninfo_to_dict(url)["dbname"])


def versions(project: DjangoProject, database: str | None = None) -> list[int]:
    """Return the steps that the schema has."""
    return [version for (version,) in project.rows("select version from pgleader.migrations order by 1", database)]


def test_every_example_of_the_page_is_run() -> None:
    """By a test below."""
    text = Path(__file__).read_text() + Path(django_project.__file__).read_text()
    assert [name for name in PAGE if f'PAGE["{name}"]' not in text] == []


def test_project_with_django_celery_beat_needs_no_url(tmp_path: Path, empty_database: str, valkey: str) -> None:
    """Its schedule is published, and the admin shows what became of it and changes nothing."""
    project = DjangoProject(tmp_path, empty_database, valkey, PAGE["settings"])
    project.shell(PAGE["migrate"])
    project.python(ADD_ENTRY)
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [*PAGE["worker"].split(), "-P", "solo"], cwd=tmp_path, env=project.environment, stdout=output, stderr=output
        )
    try:
        published = "select count(*) from pgleader.slots where entry = 'each second' and state = 'published'"
        eventually(lambda: project.rows(published)[0][0] > 1)
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
    finally:
        worker.terminate()
        worker.wait()
    with psycopg.connect(empty_database) as db:
        db.execute("select pgleader.notify('orders', '{\"item\": \"jam\"}', 'jam')")
    index, election, term, entry, slot, notification, dead_letter, *rest = project.python(SHOW_PAGES).splitlines()
    assert index == "200"
    assert (election, term, notification, dead_letter) == (
        "election 200 1 403",
        "term 200 1 403",
        "notification 200 1 403",
        "deadletter 200 0 403",
    )
    assert entry.split()[1] == slot.split()[1] == "200"
    assert int(slot.split()[2]) > 1
    assert rest == ["200 True", "403 403", "302"]


def test_ledger_can_be_in_another_database(project: DjangoProject, second: str) -> None:
    """The schema, the commands and the models go by the alias, and the other database has none of it."""
    project.add_settings(PAGE["second"].replace('"NAME": "ledger"', f'"NAME": "{second}"'))
    project.shell(PAGE["second-migrate"])
    assert versions(project, second) == [step.version for step in migrations()]
    assert project.rows("select to_regnamespace('pgleader')") == [(None,)]
    assert project.shell("celery -A shop pgleader migrate") == "the schema pgleader is up to date\n"
    project.shell("celery -A shop pgleader notify orders '{\"id\": 1}'")
    models = "from celery_pgleader.django.models import Notification\nprint(Notification.objects.get().payload)"
    assert project.python(models) == "{'id': 1}\n"


def test_each_step_of_the_schema_is_a_migration_of_django(project: DjangoProject) -> None:
    """It is shown as such, and Django does not offer to make others."""
    shown = project.shell("python manage.py showmigrations pgleader").split()
    assert [word for word in shown if word[0].isdigit()] == STEPS
    texts = json.loads(project.python(SHOW_STEPS.format(STEPS)).splitlines()[-1])
    for step, text in zip(migrations(), texts, strict=True):
        assert step.text.strip() in text
        assert f"insert into pgleader.migrations (version) values ({step.version});" in text


def test_schema_is_made_once_whether_django_or_a_worker_makes_it(project: DjangoProject) -> None:
    """Also if both do it at the same moment."""
    with open_session(project.database, "test", unresponsive_after=30) as other:
        other.execute("select pg_advisory_lock(%(classid)s::int, 0)", {"classid": LOCK_CLASSID})
        command = [sys.executable, "manage.py", "migrate", "pgleader"]
        migrate = subprocess.Popen(command, cwd=project.folder, env=project.environment, stdout=subprocess.DEVNULL)
        waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        eventually(lambda: project.rows(waits) == [(1,)])
        Schema(other).migrate()
        other.execute("select pg_advisory_unlock_all()")
        assert migrate.wait(60) == 0
    assert versions(project) == [step.version for step in migrations()]
    assert "[ ]" not in project.shell("python manage.py showmigrations pgleader")
    assert "up to date" in project.shell("celery -A shop pgleader migrate")


def test_schema_is_not_made_where_a_router_forbids_it(project: DjangoProject) -> None:
    """Nor in a database that is not Postgres."""
    (project.folder / "routers.py").write_text(NOT_THERE)
    project.add_settings('DATABASE_ROUTERS = ["routers.Router"]')
    project.shell("python manage.py migrate -v 0 pgleader")
    assert project.rows("select to_regnamespace('pgleader')") == [(None,)]
    project.add_settings('DATABASES["default"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": "db"}')
    project.add_settings("DATABASE_ROUTERS = []")
    project.shell("python manage.py migrate -v 0")


def test_test_database_of_django_has_the_schema(project: DjangoProject) -> None:
    """So that a test sees what was sent."""
    (project.folder / "tests.py").write_text(PAGE["test"])
    assert "Ran 1 test" in project.shell("python manage.py test 2>&1")
