"""The pytest plugin, in projects of users; and docs/testing.md, each example of which is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.pages import blocks_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
PLUGIN = ["-p", "celery_pgleader.pytest_plugin"]
ALONE = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder that is no part of this project, with our plugin and no other."""
    command = [sys.executable, "-m", "pytest", *PLUGIN, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=ALONE, capture_output=True, text=True, check=False)


def test_plugin_imports_nothing_until_it_is_used(tmp_path: Path) -> None:
    """Neither Celery nor psycopg, nor anything of ours but itself and the package."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n"
        "def test_it():\n"
        "    ours = {name for name in sys.modules if name.startswith('celery_pgleader')}\n"
        "    assert ours == {'celery_pgleader', 'celery_pgleader.pytest_plugin'}\n"
        "    assert not {'celery', 'kombu', 'psycopg'} & sys.modules.keys()\n"
    )
    result = run_pytest(tmp_path, "-W", "error")
    assert result.returncode == 0, result.stdout


def test_fixture_takes_the_current_app_or_another(tmp_path: Path) -> None:
    """The first that was imported, or what `pgleader_app` says; without any it is said."""
    (tmp_path / "proj.py").write_text("from celery import Celery\napp = Celery('proj')\n")
    (tmp_path / "test_current.py").write_text(
        "import proj\n\ndef test_it(pgleader):\n    assert pgleader.gain().election == 'proj'\n"
    )
    (tmp_path / "test_other.py").write_text(
        "import celery, pytest\n\n"
        "@pytest.fixture\ndef pgleader_app():\n    return celery.Celery('other', set_as_current=False)\n\n"
        "def test_it(pgleader):\n    assert pgleader.gain().election == 'other'\n"
    )
    result = run_pytest(tmp_path)
    assert result.returncode == 0, result.stdout

    (tmp_path / "test_none.py").write_text("def test_it(pgleader):\n    pass\n")
    result = run_pytest(tmp_path, "test_none.py")
    assert "no Celery app was imported: import yours, or override the fixture pgleader_app" in result.stdout


def test_example_apps_own_tests_pass() -> None:
    """In a process of their own: the receivers of its signals are none of the other tests' business."""
    result = run_pytest(ROOT, "-W", "error", "-c", os.devnull, "example_app")
    assert result.returncode == 0, result.stdout
    assert "5 passed" in result.stdout


def test_every_example_of_the_page_passes(tmp_path: Path) -> None:
    """The app, the set-up, and each of the tests."""
    blocks = blocks_of(PAGE)
    (tmp_path / "proj.py").write_text(blocks.pop("app"))
    (tmp_path / "conftest.py").write_text(blocks.pop("conftest"))
    for name, code in blocks.items():
        (tmp_path / f"test_{name}.py").write_text(code)
    result = run_pytest(tmp_path, "-W", "error")
    assert result.returncode == 0, result.stdout
    count = sum(len(re.findall(r"def test_", code)) for code in blocks.values())
    assert count > len(blocks) > 1
    assert f"{count} passed" in result.stdout
