"""The guides in docs/moving, each of them followed: what ran before goes on, and is sent by the leader afterwards."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.django_project import PAGE as DJANGO
from tests.support.django_project import DjangoProject
from tests.support.eventually import eventually
from tests.support.pages import named_blocks
from tests.support.site import GUIDES, PATIENCE, Site

TASK = """
from celery import shared_task


@shared_task(bind=True, name="shop.report")
def report(self):
    print(f"report {self.request.id}")
"""
ADD_ENTRY = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
PeriodicTask.objects.create(name="report", task="shop.report", interval=every)
"""


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, database: str, valkey: str) -> Iterator[Site]:
    """Give the site that is moved, with the guide that a test is named after."""
    guide = request.node.name.removeprefix("test_").replace("_", "-") + ".md"
    made = Site(tmp_path, database, valkey, guide)
    yield made
    made.end()


@pytest.mark.parametrize("guide", sorted(GUIDES.glob("*.md")), ids=lambda guide: guide.stem)
def test_every_step_of_every_guide_is_run(guide: Path) -> None:
    """By a test of its name, which runs each of its blocks that has a name; that for Node teams is with its kind."""
    tests = Path(__file__) if "platformatic" not in guide.stem else Path(__file__).with_name("test_interop_node.py")
    name = "test_" + guide.stem.replace("-", "_")
    body = tests.read_text().partition(f"def {name}(")[2].partition("\ndef ")[0]
    assert "start_workers()" in body
    blocks = named_blocks(guide).keys() - {"workers"}
    assert [block for block in blocks if not re.search(rf"""guide\[["']{block}["']\]""", body)] == []


def test_from_b(site: Site) -> None:
    """From a worker with -B to three without, and a leader that is killed."""
    site.write(site.guide["app"])
    old = site.start_worker("celery -A proj worker -B -l info")
    site.await_runs(2)
    site.write(site.guide["setting"])
    said = site.shell(site.guide["doctor"], 0, 1)
    findings = [line for line in said.splitlines() if re.match(r"[a-z ]+: ", line)]
    assert {line.partition(":")[0] for line in findings} <= {"broker", "prefetch"}, said
    old.send(signal.SIGTERM)
    old.await_end()
    before = site.sent()
    workers = site.start_workers()
    leader = site.await_leader()
    site.await_runs(2)
    shown = site.shell(site.guide["look"])
    assert f"leader     {leader} " in shown
    assert "report" in shown
    next(worker for worker in workers if worker.has_logged("gained leadership")).send(signal.SIGKILL)
    site.await_leader(other_than=leader)
    site.await_runs(2)
    site.check_runs(before)


@pytest.mark.long
def test_from_celery_beat(site: Site) -> None:
    """While the beat goes on the leader is paused; then the beat ends, and the leader begins."""
    shared = named_blocks(GUIDES / "from-b.md")
    site.write(shared["app"])
    old = site.start_worker("celery -A proj worker -l info -n old@%h")
    beat = site.start("celery -A proj beat")
    site.await_runs(2)
    site.write(shared["setting"])
    site.shell(shared["doctor"], 0, 1)
    site.shell(site.guide["pause"])
    site.start_workers()
    old.send(signal.SIGTERM)
    site.await_leader()
    site.await_runs(2)
    assert site.published() == set()
    beat.send(signal.SIGTERM)
    beat.await_end()
    before = site.sent()
    site.shell(site.guide["resume"])
    site.await_runs(2)
    assert f"leader     {site.leader()} " in site.shell(site.guide["look"])
    eventually(lambda: set(site.runs()) & site.published(), timeout=PATIENCE)
    site.check_runs(before)


@pytest.mark.long
def test_from_redbeat(site: Site) -> None:
    """RedBeat goes on to hold the schedule, and does not send it."""
    shared = named_blocks(GUIDES / "from-b.md")
    site.write(shared["app"], site.guide["setting"])
    old = site.start_worker("celery -A proj worker -l info -n old@%h")
    beat = site.start("celery -A proj beat -S redbeat.RedBeatScheduler")
    site.await_runs(2)
    site.write(shared["setting"])
    beat.send(signal.SIGTERM)
    beat.await_end()
    before = site.sent()
    site.start_workers()
    old.send(signal.SIGTERM)
    site.await_leader()
    site.await_runs(3)
    shown = site.shell(site.guide["look"])
    assert f"leader     {site.leader()} " in shown
    assert "report" in shown
    site.check_runs(before)


@pytest.mark.long
def test_from_django_celery_beat(site: Site, valkey: str) -> None:
    """The schedule stays in Django's database, and the leader goes on where the beat has ended."""
    project = DjangoProject(site.folder, site.database, valkey, 'INSTALLED_APPS += ["django_celery_beat"]')
    (site.folder / "shop" / "tasks.py").write_text(TASK)
    project.add_settings('INSTALLED_APPS += ["shop"]')
    project.shell(DJANGO["migrate"])
    project.python(ADD_ENTRY)
    old = site.start_worker("celery -A shop worker -l info -n old@%h")
    beat = site.start("celery -A shop beat -S django_celery_beat.schedulers:DatabaseScheduler")
    site.await_runs(2)
    project.add_settings(site.guide["settings"])
    site.shell(site.guide["migrate"], 0, 1)
    beat.send(signal.SIGTERM)
    beat.await_end()
    before = site.sent()
    site.start_workers()
    old.send(signal.SIGTERM)
    site.await_leader("shop")
    site.await_runs(3)
    shown = site.shell(site.guide["look"])
    assert f"leader     {site.leader('shop')} " in shown
    assert "report" in shown
    site.check_runs(before)
