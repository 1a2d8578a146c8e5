"""What the project's own files promise each other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_schema_step_has_a_django_migration() -> None:
    """A step without one is not run by `manage.py migrate`: copy one that is there, under the step's name."""
    package = ROOT / "celery_pgleader"
    steps = {path.stem for path in (package / "store" / "migrations").glob("*.sql")}
    assert steps == {path.stem for path in (package / "django" / "migrations").glob("[0-9]*.py")}


def test_unit_files_mirror_modules() -> None:
    """But for those about programs that are no part of the package."""
    unit = ROOT / "tests" / "unit"
    files = {
        path.relative_to(unit).with_name(path.name.removeprefix("test_"))
        for path in unit.rglob("test_*.py")
        if "from celery_pgleader" in path.read_text()
    }
    assert files
    assert [file for file in files if not (ROOT / "celery_pgleader" / file).is_file()] == []


def test_ci_runs_the_commands_of_the_readme() -> None:
    """To the letter; the demo for a time of its own, since the tests' environment is there by then."""
    tests = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox run"
    demo = ".venv/bin/tox run -e demo"
    commands = re.findall(r"^```sh\n(python3 .*)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == [f"{tests} -e demo", tests]
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert f"{tests} || exit" in steps
    assert f"{demo} -- --seconds 20" in steps
