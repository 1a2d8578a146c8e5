"""Runs Celery's own tests of its scheduler, those of the version that is installed, on schedulers bound to a term."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.celery_suite.plugin import Binding

TESTS = "t/unit/app/test_beat.py"


def fetch(folder: Path) -> Path:
    """Return the folder with Celery's tests, which are in its source distribution only.

    Celery itself is left in there: what is tested is what is installed.
    """
    release = f"celery-{version('celery')}"
    file = folder / f"{release}.tar.gz"
    if not file.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "celery"]
        subprocess.run([*pip, "--dest", folder, f"celery=={version('celery')}"], check=True)
    with tarfile.open(file) as archive:
        wanted = (f"{release}/t/", f"{release}/pyproject.toml")
        archive.extractall(folder, [member for member in archive if member.name.startswith(wanted)], filter="data")
    return folder / release


def main(folder: str, *options: str) -> int:
    """Run them; return what pytest returns."""
    release = fetch(Path(folder).resolve())
    settings = ["--rootdir", str(release), "-c", str(release / "pyproject.toml"), "-p", "no:cacheprovider", "-rfEsx"]
    return pytest.main([*settings, *options, str(release / TESTS)], plugins=[Binding()])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
