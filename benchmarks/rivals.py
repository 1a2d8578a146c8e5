"""Rivals, each in a virtual environment of its own, at the version that is measured; made once, in `.benchmarks/`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".benchmarks"

# Whatever is about Celery runs with the same one as we do.
CELERY = (f"celery[redis]=={version('celery')}", f"kombu=={version('kombu')}", f"redis=={version('redis')}")


@dataclass(frozen=True)
class Rival:
    """What is measured beside us.

    Attributes:
        package: its name on PyPI.
        pin: its version.
        needs: what else goes into its environment.

    """

    package: str
    pin: str
    needs: tuple[str, ...] = CELERY

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.package} {self.pin}"

    @property
    def folder(self) -> Path:
        """Where its environment is, or will be: another one for other versions of anything in it."""
        asked = " ".join([sys.version, *self.requirements])
        return FOLDER / f"{self.package}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is installed."""
        return (f"{self.package}=={self.pin}", *self.needs)

    @property
    def python(self) -> str:
        """The Python of its environment."""
        return str(self.folder / "bin" / "python")


REDBEAT = Rival("celery-redbeat", "2.4.2")
SINGLE_BEAT = Rival("single-beat", "0.6.3")
MULTIBEAT = Rival("celery-multibeat-scheduler", "0.1.0")
LEASED_BEAT = Rival("celery-leased-beat", "0.1.0a1")
DJANGO_CELERY_BEAT = Rival("django-celery-beat", "2.9.0", (*CELERY, f"psycopg[binary]=={version('psycopg')}"))
PROCRASTINATE = Rival("procrastinate", "3.10.0", (f"psycopg[binary]=={version('psycopg')}",))
PGQUEUER = Rival("pgqueuer", "1.6.0", ("asyncpg==0.32.0",))

RIVALS = (REDBEAT, SINGLE_BEAT, MULTIBEAT, LEASED_BEAT, DJANGO_CELERY_BEAT, PROCRASTINATE, PGQUEUER)


def install(rivals: Sequence[Rival]) -> list[Rival]:
    """Make the environments that are not there yet; return the rivals for which pip cannot, and print what it said."""
    making = {rival: _begin(rival) for rival in rivals if not _stamp(rival).exists()}
    failed = []
    for rival, process in making.items():
        output, _ = process.communicate()
        if process.returncode:
            failed.append(rival)
            print(output, file=sys.stderr)
        else:
            _stamp(rival).touch()
    return failed


def _begin(rival: Rival) -> subprocess.Popen[str]:
    venv.create(rival.folder, clear=True)
    command = [sys.executable, "-m", "pip", "--python", rival.python, "install", "--quiet"]
    return subprocess.Popen(
        [*command, *rival.requirements], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _stamp(rival: Rival) -> Path:
    """Return what is there once the environment is whole."""
    return rival.folder / "whole"
