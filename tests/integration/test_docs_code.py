"""The examples of all pages, run: Python and SQL that no other test runs; manifests and units as far as can be."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml
from compose_spec import PyCompose
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from celery_pgleader.postgres import SessionShared, open_session
from example_app.servers import EmbeddedPostgres
from tests.fixtures.servers import missing
from tests.support.pages import ROOT, Block, all_blocks, named_blocks
from tests.support.pgbouncer import PgBouncer, find_pgbouncer
from tests.support.shell import check_program

# A page's own databases; what stands for them is found by this.
DATABASES = ("postgresql://shop@db/shop", "postgresql://me@localhost/postgres", "postgresql://shop@db:5432/shop")
# What pages take for granted, and what ends loops that have no end.
GIVEN = """
import sys
from celery import Celery
from celery_pgleader import current_leadership
from celery_pgleader.config import Config

class Enough(BaseException):
    pass

def enough(*args, **options):
    raise Enough

def parts():
    return []

class Started:
    start = enough

Celery.Worker = lambda self, **options: Started()
app = Celery("proj", broker="memory://")
do_one_thing = rebuild = give_up = write_report = enough
url = DATABASE
"""
RUN = """
try:
    exec(compile({code!r}, {page!r}, "exec"))
except Enough:
    pass
app.finalize()
Config.from_app(app, {{"database_url": DATABASE}})
"""


@pytest.fixture
def shop(database: str) -> Iterator[str]:
    """Give a database with what the pages' statements are about."""
    role = "shop_of_" + str(conninfo_to_dict(database)["dbname"])
    with open_session(database, "test", unresponsive_after=5) as session:
        session.execute("create table orders (id bigint generated always as identity, item text not null)")
        session.execute("create table accounts (balance numeric, interest numeric)")
        session.execute("insert into pgleader.elections (election, term, node) values ('shop', 7, 'celery@a')")
        session.execute(sql.SQL("create role {}").format(sql.Identifier(role)).as_string())
        yield database
        session.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(role)).as_string())


def with_database(code: str, database: str) -> str:
    """Return code with a real database in place of a page's own."""
    for theirs in DATABASES:
        code = code.replace(theirs, make_url(database))
    return code


def make_url(database: str) -> str:
    """Return a database as a URL to which options can be added."""
    parts = conninfo_to_dict(database)
    return f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}"


def pages() -> dict[Path, list[str]]:
    """Return the Python of each page that no other test runs, in order."""
    unnamed = [block for block in all_blocks("python") if block.name is None]
    return {page: [block.code for block in found] for page, found in groupby(unnamed, lambda block: block.page)}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_on_pages_runs(page: Path, shop: str) -> None:
    """Runs, block after block; what it leaves in the app's configuration is one that can be."""
    code = [RUN.format(code=with_database(block, shop), page=page.name) for block in pages()[page]]
    script = "\n".join([f"DATABASE = {make_url(shop)!r}", GIVEN, *code])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("block", [block for block in all_blocks("sql") if block.name is None], ids=str)
def test_sql_on_pages_runs(block: Block, shop: str) -> None:
    """Is what Postgres takes, in a database of its own."""
    name = str(conninfo_to_dict(shop)["dbname"])
    code = block.code.replace("database shop", f"database {name}").replace("to shop;", f"to shop_of_{name};")
    # No session has this number.
    code = code.replace("pg_terminate_backend(6690)", "pg_terminate_backend(0)")
    with psycopg.connect(shop, autocommit=True) as connection:
        assert connection.execute(code.encode()).statusmessage


def test_named_blocks_belong_to_tests_of_their_pages() -> None:
    """Those tests see to it that each is. The guides for moving have theirs in tests/acceptance, as most have."""
    pages = {block.page for block in all_blocks("python", "sql", "js", "ini", "sh") if block.name is not None}
    elsewhere = {"django.md", "notifications.md", "testing.md"}
    here = {"fastapi.md", "poolers.md"}
    assert {page.name for page in pages if page.parent.name != "moving"} == elsewhere | here


def manifests() -> list[Any]:
    """Return the Kubernetes objects of all pages."""
    documents = [found for block in all_blocks("yaml") for found in yaml.safe_load_all(block.code)]
    return [document for document in documents if "apiVersion" in document]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_kubernetes_accepts_manifests(manifest: dict[str, Any]) -> None:
    """Kubernetes knows each field, and selectors find what they are for."""
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    spec = manifest["spec"]
    if manifest["kind"] == "Deployment":
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def containers() -> list[dict[str, Any]]:
    """Return the containers of all manifests."""
    return [
        container
        for manifest in manifests()
        for container in manifest["spec"].get("template", {}).get("spec", {}).get("containers", ())
    ]


def test_containers_run_commands_that_exist() -> None:
    """They, and the probes, are commands of Celery's that there are; what a probe asks can be answered."""
    found = [container["command"] for container in containers()]
    found += [probe["exec"]["command"] for container in containers() for probe in probes(container)]
    assert len(found) > len(containers())
    for command in found:
        check_program(command)


def probes(container: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the probes of a container."""
    return [found for name, found in container.items() if name.endswith("Probe")]


COMPOSE_FILES = {"docker-compose.yml": (ROOT / "docker-compose.yml").read_text()} | {
    str(block): block.code for block in all_blocks("yaml") if "services:" in block.code
}


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_accepts_files(name: str) -> None:
    """Docker compose knows each key, and what a service names is there."""
    file = yaml.safe_load(COMPOSE_FILES[name])
    PyCompose.from_json(json.dumps(file)).validate()
    services = file["services"]
    assert services
    for service in services.values():
        assert {*service.get("depends_on", ())} <= services.keys()
        named = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert {name for name in named if name[0] not in "./"} <= file.get("volumes", {}).keys()


def test_systemd_accepts_units(tmp_path: Path) -> None:
    """Systemd has nothing to say about the units."""
    program = shutil.which("systemd-analyze")
    if program is None:
        missing("systemd-analyze")
    units = [block.code for block in all_blocks("ini") if "[Service]" in block.code]
    assert units
    for number, text in enumerate(units):
        unit = tmp_path / f"unit-{number}@.service"
        # Without what this machine does not have: the user, the folder, the program.
        here = re.sub(r"^(User|WorkingDirectory)=.*\n", "", text, flags=re.MULTILINE)
        unit.write_text(here.replace("/srv/shop/.venv/bin/celery", sys.executable))
        command = [str(program), "verify", "--man=no", str(unit)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert [line for line in said.stderr.splitlines() if str(unit) in line] == [], said


class PagesPgBouncer(PgBouncer):
    """A PgBouncer that is configured as a page says."""

    text = ""

    def _configuration_text(self) -> str:
        return self.text


def test_pgbouncer_accepts_configuration(postgres: EmbeddedPostgres, database: str) -> None:
    """With the page's configuration one of its two doors will do, and is told from the other."""
    page = named_blocks(ROOT / "docs" / "how-to" / "poolers.md")
    program = find_pgbouncer()
    if program is None:
        missing("PgBouncer")
    assert program is not None
    name = str(conninfo_to_dict(database)["dbname"])
    bouncer = PagesPgBouncer(program, postgres.port, "transaction")
    bouncer.text = (
        page["pgbouncer"]
        .replace("port=5432", f"port={postgres.port} user=postgres")
        .replace("dbname=shop", f"dbname={name}")
        .replace("shop = host", f"shop = dbname={name} host")
        .replace("listen_port = 6432", f"listen_port = {bouncer.port}\nlisten_addr = 127.0.0.1\nauth_type = any")
        + "unix_socket_dir =\n"
    )
    (url,) = re.findall(r'"(postgresql://.+)"', page["url"])
    session = make_conninfo(url, port=bouncer.port)
    with bouncer:
        open_session(session, "test", unresponsive_after=5).close()
        with pytest.raises(SessionShared):
            open_session(make_conninfo(session, dbname="shop"), "test", unresponsive_after=5)


FASTAPI = named_blocks(ROOT / "docs" / "how-to" / "fastapi.md")
# What the page takes for granted, and a web server's part.
SEND = """
import asyncio
assert asyncio.run(place_order("tea")) == {"ordered": "tea"}
"""
LIFESPAN = """
done = asyncio.Event()

async def refresh_once():
    done.set()

async def serve():
    async with app.router.lifespan_context(app) as state:
        await asyncio.wait_for(done.wait(), 30)
        assert state["elector"].is_leader
    assert not state["elector"].is_leader

asyncio.run(serve())
"""


@pytest.mark.parametrize(("block", "use"), [("send", SEND), ("lifespan", LIFESPAN)], ids=["send", "lifespan"])
def test_fastapi_examples_run(block: str, use: str, shop: str) -> None:
    """The notification is there with the row, and the job is run by who leads."""
    url = make_url(shop).replace("postgresql", "postgresql+psycopg")
    code = FASTAPI[block].replace("postgresql+psycopg://shop@db/shop", url)
    script = with_database(code, shop) + use
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    with psycopg.connect(shop) as connection:
        rows = connection.execute("select item, payload from orders, pgleader.notifications").fetchall()
    assert rows == ([("tea", {"item": "tea"})] if use is SEND else [])
