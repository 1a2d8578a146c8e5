"""A small project that runs somewhere, and is moved as a guide in docs/moving says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import redis

from celery_pgleader.config import Config
from celery_pgleader.election.observer import observe
from tests.support.eventually import eventually
from tests.support.pages import ROOT, named_blocks
from tests.support.programs import Program
from tests.support.project import Project

GUIDES = ROOT / "docs" / "moving"
PATIENCE = 60.0
RUN = re.compile(r"report ([0-9a-f-]{36})")
# What the guides write for a reader's own.
BROKER, DATABASE = "redis://localhost:6379/0", "postgresql://me@localhost/postgres"


class Site(Project):
    """A small project that runs somewhere, and is moved."""

    def __init__(self, folder: Path, database: str, broker: str, guide: str) -> None:
        """Begin with the app of the guide from `-B`, which all guides share."""
        super().__init__(folder, database)
        self.broker = broker
        self.guide = named_blocks(GUIDES / guide)
        self._replaced = {BROKER: broker, DATABASE: database}
        self.programs: list[Program] = []

    def write(self, *code: str) -> None:
        """Write the app, or add to it."""
        with (self.folder / "proj.py").open("a") as file:
            text = "\n".join(code)
            for theirs, ours in self._replaced.items():
                text = text.replace(theirs, ours)
            file.write(text + "\n")

    def shell(self, script: str, *codes: int, **environment: str) -> str:
        """Run a step of the guide; return what is seen of it."""
        return super().shell(f"exec 2>&1\n{script}", *codes, **environment)

    def start(self, command: str) -> Program:
        """Start a program, in the project's folder."""
        number = len(self.programs)
        words = ["sh", "-c", f"cd {self.folder} && exec {command}"]
        self.programs.append(Program(f"program {number}", words, self.environment, self.folder))
        return self.programs[-1]

    def start_worker(self, command: str) -> Program:
        """Start a worker, and wait until it consumes."""
        (worker,) = self._start_workers([command])
        return worker

    def start_workers(self) -> list[Program]:
        """Start those of the guide."""
        lines = self.guide["workers"].splitlines()
        assert len(lines) > 1
        return self._start_workers(lines)

    def _start_workers(self, commands: Sequence[str]) -> list[Program]:
        workers = [self.start(f"{command} -P solo") for command in commands]
        for worker in workers:
            worker.await_line(" ready.")
        return workers

    def runs(self) -> list[str]:
        """Return the task ids of all runs, by whichever worker."""
        return [task_id for program in self.programs for task_id in RUN.findall(program.log.read_text())]

    def sent(self) -> set[str]:
        """Return the task ids of all runs, and of those to come of what is in the broker."""
        with redis.Redis.from_url(self.broker) as client:
            # In the order in which a message goes from one to the next.
            waiting: list[Any] = client.lrange("celery", 0, -1)
            taken: list[Any] = [json.loads(packed)[0] for packed in client.hvals("unacked")]
        messages = [*map(json.loads, waiting), *taken]
        return {message["headers"]["id"] for message in messages}.union(self.runs())

    def await_runs(self, number: int) -> None:
        """Wait for so many runs more."""
        before = len(self.runs())
        eventually(lambda: len(self.runs()) >= before + number, timeout=PATIENCE)

    def leader(self, election: str = "proj") -> str | None:
        """Return who leads."""
        seats = observe(Config(database_url=self.database, election=election))
        return next((seat.node for seat in seats if seat.role == "leader"), None)

    def await_leader(self, election: str = "proj", *, other_than: str | None = None) -> str:
        """Wait until somebody leads."""
        eventually(lambda: self.leader(election) not in {None, other_than}, timeout=PATIENCE)
        return str(self.leader(election))

    def published(self) -> set[str]:
        """Return the task ids of all slots that are accounted for as sent, or about to be."""
        rows = self.rows("select task_id::text from pgleader.slots where state in ('claimed', 'published')")
        return {task_id for (task_id,) in rows}

    def check_runs(self, before: set[str]) -> None:
        """Check that all runs but those of what was sent before were the leader's, and that none came twice."""
        runs = self.runs()
        assert len(runs) == len(set(runs))
        assert set(runs) - before <= self.published()

    def end(self) -> None:
        """Leave nothing behind."""
        for program in self.programs:
            program.end()
