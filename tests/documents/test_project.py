"""What the project's own files promise each other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.long import ENVIRONMENTS, OF_MARKED, OF_PG, OF_PLANTED, share
from tests.support.brokers import BROKERS

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
    """To the letter; the demo is one of the environments that take turns there."""
    tests = "python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox run"
    commands = re.findall(r"^```sh\n(python3 .*)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == [f"{tests} -e demo", tests]
    steps = (ROOT / ".ci" / "run").read_text().splitlines()
    assert f"{tests} || exit" in steps
    assert ".venv/bin/tox run -e long -- --share" in steps
    assert "demo" in ENVIRONMENTS


def test_a_few_shares_of_the_long_tests_have_all_of_them() -> None:
    """Each broker, environment and part, whichever seeds come in a row."""
    seeds = range(1_000, 1_000 + 2 * len(ENVIRONMENTS) * OF_PG * OF_MARKED)
    names = {part.name for seed in seeds for part in share(seed)}
    wanted = [f"tox run -e {name}" for name in ENVIRONMENTS] + [f"chaos: mixed on {broker} " for broker in BROKERS]
    wanted += [f"planted bugs, {part}/{OF_PLANTED}" for part in range(1, OF_PLANTED + 1)]
    wanted += [f"tests marked long --share {part}/{OF_MARKED}" for part in range(1, OF_MARKED + 1)]
    assert [name for name in wanted if not any(found.startswith(name) for found in names)] == []
