"""The examples of docs/notifications.md, each of them run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.eventually import eventually
from tests.support.pages import BLOCK
from tests.support.project import Project

PAGE = Path(__file__).parents[2] / "docs" / "notifications.md"
URL = "postgresql://shop@db/shop"
TABLE = """
create table orders (
    id bigint generated always as identity primary key,
    item text not null,
    total numeric not null default 0,
    confirmed_at timestamptz
)
"""
SENT = "select channel, key, payload from pgleader.notifications order by id"

# What the page takes for granted: an app, and its tasks.
APP = """
import json, os
import psycopg
from celery import Celery

app = Celery("proj", broker=os.environ.get("PROJ_BROKER", "memory://"), set_as_current=True)
app.conf.task_ignore_result = True


def tell(name, value):
    with psycopg.connect(os.environ["PGLEADER_DATABASE_URL"]) as db:
        db.execute("insert into told (task, value) values (%s, %s)", [name, json.dumps(value)])


def print(*words):
    tell("print", words)


@app.task(name="proj.on_order")
def order(value):
    tell("on_order", value)


@app.task(name="proj.on_stock")
def stock(value):
    tell("on_stock", value)
"""

DJANGO = """
import os
import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

parts = conninfo_to_dict(os.environ["PGLEADER_DATABASE_URL"])
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"], "USER": parts["user"], "HOST": parts["host"], "PORT": parts["port"],
        }
    },
    INSTALLED_APPS=[],
)
django.setup()
from django.db import models


class Order(models.Model):
    item = models.TextField()

    class Meta:
        app_label = "shop"
        db_table = "orders"
        managed = False
"""

DJANGO_CALLS = """
assert place_order("tea").id
try:
    with transaction.atomic():
        place_order("coffee")
        raise RuntimeError
except RuntimeError:
    pass
"""

SQLALCHEMY = """
import os
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


parts = conninfo_to_dict(os.environ["PGLEADER_DATABASE_URL"])
url = URL.create(
    "postgresql+psycopg", parts["user"], host=parts["host"], port=int(parts["port"]), database=parts["dbname"]
)
"""

SQLALCHEMY_CALLS = """
engine = create_engine(url)
assert place_order(engine, "tea")
try:
    place_order(engine, None)
except Exception:
    pass
else:
    raise AssertionError
engine.dispose()
"""

ASYNC_CALLS = """
import asyncio
from sqlalchemy.ext.asyncio import create_async_engine


async def main():
    engine = create_async_engine(url)
    await place_order(engine, "tea")
    await engine.dispose()


asyncio.run(main())
"""


def blocks() -> dict[str, tuple[str, str]]:
    """Return language and code of each named block of the page."""
    return {found["name"]: (found["language"], found["code"]) for found in BLOCK.finditer(PAGE.read_text())}


class PageProject(Project):
    """A project that does as the page says, with an app and the table of orders."""

    def __init__(self, folder: Path, database: str) -> None:
        """Prepare both."""
        super().__init__(folder, database, PGLEADER_DATABASE_URL=database)
        self.write(APP)
        self.execute(TABLE, "create table told (task text, value json)")

    def write(self, *code: str) -> None:
        """Write the app."""
        (self.folder / "proj.py").write_text("\n".join(code).replace(URL, self.database))

    def python(self, *code: str) -> None:
        """Run Python in a process of its own."""
        self.run(sys.executable, "-W", "error", "-c", "\n".join(code).replace(URL, self.database))


@pytest.fixture
def project(tmp_path: Path, database: str) -> PageProject:
    """Give a project whose database has the schema."""
    return PageProject(tmp_path, database)


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """Give a name for a role, and drop the role afterwards."""
    name = "role_of_" + str(conninfo_to_dict(database)["dbname"])
    yield name
    with psycopg.connect(database, autocommit=True) as db:
        db.execute(f"drop owned by {name} cascade; drop role {name}".encode())


def code_of(name: str) -> str:
    """Return the code of a block."""
    return blocks()[name][1]


def test_every_example_of_the_page_is_run() -> None:
    """Each block of code has a name, and each name a test."""
    names = [found["name"] for found in BLOCK.finditer(PAGE.read_text()) if found["language"] != "json"]
    assert names
    assert None not in names
    assert len(names) == len(set(names))
    tested = set(re.findall(r'code_of\("([\w-]+)"\)', Path(__file__).read_text()))
    assert set(names) == tested


def test_worker_with_the_routes_runs_what_is_sent_in_each_way(project: PageProject, valkey: str) -> None:
    """The routes and the ways are the page's."""
    project.write(
        APP, code_of("routes"), code_of("beside"), code_of("headers"), code_of("task").replace("on_order", "confirm")
    )
    project.environment["PROJ_BROKER"] = valkey
    command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "--pgleader", "-P", "solo", "-l", "INFO"]
    log = project.folder / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [*command, "-s", str(project.folder / "schedule")],
            cwd=project.folder,
            env=project.environment,
            stdout=output,
            stderr=output,
        )
    try:
        project.execute(code_of("sql"))
        project.python("from proj import app", code_of("python"), code_of("python-alone"))
        project.shell(code_of("shell"))
        project.execute(
            "select pgleader.notify('parcels', '{\"id\": 7}')", "select pgleader.notify('stock', '{\"id\": 8}')"
        )
        orders = [{"id": 42}, {"item": "tea"}, {"item": "tea"}, {"id": 42}]

        def told(task: str) -> list[Any]:
            return [value for (value,) in project.rows(f"select value from told where task = '{task}'")]

        eventually(lambda: told("on_order") == orders)
        eventually(lambda: len(told("print")) == 2 and told("on_stock") == [{"id": 8}])
        logged = next(words for words in told("print") if words[0] == "parcels")
        assert logged[1] == 1
        assert logged[2].keys() == {"id", "channel", "key", "deduplicate"}
        assert ["parcel", 7] in told("print")
        assert project.rows(SENT) == []

        def heard() -> bool:
            """Send a raw one, which reaches who listens, and tell whether one was heard."""
            project.execute(code_of("raw"))
            return len(told("on_order")) > len(orders)

        eventually(heard)
        before = len(told("on_order"))
        project.shell(code_of("raw-shell"))
        eventually(lambda: len(told("on_order")) > before)

        project.execute("insert into orders (item) values ('jam')")
        project.python("from proj import confirm", "confirm.delay({'id': 1})")
        confirmed = "select count(*) from orders where confirmed_at is not null"
        eventually(lambda: project.rows(confirmed) == [(1,)])
    except AssertionError as error:
        raise AssertionError(log.read_text()) from error
    finally:
        worker.kill()
        worker.wait()


def test_role_with_the_rights_can_send_and_not_read(project: PageProject, role: str) -> None:
    """Without either of the two rights it cannot send."""
    project.execute(f"create role {role} login")
    send = code_of("sql")
    for grant in code_of("rights").replace("web", role).splitlines():
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            project.execute(send, role=role)
        project.execute(grant)
    project.execute(send, role=role)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        project.execute(SENT, role=role)
    assert project.rows(SENT) == [("orders", "tea", {"id": 42})]


def test_dead_letters_are_listed_sent_again_and_thrown_away(project: PageProject) -> None:
    """By the page's commands."""
    dead = "insert into pgleader.dead_letters (id, uid, channel, payload, sent_at, attempts, error)"
    project.execute(
        f"{dead} select n, gen_random_uuid(), case when n < 20 then 'orders' else 'stock' end, '{{}}', now(), 5, 'no'"
        " from generate_series(17, 21) n"
    )
    listed, ids, of_channel, dropped = project.shell(code_of("dead-letters").replace("\n", "\necho --\n", 3)).split(
        "--\n"
    )
    assert "17 on orders" in listed
    assert "21 on stock" in listed
    assert ids.startswith("2 ")
    assert of_channel.startswith("1 ")
    assert dropped.startswith("2 ")
    assert len(project.rows(SENT)) == 3
    assert project.rows("select 1 from pgleader.dead_letters") == []


def test_watch_sends_what_the_page_shows_until_it_ends(project: PageProject) -> None:
    """For what the page says, and for nothing else."""
    project.shell(code_of("watch"))
    project.execute(
        "insert into orders (id, item, total) overriding system value values (42, 'tea', 90)",
        "update orders set total = 120",
        "update orders set confirmed_at = now()",
        "delete from orders",
    )
    shown = json.loads(next(found["code"] for found in BLOCK.finditer(PAGE.read_text()) if found["language"] == "json"))
    assert project.rows(SENT) == [("orders", 'public.orders {"id": 42}', shown)]

    printed = project.shell(code_of("unwatch"))
    assert "public.orders: insert, per row, to channel orders" in printed
    project.execute("insert into orders (item, total) values ('tea', 200)")
    assert len(project.rows(SENT)) == 1


def test_watch_of_statements_sends_one_notification_for_each(project: PageProject) -> None:
    """If it changes rows."""
    project.shell("celery -A proj pgleader watch orders --channel orders --per statement --columns item")
    project.execute(
        "insert into orders (item) values ('tea'), ('jam')",
        "update orders set item = 'coffee' where item = 'jam'",
        "update orders set item = 'none' where false",
        "delete from orders where item = 'coffee'",
    )
    sent = project.rows(SENT)
    assert [key for _, key, _ in sent] == ["public.orders"] * 3
    assert [(payload["operation"], len(payload["rows"])) for *_, payload in sent] == [
        ("insert", 2),
        ("update", 1),
        ("delete", 1),
    ]
    assert sent[1][2]["rows"] == [{"key": {"id": 2}, "new": {"item": "coffee"}, "old": {"item": "jam"}}]


def test_owner_with_the_rights_can_watch_a_table(project: PageProject, role: str) -> None:
    """A role that writes to the table needs none of them."""
    project.execute(f"create role {role} login", f"alter table orders owner to {role}")
    project.execute(code_of("watch-rights").replace("shop_owner", role))
    project.shell(code_of("watch"), PGLEADER_DATABASE_URL=make_conninfo(project.database, user=role))

    writer = f"{role}_writer"
    project.execute(f"create role {writer} login", f"grant insert on orders to {writer}")
    try:
        project.execute("insert into orders (item, total) values ('tea', 200)", role=writer)
    finally:
        project.execute(f"drop owned by {writer}; drop role {writer}")
    assert [payload["new"] for *_, payload in project.rows(SENT)] == [{"item": "tea", "total": 200}]


@pytest.mark.parametrize("how", ["session", "role", "url"])
def test_nobody_is_woken_where_notify_is_off(project: PageProject, role: str, how: str) -> None:
    """Whichever way that was asked for."""
    project.execute(f"create role {role} login superuser")
    in_session, for_role = code_of("wake").replace("importer", role).splitlines()
    url = make_conninfo(project.database, user=role)
    if how == "role":
        project.execute(for_role)
    if how == "url":
        found = re.search(r"`\?(options=[^`]+)`", PAGE.read_text())
        assert found
        parts = conninfo_to_dict(project.database)
        url = f"postgresql://{role}@{parts['host']}:{parts['port']}/{parts['dbname']}?{found[1]}"
    with psycopg.connect(project.database, autocommit=True) as leader, psycopg.connect(url, autocommit=True) as sender:
        leader.execute("listen pgleader")
        # It sleeps.
        leader.execute("select pg_advisory_lock_shared(1885826128, 0)")
        if how == "session":
            sender.execute(in_session.encode())
        sender.execute("select pgleader.notify('orders', '1')")
        # This one is heard, and the other would have been before it.
        leader.execute("select pg_notify('pgleader', 'end')")
        assert [heard.payload for heard in leader.notifies(timeout=10, stop_after=1)] == ["end"]
    assert len(project.rows(SENT)) == 1


def test_trigger_sends_with_the_insert(project: PageProject) -> None:
    """And only if that is committed."""
    project.execute(code_of("trigger"))
    project.execute(
        "insert into orders (item) values ('tea')", "begin; insert into orders (item) values ('x'); rollback"
    )
    assert project.rows(SENT) == [("orders", "tea", {"id": 1})]


def test_django_sends_with_the_transaction(project: PageProject) -> None:
    """And only if that is committed."""
    project.python(DJANGO, code_of("django"), DJANGO_CALLS)
    assert project.rows(SENT) == [("orders", "tea", {"id": 1})]
    assert project.rows("select item from orders") == [("tea",)]


def test_sqlalchemy_sends_with_the_session(project: PageProject) -> None:
    """And only if that is committed."""
    project.python(SQLALCHEMY, code_of("sqlalchemy"), SQLALCHEMY_CALLS)
    assert project.rows(SENT) == [("orders", "tea", {"id": 1})]
    assert project.rows("select item from orders") == [("tea",)]


def test_async_session_of_sqlalchemy_sends_when_it_commits(project: PageProject) -> None:
    """As a session that is not."""
    project.python(SQLALCHEMY, code_of("sqlalchemy-async"), ASYNC_CALLS)
    assert project.rows(SENT) == [("orders", "tea", {"id": 1})]
