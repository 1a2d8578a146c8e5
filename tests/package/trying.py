"""Tests of the package as it was installed, with nothing of the repository beside them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import celery_pgleader
from celery_pgleader.testing import FakeNode

APP = "from celery import Celery\napp = Celery('proj', broker='memory://')\n"


def celery(folder: Path, *arguments: str) -> str:
    """Run a command of an app; return what it printed."""
    (folder / "proj.py").write_text(APP)
    command = [sys.executable, "-m", "celery", "-A", "proj", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_it_is_not_the_repository() -> None:
    """But what is installed."""
    assert "site-packages" in (celery_pgleader.__file__ or "")
    assert celery_pgleader.__version__ == version("celery-pgleader")


def test_every_name_is_there() -> None:
    """With all that it imports."""
    for name in celery_pgleader.__all__:
        assert getattr(celery_pgleader, name)


def test_every_entry_point_is_there() -> None:
    """What Celery and pytest look for."""
    for group in ("celery.commands", "celery.beat_schedulers", "pytest11"):
        (point,) = (point for point in entry_points(group=group) if point.name == "pgleader")
        assert point.load() is not None


def test_the_command_line(tmp_path: Path) -> None:
    """The worker has its option, and the schema is printed without any database."""
    assert "--pgleader" in celery(tmp_path, "worker", "--help")
    steps = [file.name for file in (files("celery_pgleader") / "store" / "migrations").iterdir() if ".sql" in file.name]
    printed = celery(tmp_path, "pgleader", "migrate", "--sql")
    assert steps
    assert all(f"-- {step}" in printed for step in steps)


def test_the_dashboard(tmp_path: Path) -> None:
    """Its files are there, and without its extra the command says what to install."""
    folder = files("celery_pgleader") / "dashboard"
    for name in (
        "static/page.js",
        "static/page.css",
        "static/uPlot.min.js",
        "static/uPlot.LICENSE",
        "templates/page.html",
    ):
        assert folder.joinpath(name).is_file()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        celery(tmp_path, "pgleader", "dashboard")
    assert "pip install 'celery-pgleader[dashboard]'" in failed.value.stderr


@pytest.fixture
def pgleader_app() -> Any:
    """Give an app with a leader-only task."""
    app = Celery("proj", broker="memory://", set_as_current=False)

    @app.task(name="proj.rebuild", leader_only=True)
    def rebuild() -> int | None:
        leadership = celery_pgleader.current_leadership()
        return leadership.term if leadership else None

    return app


def test_the_fixture_is_there(pgleader: FakeNode, pgleader_app: Any) -> None:
    """By the plugin, which nobody had to ask for."""
    term = pgleader.gain()
    assert pgleader_app.tasks["proj.rebuild"].apply().get() == term.number
